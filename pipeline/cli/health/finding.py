"""A finding: one thing that was looked at, how it is, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` says what to do unless all is well."""

    subject: str
    name: str
    status: Status
    found: str
    fix: str = ""
