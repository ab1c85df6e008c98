"""Operators of a split Llama: each with a plain-torch reference and a fast CPU path.

Importing this package loads neither torch nor Triton and reads nothing from the environment:
public names and operator folders resolve on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Imported here, not lazily: a lazy name equal to its module's name would be shadowed by the module.
from kernels.override import override

if TYPE_CHECKING:
    from kernels.dispatch import resolve_impl
    from kernels.layout import KVLayout, KVPool
    from kernels.registry import OPS, get_op

__version__ = "0.1.0"

__all__ = ["OPS", "KVLayout", "KVPool", "get_op", "override", "resolve_impl"]

_HOME = {
    "KVLayout": "kernels.layout",
    "KVPool": "kernels.layout",
    "OPS": "kernels.registry",
    "get_op": "kernels.registry",
    "resolve_impl": "kernels.dispatch",
}
_OPERATOR_FOLDERS = ("attention", "decode_mlp", "linear", "logits", "rms_norm", "rope_append")


def __getattr__(name: str) -> Any:
    if name in _OPERATOR_FOLDERS:
        return import_module(f"{__name__}.{name}")
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_OPERATOR_FOLDERS})
