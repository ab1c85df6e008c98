"""A model's text on a terminal: nothing in it may steer the terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """The text with control characters other than tabs and line ends made visible as U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


def last_line(text: str, width: int) -> str:
    """The end of a text on one line of at most `width` characters."""
    flat = harmless(text).replace("\n", "\u21b5").replace("\t", " ")
    return flat if len(flat) <= width else "\u2026" + flat[1 - width :]
