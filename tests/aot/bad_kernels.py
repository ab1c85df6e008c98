"""Stand-ins for `rms_norm` whose kernels must be found wanting; launched, never run."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import launch


@triton.jit
def _fine_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    tl.store(y_ptr + column, tl.load(x_ptr + column) * 2.0)


@triton.jit
def _spilling_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    # Every element is needed again after the sum: BLOCK / 32 registers of each thread.
    column = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + column)
    tl.store(y_ptr + column, x * tl.sum(x, axis=0))


@triton.jit
def _hoarding_kernel(x_ptr, y_ptr, M: tl.constexpr, K: tl.constexpr):
    o_m, o_k = tl.arange(0, M), tl.arange(0, K)
    a = tl.load(x_ptr + o_m[:, None] * K + o_k[None, :]).to(tl.float16)
    b = tl.load(x_ptr + o_k[:, None] * M + o_m[None, :]).to(tl.float16)
    tl.store(y_ptr + o_m[:, None] * M + o_m[None, :], tl.dot(a, b))


@triton.jit
def _mistyped_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    tl.store(y_ptr + tl.arange(0, BLOCK), no_such_name)  # noqa: F821


def fine(x: Tensor, *args: Any, **options: Any) -> Tensor:
    """Nothing wrong."""
    y = torch.empty_like(x)
    launch(_fine_kernel, (1,), x, y, BLOCK=1024)
    return y


def spilling(x: Tensor, *args: Any, **options: Any) -> Tensor:
    """More registers than there are."""
    y = torch.empty_like(x)
    launch(_spilling_kernel, (1,), x, y, BLOCK=16384, num_warps=1)
    return y


def hoarding(x: Tensor, *args: Any, **options: Any) -> Tensor:
    """More shared memory than there is."""
    y = torch.empty_like(x)
    launch(_hoarding_kernel, (1,), x, y, M=128, K=1024, num_warps=8)
    return y


def mistyped(x: Tensor, *args: Any, **options: Any) -> Tensor:
    """No kernel at all, after one that is fine."""
    launch(_mistyped_kernel, (1,), x, torch.empty_like(x), BLOCK=1024)
    return fine(x)


def silent(x: Tensor, *args: Any, **options: Any) -> Tensor:
    """Nothing that could be compiled."""
    return torch.empty_like(x)


def raising(x: Tensor, *args: Any, **options: Any) -> Tensor:
    """A launcher that fails before it launches."""
    raise ValueError("no such luck")
