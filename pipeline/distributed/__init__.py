"""A pipeline over several processes and machines, started by torchrun: rank r runs stage r.

`LlamaPipeline.from_pretrained` on rank 0, and `serve` with the same options on all others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.distributed.serving import serve as serve
    from pipeline.distributed.world import World as World

_HOME = {"World": "world", "serve": "serving"}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
