"""One prompt and what it has become so far; what every view is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pipeline.sequences import GenerationEvent


@dataclass
class Row:
    """A prompt, with the text, token count and end of its completion; `number` counts from 1."""

    number: int
    prompt: str
    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None

    def take(self, event: GenerationEvent) -> None:
        """Add what an event brings."""
        self.text += event.text
        self.tokens += 1
        self.finish_reason = event.finish_reason

    @property
    def done(self) -> bool:
        """Whether the completion has ended."""
        return self.finish_reason is not None

    @property
    def summary(self) -> str:
        """Length and end, such as "64 tokens, length"."""
        return f"{self.tokens} tokens, {self.finish_reason}"


class View(Protocol):
    """Something that shows rows as they change."""

    def update(self, row: Row, new_text: str) -> None:
        """Show `row`, to which `new_text` was just added."""
