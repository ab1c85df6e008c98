"""Device functions of the attention kernels: which work there is, and attending to a range of keys.

A query tile holds the queries of one sequence times the G query heads of one kv head: row r is
query r // G, head r % G, so that a tile of K or V is loaded once for all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.primitives import LOG2E, cast, dot, int8_to_float16, tanh

# Quantised V: probabilities times scales are multiplied in float16, relative to the largest scale
# of the tile. The headroom keeps tokens of much smaller scale out of the subnormals.
_HEADROOM = tl.constexpr(16384.0)


@triton.jit
def counts_and_lengths(query_start_ptr, kv_len_ptr, batch, BATCH: tl.constexpr):
    """Queries and cached tokens of every sequence: int32 [BATCH] each, zeros past `batch`."""
    b = tl.arange(0, BATCH)
    inside = b < batch
    start = tl.load(query_start_ptr + b, mask=inside, other=0)
    stop = tl.load(query_start_ptr + b + 1, mask=inside, other=0)
    return stop - start, tl.load(kv_len_ptr + b, mask=inside, other=0)


@triton.jit
def first_visible(length, count, window, WINDOWED: tl.constexpr):
    """Position of the first token that any of a sequence's last `count` positions sees."""
    if WINDOWED:
        return tl.maximum(length - count - window + 1, 0)
    else:
        return length * 0


@triton.jit
def load_queries(
    q_ptr,
    start,
    count,
    head,
    q_stride_t,
    q_stride_h,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """[BLOCK_M, BLOCK_D] of queries `start` to `start + count`, zeros past them, in COMPUTE."""
    row, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    offset = (start + row // G).to(tl.int64) * q_stride_t + (head * G + row % G) * q_stride_h
    mask = (row < count * G)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + offset[:, None] + d[None, :], mask=mask, other=0.0)
    if tl.float16 == COMPUTE and q.dtype == tl.bfloat16:
        # bfloat16 goes further than float16: saturate, as an infinity would end in NaN.
        ALL: tl.constexpr = tl.PropagateNan.ALL
        q = tl.maximum(q.to(tl.float32), -65504.0, propagate_nan=ALL)
        q = tl.minimum(q, 65504.0, propagate_nan=ALL)
    return q.to(COMPUTE)


@triton.jit
def _in(x, COMPUTE: tl.constexpr, PTX: tl.constexpr):
    """A tile of K or V in the dtype of the products."""
    if x.dtype == tl.int8 and COMPUTE == tl.float16:  # noqa: SIM300
        return int8_to_float16(x, PTX)
    else:
        return x.to(COMPUTE)


@triton.jit
def attend(
    acc,  # float32 [BLOCK_M, BLOCK_D]
    m,  # float32 [BLOCK_M], largest score so far, in units of log2
    total,  # float32 [BLOCK_M], sum of exp2(score - m)
    q,  # [BLOCK_M, BLOCK_D]
    q_position,  # int32 [BLOCK_M]
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    table_ptr,  # of this sequence
    head,
    begin,
    end,
    scale,
    softcap,
    window,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    QUANTIZED: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    PRECISE: tl.constexpr,
    PTX: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Online softmax (Milakov and Gimelshein, 2018) over the keys from `begin` to `end`.

    Without MASKED, `end - begin` is a multiple of BLOCK_N and every row sees every key.
    """
    COMPUTE: tl.constexpr = q.dtype
    d = tl.arange(0, BLOCK_D)
    for n in tl.range(begin, end, BLOCK_N):
        position = n + tl.arange(0, BLOCK_N)
        inside = position < end
        if MASKED:
            block = tl.load(table_ptr + position // BLOCK_SIZE, mask=inside, other=0)
        else:
            block = tl.load(table_ptr + position // BLOCK_SIZE)
        slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
        vector = slot * HKV + head  # of K, V and their scales
        offset = vector[:, None] * D + d[None, :]
        if MASKED or D != BLOCK_D:
            kv_mask = inside[:, None] & (d < D)[None, :]
            k = tl.load(k_ptr + offset, mask=kv_mask, other=0)
        else:
            k = tl.load(k_ptr + offset)
        zeros = tl.zeros([q.shape[0], BLOCK_N], dtype=tl.float32)
        score = dot(q, tl.trans(_in(k, COMPUTE, PTX)), zeros)
        if QUANTIZED:
            if MASKED:
                k_scale = tl.load(k_scale_ptr + vector, mask=inside, other=0.0)
            else:
                k_scale = tl.load(k_scale_ptr + vector)
            score *= (k_scale * scale)[None, :]
        else:
            score *= scale
        if CAPPED:
            score = softcap * tanh(score / softcap) * LOG2E
        if MASKED:
            visible = inside[None, :] & (position[None, :] <= q_position[:, None])
            if WINDOWED:
                visible &= position[None, :] > q_position[:, None] - window
            score = tl.where(visible, score, float("-inf"))
        new_m = tl.maximum(m, tl.max(score, axis=1))
        # A row that has seen no key yet: exp2(-inf - 0) is 0, where -inf - -inf would be NaN.
        shift = tl.where(new_m == float("-inf"), 0.0, new_m)
        p = tl.exp2(score - shift[:, None])
        decay = tl.exp2(m - shift)
        m = new_m
        acc *= decay[:, None]
        if MASKED or D != BLOCK_D:
            v = tl.load(v_ptr + offset, mask=kv_mask, other=0)
        else:
            v = tl.load(v_ptr + offset)
        if QUANTIZED:
            total = total * decay + tl.sum(p, axis=1)
            if MASKED:
                v_scale = tl.load(v_scale_ptr + vector, mask=inside, other=0.0)
            else:
                v_scale = tl.load(v_scale_ptr + vector)
            if tl.float16 == COMPUTE:
                largest = tl.max(v_scale, axis=0)
                ratio = v_scale / tl.where(largest > 0, largest, 1.0) * _HEADROOM
                weight = p * ratio[None, :]
                high = weight.to(COMPUTE)
                part = dot(
                    high, _in(v, COMPUTE, PTX), tl.zeros([q.shape[0], BLOCK_D], dtype=tl.float32)
                )
                if PRECISE:
                    # float16 outputs show what rounding the weights costs: add what it cut off.
                    part = dot(
                        (weight - high.to(tl.float32)).to(COMPUTE), _in(v, COMPUTE, PTX), part
                    )
                acc += part * (largest / _HEADROOM)
            else:
                acc = dot(cast(p * v_scale[None, :], COMPUTE), _in(v, COMPUTE, PTX), acc)
        else:
            weight = cast(p, COMPUTE)
            # The sum of what V is weighted with, rounding included: the errors partly cancel.
            total = total * decay + tl.sum(weight.to(tl.float32), axis=1)
            acc = dot(weight, _in(v, COMPUTE, PTX), acc)
    return acc, m, total


@triton.jit
def store_output(
    out_ptr,
    value,  # float32 [BLOCK_R, BLOCK_D]
    start,
    count,
    head,
    HQ: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write a query tile's rows to out [T, HQ, D]."""
    row, d = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    offset = ((start + row // G).to(tl.int64) * HQ + head * G + row % G) * D
    mask = (row < count * G)[:, None] & (d < D)[None, :]
    tl.store(
        out_ptr + offset[:, None] + d[None, :], cast(value, out_ptr.dtype.element_ty), mask=mask
    )


@triton.jit
def normalized(acc, total):
    """acc / total by rows; zeros where nothing was seen."""
    return acc / tl.where(total > 0, total, 1.0)[:, None]
