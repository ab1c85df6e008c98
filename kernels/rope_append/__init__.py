"""Rotate q and k (RoPE, Su et al., 2021, https://arxiv.org/abs/2104.09864) and append K, V to the
paged cache, with optional per-head norms before and quantisation after."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import implementation
from kernels.layout import KVPool
from kernels.validation import require

__all__ = ["rope_append"]


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
    impl: str,
) -> Tensor:
    """Write K and V of T tokens into `pool`, in place, and return rotated q [T, Hq, D] in q.dtype.

    q [T, Hq, D]; k, v [T, Hkv, D]: strided views are fine. cos, sin [T, D//2] float32: one row a
    token, one column a pair of elements, pairs being (i, i + D/2) or, if `interleaved`,
    (2i, 2i + 1). slot_mapping int64 [T] = block * block_size + offset, without duplicates.
    q_norm, k_norm [D]: weights of an RMSNorm over each head, before rotation. All maths is in
    float32; K and V are then rounded to the pool's dtype, or quantised from float32.
    impl "triton" only: negative slots, those of padding rows of captured graphs, are written
    nowhere; the rows' q is returned all the same.
    Raises `InvalidInputError` for shapes that do not fit each other or the pool.
    """
    _validate(q, k, v, cos, sin, pool, slot_mapping, q_norm, k_norm)
    rotated: Tensor = implementation("rope_append", impl)(
        q,
        k,
        v,
        cos,
        sin,
        pool,
        slot_mapping,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
        interleaved=interleaved,
    )
    return rotated


def _validate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    pool: KVPool,
    slot_mapping: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
) -> None:
    op = "rope_append"
    tokens, kv_heads, dim = q.shape[0], pool.layout.num_kv_heads, pool.layout.head_dim
    ok = q.dim() == 3 and q.shape[2] == dim and q.shape[1] % kv_heads == 0
    require(ok, op, "q", q, f"[T, a multiple of {kv_heads}, {dim}]")
    require(dim % 2 == 0, op, "the pool's head_dim", dim, "an even number")
    for name, heads in (("k", k), ("v", v)):
        if heads.shape != (tokens, kv_heads, dim):
            require(False, op, name, heads, f"shape [{tokens}, {kv_heads}, {dim}]")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != (tokens, dim // 2):
            require(False, op, name, table, f"shape [{tokens}, {dim // 2}]")
    if slot_mapping.shape != (tokens,) or slot_mapping.dtype != torch.int64:
        require(False, op, "slot_mapping", slot_mapping, f"torch.int64 of shape [{tokens}]")
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None and weight.shape != (dim,):
            require(False, op, name, weight, f"shape [{dim}]")
