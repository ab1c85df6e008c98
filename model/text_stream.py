"""Tokens to text, one at a time: what is given out is final, and adds up to decoding the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
_CONTEXT = 32  # tokens kept of a text that goes before


class TextStream:
    """Text of a growing sequence of tokens.

    The pieces of `push` and `flush` joined are what decoding all tokens at once gives. A piece
    never ends within a UTF-8 character, and is never taken back.

    Only the tokens since the last settled point are decoded anew, behind a few settled ones that
    make the first look like what it is, a token amid a text: decoders drop a leading space. Two
    things keep text from being settled. A replacement character at the end may be the beginning
    of a character. And a run of byte tokens ("<0xE2>") counts only whole: decoders make it one
    replacement character per byte if any of it is no UTF-8.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        byte_ids: frozenset[int] = frozenset(),
        skipped: Callable[[int], bool] = lambda _: False,
        after: Sequence[int] = (),
    ) -> None:
        """Start a stream; `Tokenizer.stream` fills these in.

        Args:
            decode: the whole decoder.
            byte_ids: tokens that are bytes of a run.
            skipped: whether a token has no text, and so does not end a run.
            after: tokens that go before; their text is not given out.
        """
        self._decode = decode
        self._byte_ids = byte_ids
        self._skipped = skipped
        self._window = list(after[-_CONTEXT:])  # context, then what is not settled
        self._context = len(self._window)
        self._given = len(decode(self._window)) if self._window else 0  # characters
        self._in_run = False

    def push(self, token: int) -> str:
        """Take a token; the text that is final with it, maybe none."""
        self._window.append(token)
        if token in self._byte_ids:
            self._in_run = True
        elif not self._skipped(token):
            self._in_run = False
        if self._in_run:
            return ""
        text = self._decode(self._window)
        final = len(text) - text.endswith(_REPLACEMENT)
        piece = text[self._given : final]
        self._given = max(self._given, final)
        if piece and final == len(text):
            self._settle()
        return piece

    def flush(self) -> str:
        """The text still open at the end, as the decoder shows it."""
        piece = self._decode(self._window)[self._given :]
        self._given += len(piece)
        return piece

    def _settle(self) -> None:
        """Make what was open the new context, if it has a text that would hold a leading space."""
        context = self._window[self._context :]
        length = len(self._decode(context))
        if length:
            self._window, self._context, self._given = context, len(context), length
