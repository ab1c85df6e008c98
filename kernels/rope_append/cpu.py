"""RoPE and cache write on the CPU: all heads of q and k are rotated by the same few calls."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.layout import KVPool
from kernels.quantization import quantize
from kernels.scratch import scratch

# Tokens at a time: their float32 heads stay in the cache from one pass to the next.
_TOKENS = 128


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
    out = torch.empty_like(q)
    options = (q_norm, k_norm, eps, interleaved)
    if q.shape[0] <= _TOKENS:
        _append(q, k, v, cos, sin, pool, slot_mapping, out, *options)
        return out
    for begin in range(0, q.shape[0], _TOKENS):
        few = slice(begin, begin + _TOKENS)
        slots = slot_mapping[few]
        _append(q[few], k[few], v[few], cos[few], sin[few], pool, slots, out[few], *options)
    return out


def _append(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    pool: KVPool,
    slots: Tensor,
    out: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    interleaved: bool,
) -> None:
    compute = torch.promote_types(q.dtype, torch.float32)
    tokens, q_heads, dim = q.shape
    rotating = q_heads + k.shape[1]
    shape = (tokens, rotating + k.shape[1], dim)
    before = scratch("rope_append before", shape, compute)  # heads of q, then k, then v
    after = scratch("rope_append after", shape, compute)
    before[:, :q_heads] = q if q_norm is None else _norm(q.to(compute), q_norm, eps)
    before[:, q_heads:rotating] = k if k_norm is None else _norm(k.to(compute), k_norm, eps)
    after[:, rotating:] = v
    _rotate(before[:, :rotating], cos, sin, interleaved, after[:, :rotating])
    out.copy_(after[:, :q_heads])
    _store(after[:, q_heads:], pool, slots)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    scale = x.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()  # [T, h, 1]
    return torch.mul(x, scale).mul_(weight)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, out: Tensor) -> None:
    """x [T, h, D] and the angles' cos, sin [T, D/2] -> out [T, h, D]."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if interleaved:
        a, b, out_a, out_b = x[..., 0::2], x[..., 1::2], out[..., 0::2], out[..., 1::2]
    else:
        (a, b), (out_a, out_b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin)


def _store(kv: Tensor, pool: KVPool, slots: Tensor) -> None:
    """Write kv [T, 2 * Hkv, D], K's heads first, to the pool's `slots` [T]."""
    if pool.k_scale is None or pool.v_scale is None:
        values = kv.to(pool.k.dtype)
    else:
        values, scale = quantize(kv)
        for scales, half in zip((pool.k_scale, pool.v_scale), scale.chunk(2, dim=1), strict=True):
            scales.flatten(0, 1).index_copy_(0, slots, half)
    for tokens, half in zip((pool.k, pool.v), values.chunk(2, dim=1), strict=True):
        tokens.flatten(0, 1).index_copy_(0, slots, half)
