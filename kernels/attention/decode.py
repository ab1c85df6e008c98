"""Sequences with one query: K and V in parts, summed by the last to arrive, in one launch.

The sizes of the parts follow from a sequence's own length, and they are summed in their order.
"""

from __future__ import annotations

import torch
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
from kernels.attention.tunables import MAX_SPLITS
from kernels.attention.work import Work, registers
from kernels.launch import launch
from kernels.tuning import Config
from kernels.workspace import counters, workspace


@triton.jit
def _parts(
    length,
    count,
    window,
    WINDOWED: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    """Tokens of a part, and how many parts a sequence has: 0 if it has not just one query."""
    seen = tl.maximum(length - first_visible(length, count, window, WINDOWED), 0)
    # Long rows have longer parts, not more of them.
    size = SPLIT * tl.maximum(tl.cdiv(seen, SPLIT * MAX_SPLITS), 1)
    # A row that sees nothing still has one part, which writes its zeros.
    parts = tl.maximum(tl.cdiv(seen, size), 1)
    return size, tl.where(count == 1, parts, 0)


@triton.jit(do_not_specialize=["batch", "table_stride", "max_splits", "window"])
def _attention_decode_kernel(
    q_ptr,  # [T, HQ, D]
    k_ptr,  # [blocks, BLOCK_SIZE, HKV, D]
    v_ptr,
    k_scale_ptr,  # float32 [blocks, BLOCK_SIZE, HKV]
    v_scale_ptr,
    query_start_ptr,  # int32 [batch + 1]
    kv_len_ptr,  # int32 [batch]
    table_ptr,  # int32 [batch, table_stride]
    out_ptr,  # [T, HQ, D]
    part_ptr,  # float32 [batch, HKV, max_splits, G, D]
    stat_ptr,  # float32 [batch, HKV, max_splits, 2, G]
    counter_ptr,  # int32 [batch, HKV]
    batch,
    table_stride,
    max_splits,
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
    MAX_SPLITS: tl.constexpr,
    COMPUTE: tl.constexpr,
    QUANTIZED: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    PRECISE: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """A fixed number of programs walks the list of (sequence, split, kv head)."""
    G: tl.constexpr = HQ // HKV
    BLOCK_G: tl.constexpr = triton.next_power_of_2(G)
    counts, lengths = counts_and_lengths(query_start_ptr, kv_len_ptr, batch, BATCH)
    _, splits = _parts(lengths, counts, window, WINDOWED, SPLIT, MAX_SPLITS)
    ends = tl.cumsum(splits, axis=0)
    for work in tl.range(tl.program_id(0), tl.max(ends, axis=0) * HKV, tl.num_programs(0)):
        head = work % HKV
        item = work // HKV
        # Of the list only `ends` is kept; all else of the sequence is read again.
        passed = ends <= item
        b = tl.sum(passed.to(tl.int32), axis=0)
        split = item - tl.max(tl.where(passed, ends, 0), axis=0)
        start = tl.load(query_start_ptr + b)
        length = tl.load(kv_len_ptr + b)
        size, split_count = _parts(length, 1, window, WINDOWED, SPLIT, MAX_SPLITS)
        begin = first_visible(length, 1, window, WINDOWED) + split * size
        end = tl.minimum(begin + size, length)

        q = load_queries(
            q_ptr, start, 1, head, q_stride_t, q_stride_h, G, D, BLOCK_M, BLOCK_D, COMPUTE
        )
        row, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
        acc, m, total = attend(
            tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32),
            tl.full([BLOCK_M], float("-inf"), dtype=tl.float32),
            tl.zeros([BLOCK_M], dtype=tl.float32),
            q,
            length - 1 + row // G,
            k_ptr,
            v_ptr,
            k_scale_ptr,
            v_scale_ptr,
            table_ptr + b.to(tl.int64) * table_stride,
            head,
            begin,
            end,
            scale,
            softcap,
            window,
            HKV,
            D,
            BLOCK_SIZE,
            BLOCK_N,
            BLOCK_D,
            QUANTIZED,
            CAPPED,
            WINDOWED,
            PRECISE,
            PTX,
            True,
        )
        if split_count == 1:
            store_output(
                out_ptr, normalized(acc, total), start, 1, head, HQ, G, D, BLOCK_M, BLOCK_D
            )
        else:
            pair = b * HKV + head
            first = pair.to(tl.int64) * max_splits
            inside = row < G
            stat = stat_ptr + (first + split) * 2 * G + row
            tl.store(stat, m, mask=inside)
            tl.store(stat + G, total, mask=inside)
            part = part_ptr + ((first + split) * G + row[:, None]) * D + d[None, :]
            tl.store(part, acc, mask=inside[:, None] & (d < D)[None, :])
            # Every thread's stores before the one thread's release.
            tl.debug_barrier()
            arrived = tl.atomic_add(counter_ptr + pair, 1, sem="acq_rel", scope="gpu")
            if arrived == split_count - 1:
                value = _reduced(
                    part_ptr + first * G * D, stat_ptr + first * 2 * G, split_count, G, D, BLOCK_D
                )
                store_output(out_ptr, value, start, 1, head, HQ, G, D, BLOCK_G, BLOCK_D)
                tl.store(counter_ptr + pair, 0)


@triton.jit
def _reduced(
    part_ptr,  # float32 [split_count, G, D]
    stat_ptr,  # float32 [split_count, 2, G]
    split_count,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The outputs [BLOCK_G, BLOCK_D] from all splits' parts, in the order of the splits."""
    BLOCK_G: tl.constexpr = triton.next_power_of_2(G)
    # Splits at a time: many loads under way, but not more than registers hold.
    AT_ONCE: tl.constexpr = max(1, min(16, 8192 // (BLOCK_G * BLOCK_D)))
    row, d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_G, BLOCK_D], dtype=tl.float32)
    m = tl.full([BLOCK_G], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_G], dtype=tl.float32)
    for begin in tl.range(0, split_count, AT_ONCE):
        split = begin + tl.arange(0, AT_ONCE)
        here = (split < split_count)[:, None] & (row < G)[None, :]
        stat = stat_ptr + split[:, None] * 2 * G + row[None, :]
        # Past the first-level cache, which does not see what other programs write.
        part_m = tl.load(stat, mask=here, other=float("-inf"), cache_modifier=".cg")
        part_total = tl.load(stat + G, mask=here, other=0.0, cache_modifier=".cg")
        offset = (split[:, None] * G + row[None, :]) * D
        part = tl.load(
            part_ptr + offset[:, :, None] + d[None, None, :],
            mask=here[:, :, None] & (d < D)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_m = tl.maximum(m, tl.max(part_m, axis=0))
        shift = tl.where(new_m == float("-inf"), 0.0, new_m)
        decay = tl.exp2(m - shift)
        weight = tl.exp2(part_m - shift[None, :])
        acc = acc * decay[:, None] + tl.sum(part * weight[:, :, None], axis=0)
        total = total * decay + tl.sum(part_total * weight, axis=0)
        m = new_m
    return normalized(acc, total)


def launch_decode(work: Work, config: Config) -> None:
    """Serve the sequences with one query."""
    q, block_table, constants = work.tensors[0], work.tensors[7], work.constants
    kv_heads, dim = constants["HKV"], constants["D"]
    capacity = block_table.shape[1] * constants["BLOCK_SIZE"]
    max_splits = max(1, min(MAX_SPLITS, triton.cdiv(capacity, config.constants["SPLIT"])))
    pairs, rows = work.batch * kv_heads, constants["HQ"] // kv_heads
    parts, statistics = (
        workspace(f"attention {name}", (pairs, max_splits, *shape), torch.float32, q.device)
        for name, shape in (("parts", (rows, dim)), ("statistics", (2, rows)))
    )
    meta = config.meta
    waves = meta.pop("WAVES")
    programs = min(waves * work.target.sms, pairs * max_splits)
    launch(
        _attention_decode_kernel,
        (programs,),
        *work.tensors,
        parts,
        statistics,
        counters("attention", pairs, q.device),
        work.batch,
        block_table.stride(0),
        max_splits,
        *work.numbers,
        **constants,
        MAX_SPLITS=MAX_SPLITS,
        PTX=work.target.nvidia,
        **registers(work.target, waves * config.num_warps),
        **meta,
    )
