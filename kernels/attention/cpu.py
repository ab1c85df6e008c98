"""Attention on the CPU: gather the tokens of a few sequences at a time, then torch's fused kernel.

The query heads of a kv head act as queries of one head, so that K and V are never repeated. Maths
is in float32: K and V are converted after the gather, in portions that stay in the cache, where
torch's float32 kernel is as fast as its bfloat16 one, and five times its float16 one. Short
bfloat16 sequences go without that conversion, which would cost them a third.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention.cpu_plan import DecodeGroup, PrefillRow, plan
from kernels.layout import KVPool
from kernels.scratch import scratch
from kernels.validation import fail

# Elements of K converted at once, a core: 2.4 MB of float32 measured best for a 1 MB L2 cache.
_PORTION = 600_000
# Up to so many tokens torch's bfloat16 kernel (which sums in float32) beats converting.
_BF16_LENGTH = 512
# Queries times heads of a group that share a mask: bounds its size, and the work on hidden keys.
_MASK_ROWS = 512


@dataclass(frozen=True)
class _Scores:
    """Options of the scores."""

    scale: float
    window: int | None
    softcap: float | None


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
    max_queries: int | None = None,
) -> Tensor:
    """See `kernels.attention.attention`."""
    options = _Scores(q.shape[2] ** -0.5 if scale is None else scale, window, softcap)
    work = plan(query_start, kv_len, block_table, pool.layout.block_size, window)
    if work.total != q.shape[0]:
        raise fail("attention", "query_start[-1]", work.total, f"{q.shape[0]}, the rows of q")
    out = torch.empty_like(q) if work.covers_all else torch.zeros_like(q)
    kv_heads = pool.layout.num_kv_heads
    by_kv_head = (q.shape[0], kv_heads, q.shape[1] // kv_heads, q.shape[2])
    q_heads, out_heads = q.view(by_kv_head), out.view(by_kv_head)  # [T, Hkv, G, D]
    for group in work.groups:
        _decode(out_heads, q_heads, pool, group, options)
    for row in work.prefill:
        _prefill(out_heads, q_heads, pool, row, options)
    return out


def _decode(out: Tensor, q: Tensor, pool: KVPool, group: DecodeGroup, options: _Scores) -> None:
    """One query a sequence: q, out [T, Hkv, G, D]."""
    compute = torch.promote_types(q.dtype, torch.float32)
    if q.dtype == pool.k.dtype == torch.bfloat16 and options.softcap is None:
        compute = torch.bfloat16 if group.length <= _BF16_LENGTH else compute
    queries = (q if group.rows is None else q[group.rows]).to(compute)  # [R, Hkv, G, D]
    count, heads, _, dim = queries.shape
    # Short bfloat16 sequences are used as stored; all else goes in portions that fit the cache.
    whole = pool.k.dtype == compute == torch.bfloat16
    step = count if whole else max(1, _portion() // (group.length * heads * dim))
    results = []
    for begin in range(0, count, step):
        rows = slice(begin, begin + step)
        slots = group.slots[rows]
        mask = None if group.mask is None else group.mask[rows]
        k, v = _gather("k", pool.k, slots), _gather("v", pool.v, slots)
        parts = [
            _attend(
                queries[rows, some_heads],
                _convert("k", k, pool.k_scale, slots, some_heads, compute),
                _convert("v", v, pool.v_scale, slots, some_heads, compute),
                mask,
                options,
            )
            for some_heads in (
                [slice(0, heads)] if whole else _head_portions(slots.numel(), heads, dim)
            )
        ]
        results.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
    result = results[0] if len(results) == 1 else torch.cat(results)
    if group.rows is None:
        out.copy_(result)
    else:
        out[group.rows] = result.to(out.dtype)


def _prefill(out: Tensor, q: Tensor, pool: KVPool, row: PrefillRow, options: _Scores) -> None:
    """Several queries of one sequence: q, out [T, Hkv, G, D]."""
    compute = torch.promote_types(q.dtype, torch.float32)
    queries, result = q[row.start : row.stop], out[row.start : row.stop]  # [n, Hkv, G, D]
    n, groups = queries.shape[0], queries.shape[2]
    step = max(1, _MASK_ROWS // groups)
    slots = row.slots[None]
    k, v = _gather("k", pool.k, slots), _gather("v", pool.v, slots)
    for heads in _head_portions(slots.numel(), queries.shape[1], queries.shape[3]):
        k_heads = _convert("k", k, pool.k_scale, slots, heads, compute)
        v_heads = _convert("v", v, pool.v_scale, slots, heads, compute)
        for begin in range(0, n, step):
            end = min(begin + step, n)
            position = row.length - n + begin  # of the first query
            low = row.first
            if options.window is not None:
                low = max(low, position - options.window + 1)
            high = row.length - n + end
            mask = _causal_mask(position, end - begin, low, high, options.window, compute)
            keys = slice(low - row.first, high - row.first)
            some = queries[begin:end, heads].to(compute).transpose(0, 1).flatten(1, 2)[None]
            attended = _attend(
                some,  # [1, Hkv, n * G, D]
                k_heads[:, :, keys],
                v_heads[:, :, keys],
                mask.repeat_interleave(groups, 0),
                options,
            )
            target = result[begin:end, heads]
            target.copy_(attended.view(-1, end - begin, *target.shape[2:]).transpose(0, 1))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: _Scores) -> Tensor:
    """q [R, Hkv, g, D], k, v [R, Hkv, L, D], mask added to the scores -> [R, Hkv, g, D]."""
    if options.softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=options.scale)
    scores = torch.matmul(q, k.transpose(-1, -2)).mul_(options.scale / options.softcap)
    scores = scores.tanh_().mul_(options.softcap)
    if mask is not None:
        scores += mask
    return torch.matmul(scores.softmax(dim=-1), v)


def _causal_mask(
    position: int, n: int, low: int, high: int, window: int | None, dtype: torch.dtype
) -> Tensor:
    """[n, high - low]: 0 where the query at `position` + i sees the key at `low` + j, else -inf."""
    distance = torch.arange(position, position + n).unsqueeze(1) - torch.arange(low, high)
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)


def _portion() -> int:
    return _PORTION * torch.get_num_threads()


def _head_portions(tokens: int, heads: int, dim: int) -> list[slice]:
    """Slices of kv heads whose K is small enough to convert at once, but one a core at least."""
    step = max(torch.get_num_threads(), _portion() // (tokens * dim))
    return [slice(begin, min(begin + step, heads)) for begin in range(0, heads, step)]


def _gather(name: str, pool: Tensor, slots: Tensor) -> Tensor:
    """Tokens of the pool at `slots` [R, L]: [R * L, Hkv, D] as stored, in scratch memory."""
    tokens = scratch(name, (slots.numel(), *pool.shape[2:]), pool.dtype)
    return torch.index_select(pool.flatten(0, 1), 0, slots.view(-1), out=tokens)


def _convert(
    name: str, tokens: Tensor, scale: Tensor | None, slots: Tensor, heads: slice, dtype: torch.dtype
) -> Tensor:
    """`heads` of gathered tokens as [R, Hkv, L, D] in `dtype`; in scratch memory or in place."""
    chosen = tokens if heads.stop - heads.start == tokens.shape[1] else tokens[:, heads]
    if chosen.dtype != dtype:
        chosen = scratch(name, chosen.shape, dtype).copy_(chosen)
    if scale is not None:
        scales = scale.flatten(0, 1).index_select(0, slots.view(-1))  # [R * L, Hkv]
        chosen.mul_(scales[:, heads].unsqueeze(-1))
    return chosen.view(*slots.shape, *chosen.shape[1:]).transpose(1, 2)
