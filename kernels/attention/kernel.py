"""Paged attention in Triton: split-K decode and prefill, one launch each, both ragged.

Sequences with one query go to the decode kernel, all others to the prefill kernel; which is
which is seen on the device, as is every length, so that a captured CUDA graph stays right as
sequences grow. A row's bits depend on its own sequence alone: split sizes follow from its length,
and its parts are summed in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.decode import launch_decode
from kernels.attention.prefill import launch_prefill
from kernels.attention.tunables import DECODE, PREFILL, compute_dtype, head_block, key_of
from kernels.attention.work import Work
from kernels.layout import KVPool
from kernels.primitives import LOG2E
from kernels.target import target_of


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
    tokens, q_heads, dim = q.shape
    batch = kv_len.shape[0]
    q = q if q.stride(2) == 1 else q.contiguous()
    # Rows of q past query_start[-1] belong to no sequence; there are none in a valid call.
    out = torch.empty(tokens, q_heads, dim, dtype=q.dtype, device=q.device)
    if tokens == 0 or batch == 0:
        return out
    layout = pool.layout
    group = q_heads // layout.num_kv_heads
    key = key_of(layout.dtype, q.dtype, dim, group, window)
    scale = dim**-0.5 if scale is None else scale
    block_table = block_table if block_table.stride(1) == 1 else block_table.contiguous()
    work = Work(
        tensors=(
            q,
            pool.k,
            pool.v,
            pool.k if pool.k_scale is None else pool.k_scale,
            pool.v if pool.v_scale is None else pool.v_scale,
            query_start,
            kv_len,
            block_table,
            out,
        ),
        numbers=(
            q.stride(0),
            q.stride(1),
            scale * LOG2E.value if softcap is None else scale,
            softcap or 0.0,
            window or 0,
        ),
        constants={
            "HQ": q_heads,
            "HKV": layout.num_kv_heads,
            "D": dim,
            "BLOCK_SIZE": layout.block_size,
            "BATCH": max(64, triton.next_power_of_2(batch)),  # few variants
            "COMPUTE": getattr(tl, compute_dtype(layout.dtype, q.dtype)),
            "QUANTIZED": layout.quantized,
            "CAPPED": softcap is not None,
            "WINDOWED": window is not None,
            "PRECISE": q.dtype == torch.float16,
            "BLOCK_D": head_block(dim),
        },
        batch=batch,
        target=target_of(q.device),
    )
    most = tokens if max_queries is None else min(max_queries, tokens)
    if batch > 1 or tokens == 1:
        launch_decode(work, DECODE.config(key, q.device))
    if most > 1:
        launch_prefill(work, PREFILL.config(key, q.device))
    return out
