"""Operators that a run takes from elsewhere: `--override OPERATOR=module:function`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from kernels.override import OPERATORS, override
from kernels.own import Function, is_own, load_own
from pipeline.cli.errors import blaming, usage_error
from pipeline.cli.options import ComputeOptions


def resolved_impl(compute: ComputeOptions) -> str:
    """The implementation of all operators that are not overridden."""
    return "auto" if is_own(compute.impl) else compute.impl


@contextmanager
def overriding(compute: ComputeOptions) -> Iterator[None]:
    """Within, the operators that `--override`, or `--impl module:operator`, names are others.

    Functions are loaded before anything else happens. Raises `typer.BadParameter` for one that is
    not there, an unknown operator, and an `--impl` whose function has no operator's name.
    """
    functions = _functions(compute)
    with ExitStack() as stack:
        for op, function in functions.items():
            stack.enter_context(override(op, function))
        yield


def _functions(compute: ComputeOptions) -> dict[str, Function]:
    found: dict[str, Function] = {}
    if is_own(compute.impl):
        op = compute.impl.rpartition(":")[2]
        if op not in OPERATORS:
            allowed = f"use --override OPERATOR={compute.impl}, as {op} is no operator's name"
            raise usage_error("--impl", compute.impl, allowed)
        with blaming("--impl", compute.impl):
            found[op] = load_own(compute.impl)
    for entry in compute.override or ():
        op, _, name = entry.partition("=")
        if op not in OPERATORS:
            allowed = f"expected OPERATOR=module:function, OPERATOR one of {', '.join(OPERATORS)}"
            raise usage_error("--override", entry, allowed)
        if op in found:
            raise usage_error("--override", entry, f"{op} is given twice")
        with blaming("--override", entry):
            found[op] = load_own(name)
    return found
