"""Swap an operator's implementation in a live model, for notebooks and experiments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kernels.errors import InvalidInputError

# Operator -> folder of `kernels/` that holds it. Dispatch, override and the registry go by this.
OPERATORS: dict[str, str] = {
    "rms_norm": "rms_norm",
    "rope_append": "rope_append",
    "attention": "attention",
    "decode_mlp": "decode_mlp",
    "linear": "linear",
    "logits": "logits",
    "greedy": "logits",
}

_lock = threading.Lock()
_stacks: dict[str, list[tuple[object, Callable[..., Any]]]] = {}
_active: dict[str, Callable[..., Any]] = {}


def require_operator(op: str) -> None:
    """Raise `InvalidInputError` unless `op` is the name of an operator."""
    if op not in OPERATORS:
        raise InvalidInputError(f"operator {op!r} is unknown; expected one of {sorted(OPERATORS)}")


def active_override(op: str) -> Callable[..., Any] | None:
    """The function that stands in for `op` now, or None."""
    return _active.get(op)


def overridden() -> bool:
    """Whether any operator is replaced now."""
    return bool(_active)


@contextmanager
def override(op: str, fn: Callable[..., Any]) -> Iterator[None]:
    """Use `fn` for the operator `op`, whatever `impl` says, until the `with` block ends.

    `fn` takes the arguments of the operator's public function, without `impl`. The swap holds for
    the whole process, worker threads included; blocks nest, and the innermost open one counts.
    Raises `InvalidInputError` for an unknown operator or an `fn` that cannot be called.
    """
    require_operator(op)
    if not callable(fn):
        raise InvalidInputError(f"override({op!r}): fn is {fn!r}; expected a callable")
    entry = (object(), fn)
    with _lock:
        _stacks.setdefault(op, []).append(entry)
        _active[op] = fn
    try:
        yield
    finally:
        with _lock:
            stack = _stacks[op]
            stack.remove(entry)
            if stack:
                _active[op] = stack[-1][1]
            else:
                del _active[op]
