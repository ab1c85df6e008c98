"""Sequences with several queries: a program for a tile of queries and a kv head."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.device import (
    attend,
    counts_and_lengths,
    first_visible,
    load_queries,
    normalized,
    store_output,
)
from kernels.attention.work import Work, registers
from kernels.launch import launch
from kernels.tuning import Config


@triton.jit(do_not_specialize=["batch", "table_stride", "window"])
def _attention_prefill_kernel(
    q_ptr,  # [T, HQ, D]
    k_ptr,  # [blocks, BLOCK_SIZE, HKV, D]
    v_ptr,
    k_scale_ptr,  # float32 [blocks, BLOCK_SIZE, HKV]
    v_scale_ptr,
    query_start_ptr,  # int32 [batch + 1]
    kv_len_ptr,  # int32 [batch]
    table_ptr,  # int32 [batch, table_stride]
    out_ptr,  # [T, HQ, D]
    batch,
    table_stride,
    q_stride_t,
    q_stride_h,
    scale,
    softcap,
    window,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BATCH: tl.constexpr,  # power of two
    COMPUTE: tl.constexpr,
    QUANTIZED: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    PRECISE: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program for a tile of a sequence's queries and one kv head."""
    G: tl.constexpr = HQ // HKV
    QUERIES: tl.constexpr = BLOCK_M // G
    counts, lengths = counts_and_lengths(query_start_ptr, kv_len_ptr, batch, BATCH)
    tiles = tl.where(counts > 1, tl.cdiv(counts, QUERIES), 0)
    tile_count = tl.sum(tiles, axis=0)
    if tl.program_id(0) // HKV >= tile_count:
        return
    # The last tiles of a sequence see the most keys: they start first.
    item = tile_count - 1 - tl.program_id(0) // HKV
    head = tl.program_id(0) % HKV
    index = tl.arange(0, BATCH)
    b = tl.sum((tl.cumsum(tiles, axis=0) <= item).to(tl.int32), axis=0)
    count = tl.sum(tl.where(index == b, counts, 0), axis=0)
    length = tl.sum(tl.where(index == b, lengths, 0), axis=0)
    first_query = (item - tl.sum(tl.where(index < b, tiles, 0), axis=0)) * QUERIES
    start = tl.load(query_start_ptr + b) + first_query
    mine = tl.minimum(count - first_query, QUERIES)

    q = load_queries(
        q_ptr, start, mine, head, q_stride_t, q_stride_h, G, D, BLOCK_M, BLOCK_D, COMPUTE
    )
    row = tl.arange(0, BLOCK_M)
    first_position = length - count + first_query
    q_position = first_position + row // G
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    table = table_ptr + b.to(tl.int64) * table_stride
    # Keys from `low` to `high`; those from `plain` to `causal` are seen by every row.
    low = first_visible(first_position + mine, mine, window, WINDOWED)
    high = tl.maximum(first_position + mine, 0)
    causal = low + tl.maximum(first_position + 1 - low, 0) // BLOCK_N * BLOCK_N
    plain = low
    if WINDOWED:
        hidden = tl.maximum(first_position + mine - window - low, 0)
        plain = tl.minimum(low + tl.cdiv(hidden, BLOCK_N) * BLOCK_N, causal)
        acc, m, total = attend(
            acc, m, total, q, q_position, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table, head,
            low, plain, scale, softcap, window,
            HKV, D, BLOCK_SIZE, BLOCK_N, BLOCK_D, QUANTIZED, CAPPED, WINDOWED, PRECISE, PTX, True,
        )  # fmt: skip
    acc, m, total = attend(
        acc, m, total, q, q_position, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table, head,
        plain, causal, scale, softcap, window,
        HKV, D, BLOCK_SIZE, BLOCK_N, BLOCK_D, QUANTIZED, CAPPED, WINDOWED, PRECISE, PTX, False,
    )  # fmt: skip
    acc, m, total = attend(
        acc, m, total, q, q_position, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table, head,
        causal, high, scale, softcap, window,
        HKV, D, BLOCK_SIZE, BLOCK_N, BLOCK_D, QUANTIZED, CAPPED, WINDOWED, PRECISE, PTX, True,
    )  # fmt: skip
    store_output(out_ptr, normalized(acc, total), start, mine, head, HQ, G, D, BLOCK_M, BLOCK_D)


def launch_prefill(work: Work, config: Config) -> None:
    """Serve the sequences with more queries."""
    q, block_table, constants = work.tensors[0], work.tensors[7], work.constants
    queries = config.constants["BLOCK_M"] // (constants["HQ"] // constants["HKV"])
    launch(
        _attention_prefill_kernel,
        # Every sequence may end in a tile that is not full. One axis: others end at 65535.
        (constants["HKV"] * (triton.cdiv(q.shape[0], queries) + work.batch),),
        *work.tensors,
        work.batch,
        block_table.stride(0),
        *work.numbers,
        **constants,
        PTX=work.target.nvidia and not work.target.mma_sync,  # there it takes too many registers
        **registers(work.target, config.num_warps),
        **config.meta,
    )
