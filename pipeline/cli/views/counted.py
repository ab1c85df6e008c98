"""No text, or another view's, and a progress bar that counts tokens."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.cli.views.row import Row, View


class Counted:
    """Advances a bar of `max_new_tokens` per row; what a row leaves over counts when it ends.

    Args:
        below: the view that shows the text, if any.
        advance: moves the bar.
    """

    def __init__(
        self, below: View | None, max_new_tokens: int, advance: Callable[[int], None]
    ) -> None:
        self._below = below
        self._most = max_new_tokens
        self._advance = advance

    def update(self, row: Row, new_text: str) -> None:
        """Count one token, or all that will not come."""
        self._advance(1 + (self._most - row.tokens if row.done else 0))
        if self._below is not None:
            self._below.update(row, new_text)
