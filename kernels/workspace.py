"""GPU buffers that grow and are used again, one set a thread and stream.

A captured CUDA graph reads and writes the very buffers that were there when it was captured, so it
holds them (`held`): a buffer that grows later is a new one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_key: dict[tuple[object, ...], Tensor] = {}
        self.holders: list[list[Tensor]] = []


_buffers = _Buffers()


def workspace(name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, until this thread and stream ask for the same name again."""
    return _get(name, math.prod(shape), dtype, device, False).view(shape)


def counters(name: str, count: int, device: torch.device) -> Tensor:
    """int32 [count] of zeros. A kernel that counts in them must leave them zero."""
    return _get(name, count, torch.int32, device, True)


def _get(name: str, numel: int, dtype: torch.dtype, device: torch.device, zero: bool) -> Tensor:
    make = torch.zeros if zero else torch.empty
    if device.type == "meta":
        return make(numel, dtype=dtype, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (name, dtype, device, stream)
    buffer = _buffers.by_key.get(key)
    if buffer is None or buffer.numel() < numel:
        with torch.inference_mode(False):  # else it could not be written outside that mode
            # Powers of two, so that a growing sequence asks for few buffers.
            size = 1 << max(numel - 1, 0).bit_length()
            buffer = _buffers.by_key[key] = make(size, dtype=dtype, device=device)
    for holder in _buffers.holders:
        holder.append(buffer)
    return buffer[:numel]


@contextmanager
def held() -> Iterator[list[Tensor]]:
    """The list of buffers that this thread's kernels use within the block; keep it alive."""
    holder: list[Tensor] = []
    _buffers.holders.append(holder)
    try:
        yield holder
    finally:
        _buffers.holders.remove(holder)


def clear() -> None:
    """Forget this thread's buffers."""
    _buffers.by_key.clear()
