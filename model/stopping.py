"""When a completion ends: at a stop token, at a stop string, or at its length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

from kernels.errors import InvalidInputError
from model.config_values import is_int

FinishReason = Literal["stop", "length", "error"]


class TokenText(Protocol):
    """What turns tokens into text piece by piece; `model.tokenizer.TextStream` does."""

    def push(self, token: int) -> str:
        """Text that is final with this token."""

    def flush(self) -> str:
        """Text that was still open."""


class StopCondition:
    """Stop tokens and stop strings, shared by any number of sequences."""

    def __init__(self, token_ids: Iterable[int] = (), strings: str | Iterable[str] = ()) -> None:
        self.token_ids = frozenset(token_ids)
        self.strings = (strings,) if isinstance(strings, str) else tuple(strings)
        for token in self.token_ids:
            if not is_int(token) or token < 0:
                raise InvalidInputError(f"stop token id is {token!r}, expected an integer from 0")
        for string in self.strings:
            if not isinstance(string, str) or not string:
                raise InvalidInputError(f"stop string is {string!r}, expected a non-empty text")

    def watch(self, text: TokenText, max_new_tokens: int) -> StopWatch:
        """Start watching one sequence, whose tokens become text through `text`."""
        if not is_int(max_new_tokens) or max_new_tokens < 1:
            raise InvalidInputError(f"max_new_tokens is {max_new_tokens!r}, expected at least 1")
        return StopWatch(self, text, max_new_tokens)

    def find(self, text: str) -> int | None:
        """Where to cut: the start of the stop string that ends first (of several, the longest)."""
        found = [(start + len(s), start) for s in self.strings if (start := text.find(s)) >= 0]
        return min(found)[1] if found else None

    def open_from(self, text: str) -> int:
        """Where text begins that may become a stop string; the text's length if there is none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(s.startswith(text[start:]) for s in self.strings):
                return start
        return len(text)

    @property
    def _longest(self) -> int:
        return max(map(len, self.strings), default=0)


class StopWatch:
    """One sequence under a `StopCondition`: tokens in, text out that will not be taken back.

    Text that could be the start of a stop string is held back until that is decided. Neither a
    stop string, nor a stop token, nor anything after them becomes text.
    """

    def __init__(self, condition: StopCondition, text: TokenText, max_new_tokens: int) -> None:
        self.finish_reason: FinishReason | None = None
        self._condition = condition
        self._text = text
        self._left = max_new_tokens
        self._held = ""

    @property
    def reads_text(self) -> bool:
        """Whether a stop string may end the sequence; else tokens alone say when it ends."""
        return bool(self._condition.strings)

    def ends_with(self, token: int) -> bool:
        """Whether the sequence ends with this next token, whatever its text."""
        return token in self._condition.token_ids or self._left == 1

    def push(self, token: int) -> str:
        """Take the sequence's next token; the text to show now. Ask `finish_reason` afterwards."""
        if self.finish_reason is not None:
            raise InvalidInputError(f"the sequence has ended ({self.finish_reason}), got {token}")
        self._left -= 1
        if token in self._condition.token_ids:
            return self._end("stop")
        self._held += self._text.push(token)
        if self._cut():
            return self._release()
        if not self._left:
            return self._end("length")
        return self._release(self._condition.open_from(self._held))

    def _end(self, reason: FinishReason) -> str:
        """Close the text; a stop string may still come to light in what was open."""
        self._held += self._text.flush()
        if not self._cut():
            self.finish_reason = reason
        return self._release()

    def _cut(self) -> bool:
        """Drop a stop string and what follows it, if there is one."""
        start = self._condition.find(self._held)
        if start is None:
            return False
        self._held = self._held[:start]
        self.finish_reason = "stop"
        return True

    def _release(self, count: int | None = None) -> str:
        """Hand out the first `count` held characters, or all."""
        text = self._held[:count]
        self._held = self._held[len(text) :]
        return text
