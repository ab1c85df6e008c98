"""Find the implementation of an operator by convention: `kernels.<folder>.{kernel,cpu,reference}`.

`"auto"` is resolved once, by `resolve_impl`, when a stage is built; an explicit choice that is not
there is an error, never another implementation.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kernels.errors import InvalidInputError, UnsupportedError
from kernels.override import OPERATORS, active_override, require_operator

if TYPE_CHECKING:
    import torch

_FILE = {"triton": "kernel", "cpu": "cpu", "reference": "reference"}
IMPLEMENTATIONS = tuple(_FILE)


def resolve_impl(impl: str, device: str | torch.device) -> str:
    """The implementation ("triton", "cpu" or "reference") that `impl` means on `device`.

    "auto" is Triton on CUDA and "cpu" on CPU. Raises `InvalidInputError` for an unknown `impl` or
    one that cannot take tensors of `device`, `UnsupportedError` for a device without any.
    """
    kind = str(device).split(":")[0]
    if impl == "auto":
        if kind not in ("cuda", "cpu"):
            raise UnsupportedError(f"device is {str(device)!r}; expected a cpu or cuda device")
        return "triton" if kind == "cuda" else "cpu"
    _require_impl(impl)
    if impl == "cpu" and kind != "cpu":
        raise InvalidInputError(f"impl 'cpu' takes CPU tensors; got device {str(device)!r}")
    if impl == "triton" and kind == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UnsupportedError(
            "impl 'triton' takes CPU tensors only in Triton's interpreter; "
            "set TRITON_INTERPRET=1 before Python starts, or choose 'cpu' or 'reference'"
        )
    return impl


def implementation(op: str, impl: str) -> Callable[..., Any]:
    """The function that computes `op` with `impl`, or what `kernels.override` put in its place."""
    return active_override(op) or _implementation(op, impl)


@functools.cache
def _implementation(op: str, impl: str) -> Callable[..., Any]:
    require_operator(op)
    fn: Callable[..., Any] = getattr(implementation_module(op, impl), op)
    return fn


@functools.cache
def implementation_module(op: str, impl: str) -> ModuleType:
    """The module that implements `op` with `impl`; where there is no `cpu.py`, the reference's.

    Raises `UnsupportedError` that names the operator and the implementations it has.
    """
    require_operator(op)
    _require_impl(impl)
    table = implementations(op)
    if impl not in table:
        have = ", ".join(repr(name) for name in table)
        raise UnsupportedError(f"operator {op!r} has no implementation {impl!r}; it has {have}")
    return import_module(table[impl])


@functools.cache
def implementations(op: str) -> dict[str, str]:
    """Implementation -> module of `op`, for those that are there."""
    require_operator(op)
    package = f"kernels.{OPERATORS[op]}"
    table = {
        impl: f"{package}.{file}"
        for impl, file in _FILE.items()
        if importlib.util.find_spec(f"{package}.{file}") is not None
    }
    table.setdefault("cpu", table["reference"])
    return table


def _require_impl(impl: str) -> None:
    if impl not in _FILE:
        raise InvalidInputError(f"impl is {impl!r}; expected one of {list(IMPLEMENTATIONS)}")
