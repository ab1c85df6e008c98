"""A stage's failure as text that crosses a link, and the exception that it becomes again."""

from __future__ import annotations

import builtins
import traceback

import kernels.errors
from pipeline import errors
from pipeline.errors import StageError

TEXT_ROOM = 2048
"""Bytes that every message has room for at least, so that a failure fits beside a single row."""

_MESSAGE = TEXT_ROOM // 2  # bytes of the message; the traceback gets what is left


def failure_text(failure: StageError) -> bytes:
    """Operation, type, message and the end of the traceback, in at most `TEXT_ROOM` bytes."""
    cause = failure.cause
    message = _bytes(str(cause))[:_MESSAGE]
    text = b"\0".join([_bytes(failure.operation), _bytes(type(cause).__name__), message, b""])
    trace = _bytes("".join(traceback.format_tb(cause.__traceback__)))
    room = TEXT_ROOM - len(text)
    return text + (trace if len(trace) <= room else b"..." + trace[len(trace) - room + 3 :])


def rebuilt(text: bytes, rank: int) -> tuple[str, Exception]:
    """The operation that failed, and the cause: of its own type where that is a known one."""
    parts = text.decode("utf-8", "replace").split("\0", 3)
    operation, name, message, trace = (*parts, "", "", "", "")[:4]
    cause = _exception(name, message)
    if trace:
        cause.add_note(f"on rank {rank}:\n{trace}")
    return operation, cause


def _exception(name: str, message: str) -> Exception:
    for module in (kernels.errors, errors, builtins):
        known = getattr(module, name, None)
        if isinstance(known, type) and issubclass(known, Exception):
            try:
                made = known(message)
            except TypeError:  # it wants more than a message
                break
            if str(made) == message:
                return made
    return type(name or "Exception", (RuntimeError,), {})(message)


def _bytes(text: str) -> bytes:
    return text.replace("\0", " ").encode("utf-8", "replace")
