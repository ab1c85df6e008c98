"""Attention on the CPU: gather each call's tokens once, then torch's fused attention.

The query heads of a kv head act as queries of one head, so that K and V are never repeated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention.cpu_plan import DecodeGroup, PrefillRow, plan
from kernels.layout import KVPool
from kernels.scratch import scratch

# Queries of a prefill that share a mask: bounds its size and the work on masked keys.
_QUERY_CHUNK = 512


def attention(
    q: Tensor,
    pool: KVPool,
    query_start: Tensor,
    kv_len: Tensor,
    block_table: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """See `kernels.attention.attention`."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    compute = torch.promote_types(q.dtype, torch.float32)
    if q.dtype == pool.k.dtype == torch.bfloat16 and softcap is None:
        compute = torch.bfloat16  # the fused kernel sums in float32
    work = plan(query_start, kv_len, block_table, pool.layout.block_size, window)
    out = torch.empty_like(q) if work.covers_all else torch.zeros_like(q)
    for group in work.groups:
        _decode(out, q, pool, group, compute, scale, softcap)
    for row in work.prefill:
        _prefill(out, q, pool, row, compute, scale, window, softcap)
    return out


def _decode(
    out: Tensor,
    q: Tensor,
    pool: KVPool,
    group: DecodeGroup,
    compute: torch.dtype,
    scale: float,
    softcap: float | None,
) -> None:
    """One query a sequence: [R, Hkv, G, D] over [R, Hkv, L, D]."""
    kv_heads, dim = pool.layout.num_kv_heads, pool.layout.head_dim
    k = _gather("k", pool.k, pool.k_scale, group.slots, compute)
    v = _gather("v", pool.v, pool.v_scale, group.slots, compute)
    k, v = (x.view(-1, group.length, kv_heads, dim).transpose(1, 2) for x in (k, v))
    queries = q if group.rows is None else q[group.rows]
    queries = queries.to(compute).reshape(k.shape[0], kv_heads, -1, dim)
    mask = None
    if group.padding is not None:
        mask = torch.zeros(group.padding.shape, dtype=compute)
        mask.masked_fill_(group.padding, -torch.inf)
    result = _attend(queries, k, v, mask, scale, softcap).reshape(-1, *q.shape[1:])
    if group.rows is None:
        out.copy_(result)
    else:
        out[group.rows] = result.to(out.dtype)


def _prefill(
    out: Tensor,
    q: Tensor,
    pool: KVPool,
    row: PrefillRow,
    compute: torch.dtype,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> None:
    """Several queries of one sequence: [1, Hq, n, D] over [1, Hkv, l, D]."""
    k = _gather("k", pool.k, pool.k_scale, row.slots, compute)
    v = _gather("v", pool.v, pool.v_scale, row.slots, compute)
    k, v = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
    queries = q[row.start : row.stop].to(compute).transpose(0, 1)[None]
    n, target = row.stop - row.start, out[row.start : row.stop]
    if n == row.length and softcap is None and (window is None or window >= n):
        result = F.scaled_dot_product_attention(
            queries, k, v, is_causal=True, scale=scale, enable_gqa=True
        )
        target.copy_(result[0].transpose(0, 1))
        return
    for begin in range(0, n, _QUERY_CHUNK):
        end = min(begin + _QUERY_CHUNK, n)
        q_position = torch.arange(row.length - n + begin, row.length - n + end)
        low = row.first if window is None else max(row.first, row.length - n + begin - window + 1)
        high = row.length - n + end
        mask = _causal_mask(q_position, torch.arange(low, high), window, compute)
        keys = slice(low - row.first, high - row.first)
        chunk = _attend(
            queries[:, :, begin:end], k[:, :, keys], v[:, :, keys], mask, scale, softcap
        )
        target[begin:end] = chunk[0].transpose(0, 1).to(out.dtype)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """q [R, h, n, D], k, v [R, Hkv, l, D], mask added to the scores -> [R, h, n, D]."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    groups = q.shape[1] // k.shape[1]
    q = q.unflatten(1, (-1, groups))  # [R, Hkv, g, n, D]
    scores = torch.matmul(q, k.unsqueeze(2).transpose(-1, -2)).mul_(scale)
    scores = scores.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores += mask if mask.dim() == 2 else mask.unsqueeze(1)
    return torch.matmul(scores.softmax(dim=-1), v.unsqueeze(2)).flatten(1, 2)


def _causal_mask(
    q_position: Tensor, k_position: Tensor, window: int | None, dtype: torch.dtype
) -> Tensor:
    """[n, l]: 0 where a query sees a key, -inf where not."""
    distance = q_position.unsqueeze(1) - k_position
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)


def _gather(
    name: str, pool: Tensor, scale: Tensor | None, slots: Tensor, dtype: torch.dtype
) -> Tensor:
    """Tokens of the pool at `slots` [N]: [N, Hkv, D] in `dtype`, in this thread's scratch memory."""
    shape = (slots.shape[0], *pool.shape[2:])
    codes = scratch(f"{name} as stored", shape, pool.dtype)
    torch.index_select(pool.flatten(0, 1), 0, slots, out=codes)
    if pool.dtype == dtype:
        return codes
    tokens = scratch(f"{name} converted", shape, dtype).copy_(codes)
    if scale is not None:
        tokens.mul_(scale.flatten(0, 1).index_select(0, slots).unsqueeze(-1))
    return tokens
