"""Causal attention of ragged queries over the paged KV cache: prefill, chunked prefill, decode."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import implementation
from kernels.layout import KVPool
from kernels.validation import require

__all__ = ["attention"]


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
    impl: str,
) -> Tensor:
    """out [T, Hq, D] in q.dtype, from q [T, Hq, D] and the K, V that `pool` holds already.

    query_start int32 [B+1]: sequence b's queries are rows query_start[b] to query_start[b+1].
    kv_len int32 [B]: its tokens in the cache, this call's included, so that query i of n sits at
    position kv_len[b] - n + i and sees the positions up to its own, with `window` W only the last
    W of these. block_table int32 [B, max_blocks]: its blocks in order; entries past its length are
    arbitrary. Hq is a multiple of Hkv; head h reads kv head h // (Hq / Hkv).
    scale: default 1 / sqrt(D). softcap c: scores become c * tanh(scores / c) (Gemma 2,
    https://arxiv.org/abs/2408.00118).
    max_queries: what the caller knows of the most queries of one sequence, without asking the
    device; a bound that holds saves "triton" a launch, one that does not leaves rows unwritten.
    A query that sees no position gives zeros. What unused blocks and tails hold, NaN included,
    never matters. Raises `InvalidInputError` for shapes, dtypes or options that do not fit.
    """
    _validate(q, pool, query_start, kv_len, block_table, window, softcap, max_queries)
    out: Tensor = implementation("attention", impl)(
        q,
        pool,
        query_start,
        kv_len,
        block_table,
        scale=scale,
        window=window,
        softcap=softcap,
        max_queries=max_queries,
    )
    return out


def _validate(
    q: Tensor,
    pool: KVPool,
    query_start: Tensor,
    kv_len: Tensor,
    block_table: Tensor,
    window: int | None,
    softcap: float | None,
    max_queries: int | None,
) -> None:
    op = "attention"
    kv_heads, dim = pool.layout.num_kv_heads, pool.layout.head_dim
    if q.dim() != 3 or q.shape[2] != dim or q.shape[1] % kv_heads or not q.shape[1]:
        require(False, op, "q", q, f"[T, a multiple of {kv_heads}, {dim}]")
    if kv_len.dim() != 1 or kv_len.dtype != torch.int32:
        require(False, op, "kv_len", kv_len, "torch.int32 of shape [B]")
    batch = kv_len.shape[0]
    if query_start.shape != (batch + 1,) or query_start.dtype != torch.int32:
        require(False, op, "query_start", query_start, f"torch.int32 of shape [{batch + 1}]")
    ok = block_table.dim() == 2 and block_table.shape[0] == batch
    if not ok or block_table.dtype != torch.int32:
        require(False, op, "block_table", block_table, f"torch.int32 of shape [{batch}, blocks]")
    require(window is None or window >= 1, op, "window", window, "None or at least 1")
    require(softcap is None or softcap > 0, op, "softcap", softcap, "None or above 0")
    require(max_queries is None or max_queries >= 0, op, "max_queries", max_queries, "None or >= 0")
