"""Plain torch attention, one sequence after another, as the formulas read."""

from __future__ import annotations

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from kernels.layout import KVPool
from kernels.quantization import dequantize
from kernels.validation import fail


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
    compute = torch.promote_types(q.dtype, torch.float32)
    groups = q.shape[1] // pool.layout.num_kv_heads
    scale = q.shape[2] ** -0.5 if scale is None else scale
    out = torch.zeros_like(q)
    starts = query_start.tolist()
    if starts[-1] != q.shape[0]:
        raise fail("attention", "query_start[-1]", starts[-1], f"{q.shape[0]}, the rows of q")
    for b, length in enumerate(kv_len.tolist()):
        rows = slice(starts[b], starts[b + 1])
        n = starts[b + 1] - starts[b]
        q_position = torch.arange(length - n, length, device=q.device)  # [n]
        # Positions that no query of this call sees are not even read.
        first = 0 if window is None else max(0, length - n - window + 1)
        k_position = torch.arange(first, length, device=q.device)  # [l]
        if n == 0 or len(k_position) == 0:
            continue
        k = _gather(pool.k, pool.k_scale, block_table[b], k_position, compute)
        v = _gather(pool.v, pool.v_scale, block_table[b], k_position, compute)
        k, v = (repeat(x, "l h d -> l (h g) d", g=groups) for x in (k, v))
        scores = einsum(q[rows].to(compute), k, "n h d, l h d -> h n l") * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        visible = k_position[None, :] <= q_position[:, None]  # [n, l]
        if window is not None:
            visible &= k_position[None, :] > q_position[:, None] - window
        scores = scores.masked_fill(~visible, -torch.inf)
        # A query before the sequence's first position sees nothing: softmax gives NaN, zero it.
        probabilities = scores.softmax(dim=-1).masked_fill(~visible, 0.0)
        out[rows] = einsum(probabilities, v, "h n l, l h d -> n h d").to(q.dtype)
    return out


def _gather(
    pool: Tensor, scale: Tensor | None, blocks: Tensor, position: Tensor, dtype: torch.dtype
) -> Tensor:
    """The tokens at `position` [l] of one sequence: [l, Hkv, D] in `dtype`."""
    block_size = pool.shape[1]
    slots = blocks[position // block_size].long() * block_size + position % block_size
    tokens = rearrange(pool, "block offset h d -> (block offset) h d")[slots]
    if scale is None:
        return tokens.to(dtype)
    return dequantize(tokens, rearrange(scale, "block offset h -> (block offset) h")[slots], dtype)
