"""Buffers that grow and are used again, one set a thread.

A fresh tensor of megabytes costs a page fault every 4 KB when it is first written, several times
what filling it costs. A buffer lives as long as its thread and holds the largest size asked for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_key: dict[tuple[str, torch.dtype], Tensor] = {}


_buffers = _Buffers()


def scratch(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor, until this thread asks for the same name and dtype again."""
    buffers, numel = _buffers.by_key, math.prod(shape)
    buffer = buffers.get((name, dtype))
    if buffer is None or buffer.numel() < numel:
        buffers.pop((name, dtype), None)  # freed before the larger one is made
        with torch.inference_mode(False):  # else it could not be written outside that mode
            buffer = buffers[name, dtype] = torch.empty(numel, dtype=dtype)
    return buffer[:numel].view(shape)


def clear() -> None:
    """Free this thread's buffers."""
    _buffers.by_key.clear()
