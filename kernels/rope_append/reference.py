"""Plain torch: per-head norm, rotation, quantisation, write."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from kernels.layout import KVPool
from kernels.quantization import quantize


def rope_append(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    pool: KVPool,
    slot_mapping: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    interleaved: bool = False,
) -> Tensor:
    """See `kernels.rope_append.rope_append`."""
    compute = torch.promote_types(q.dtype, torch.float32)
    rotated_q = _rotate(_norm(q.to(compute), q_norm, eps), cos, sin, interleaved)
    rotated_k = _rotate(_norm(k.to(compute), k_norm, eps), cos, sin, interleaved)
    _store(rotated_k, pool.k, pool.k_scale, slot_mapping)
    _store(v.to(compute), pool.v, pool.v_scale, slot_mapping)
    return rotated_q.to(q.dtype)


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return x
    mean_square = x.square().mean(dim=-1, keepdim=True)
    return x / torch.sqrt(mean_square + eps) * weight.to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    pairs = "t h (d two) -> two t h d" if interleaved else "t h (two d) -> two t h d"
    back = "two t h d -> t h (d two)" if interleaved else "two t h d -> t h (two d)"
    a, b = rearrange(x, pairs, two=2)
    cos, sin = (rearrange(table.to(x.dtype), "t d -> t 1 d") for table in (cos, sin))
    return rearrange([a * cos - b * sin, b * cos + a * sin], back)


def _store(x: Tensor, pool: Tensor, pool_scale: Tensor | None, slot_mapping: Tensor) -> None:
    block_size = pool.shape[1]
    block, offset = slot_mapping // block_size, slot_mapping % block_size
    if pool_scale is None:
        pool[block, offset] = x.to(pool.dtype)
    else:
        pool[block, offset], pool_scale[block, offset] = quantize(x)
