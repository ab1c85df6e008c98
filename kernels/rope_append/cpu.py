"""RoPE and cache write on the CPU: few calls, each over all heads."""

from __future__ import annotations

import torch
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
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [T, 1, D/2]
    rotated_k = _rotate(_norm(k.to(compute), k_norm, eps), cos, sin, interleaved)
    _store(rotated_k, pool.k, pool.k_scale, slot_mapping)
    _store(v, pool.v, pool.v_scale, slot_mapping)
    return _rotate(_norm(q.to(compute), q_norm, eps), cos, sin, interleaved).to(q.dtype)


def _norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return x
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # [T, h, 1]
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return torch.mul(x, scale).mul_(weight)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    if interleaved:
        a, b, out_a, out_b = x[..., 0::2], x[..., 1::2], out[..., 0::2], out[..., 1::2]
    else:
        (a, b), (out_a, out_b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin)
    return out


def _store(x: Tensor, pool: Tensor, pool_scale: Tensor | None, slot_mapping: Tensor) -> None:
    if pool_scale is None:
        pool.flatten(0, 1).index_copy_(0, slot_mapping, x.to(pool.dtype))
        return
    codes, scale = quantize(x.to(torch.promote_types(x.dtype, torch.float32)))
    pool.flatten(0, 1).index_copy_(0, slot_mapping, codes)
    pool_scale.flatten(0, 1).index_copy_(0, slot_mapping, scale)
