"""Checks of the public functions: of shapes and dtypes only, so that none waits for a device."""

from __future__ import annotations

from typing import Any

from kernels.errors import InvalidInputError


def fail(op: str, argument: str, got: Any, expected: str) -> InvalidInputError:
    """An error that names the operator, the argument, what it got and what was expected."""
    return InvalidInputError(f"{op}: {argument} is {_describe(got)}; expected {expected}")


def require(ok: bool, op: str, argument: str, got: Any, expected: str) -> None:
    """Raise `fail(...)` unless `ok`."""
    if not ok:
        raise fail(op, argument, got, expected)


def _describe(got: Any) -> str:
    if hasattr(got, "shape") and hasattr(got, "dtype"):
        return f"{got.dtype} of shape {list(got.shape)}"
    if isinstance(got, tuple):
        return str(list(got))
    return repr(got)
