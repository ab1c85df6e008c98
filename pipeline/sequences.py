"""Sequences that are being generated, and what comes out of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from model.stage import DecodeRow
from model.stopping import FinishReason, StopWatch
from pipeline.prompts import Prompt
from pipeline.work import Piece


@dataclass(frozen=True)
class GenerationEvent:
    """A new token of a prompt's completion, and the text that became final with it.

    A completion that failed ends with an event without a token.
    """

    index: int
    token: int | None
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Completion:
    """A finished completion: its text, and its tokens with the stop token, if one ended it.

    `error` says what failed where `finish_reason` is "error"; text and tokens are those until then.
    """

    prompt: str | list[int]
    text: str
    tokens: list[int]
    finish_reason: FinishReason
    index: int
    error: str | None = None


@dataclass(eq=False)
class Running:
    """A sequence that has been let in.

    `drawn` are tokens that an earlier run drew. They take the same way through the stages again,
    one by one: prefilled at once, they would leave other last bits in the cache, and the tokens
    after them might be others.
    """

    seq_id: str
    prompt: Prompt
    watch: StopWatch
    drawn: deque[int] = field(default_factory=deque)
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    sent: int = 0  # tokens that are in the cache, or on their way there

    @property
    def given(self) -> list[int]:
        """What has to be prefilled."""
        return self.prompt.tokens

    @property
    def stream(self) -> int:
        """Stream of its random draws."""
        return self.prompt.index

    @property
    def prompt_tokens(self) -> list[int]:
        """Tokens that were given."""
        return self.prompt.tokens

    def piece(self, most: int) -> Piece:
        """Its next tokens to prefill, at most so many."""
        start, self.sent = self.sent, min(len(self.given), self.sent + most)
        ends = self.sent == len(self.given)
        return Piece(self.seq_id, self.given[start : self.sent], start, ends)

    def row(self) -> DecodeRow:
        """Its row of the next decode batch: the last token, at the position it takes."""
        pos = len(self.prompt.tokens) + len(self.tokens) - 1
        self.sent = pos + 1
        return DecodeRow(self.seq_id, self.tokens[-1], pos)

    def next(self, token: int) -> int:
        """The token that comes next: one that was drawn earlier, or else this."""
        return self.drawn.popleft() if self.drawn else token

    def draw(self, token: int) -> bool:
        """Take the next token; whether it is the last, whatever its text."""
        self.tokens.append(token)
        return self.watch.ends_with(token)

    def show(self, token: int) -> GenerationEvent:
        """The event of a token that was drawn, with the text that became final."""
        text = self.watch.push(token)
        self.texts.append(text)
        return GenerationEvent(self.prompt.index, token, text, self.watch.finish_reason)

    def replay(self, tokens: Iterable[int]) -> list[GenerationEvent]:
        """Take tokens that were drawn before, up to one that ends the completion."""
        events: list[GenerationEvent] = []
        for token in tokens:
            if self.watch.finish_reason is None:
                self.draw(token)
                events.append(self.show(token))
        return events

    def completion(self, reason: FinishReason, error: str | None = None) -> Completion:
        """What came out."""
        return Completion(
            self.prompt.given, "".join(self.texts), self.tokens, reason, self.prompt.index, error
        )


@dataclass
class Rate:
    """Tokens and the seconds they took."""

    tokens: int = 0
    seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Count `tokens` that took `seconds`."""
        self.tokens += tokens
        self.seconds += seconds

    def json(self) -> dict[str, float | int | None]:
        """Tokens, seconds and their ratio."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens / self.seconds if self.seconds else None,
        }
