"""Device functions of the kernels that multiply a few rows with a weight matrix.

Such a product reads the matrix once and is bound by that; what counts is that the loads are wide,
pipelined and many bytes in flight. The weights are the left operand: an instruction's shape then
depends on the tile of weights alone, and with it the order of a sum, not on how many rows there
are. Shapes: N rows of weights, K columns, M rows of x.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.primitives import INTERPRETED, cast, dot
from kernels.rms_norm.kernel import rms_norm


def before_product(
    x: Tensor, norm_weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, bool]:
    """x [M, K] as `tile_product` takes it for weights of `dtype`; whether that has to norm it.

    x * norm_weight could overflow float16 where the norm does not: its norm goes first.
    """
    if dtype != torch.float16:
        return (x if x.stride(1) == 1 else x.contiguous()), True
    y = rms_norm(x, norm_weight, eps, out_dtype=dtype)
    assert isinstance(y, Tensor)
    return y, False


@triton.jit
def _add_squares(squares, x, M: tl.constexpr, K: tl.constexpr):
    """squares [M, K / 2] plus the squares of two neighbours in x [M, K] each, one after the other.

    A row's bits must not depend on M, so nothing is left to the compiler: neither the order of the
    sums nor which products are fused with them.
    """
    left, right = tl.split(tl.reshape(x, (M, K // 2, 2)))
    return tl.fma(right, right, tl.fma(left, left, squares))


@triton.jit
def _pair_sums(x, M: tl.constexpr, K: tl.constexpr):
    """x [M, K] -> the rows' sums [M], neighbours first. The order of `tl.sum` depends on M."""
    for step in tl.static_range(12):
        if (K >> step) > 1:
            left, right = tl.split(tl.reshape(x, (M, K >> (step + 1), 2)))
            x = left + right
    return tl.reshape(x, (M,))


@triton.jit
def tile_product(
    x_ptr,  # [rows, width]
    x_stride,
    norm_ptr,  # [width], read with NORM
    w_ptr,  # [*, width], contiguous
    o_n,  # int64 [BLOCK_N], rows of w; all must be there
    rows,
    start,  # columns [start, stop); start is a multiple of BLOCK_K
    stop,
    width,
    eps,
    NORM: tl.constexpr,  # fuse an RMSNorm
    EVEN_K: tl.constexpr,  # BLOCK_K divides width: no masks along K
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """float32 [BLOCK_N, BLOCK_M]: w[o_n, start:stop] times x^T, or times rms_norm(x)^T.

    The norm needs all columns: start 0, stop width. Rows of x past `rows` count as zeros.
    """
    dtype: tl.constexpr = w_ptr.dtype.element_ty
    o_m = tl.arange(0, BLOCK_M)
    m_m = o_m < rows
    o_k = tl.arange(0, BLOCK_K)
    p_x = x_ptr + (o_m.to(tl.int64) * x_stride)[:, None]
    p_w = w_ptr + (o_n * width)[:, None]
    squares = tl.zeros((BLOCK_M, BLOCK_K // 2), tl.float32)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for first in range(start, stop, BLOCK_K):
        column = first + o_k
        # [BLOCK_N, BLOCK_K]
        if EVEN_K:
            b_w = tl.load(p_w + column[None, :], eviction_policy="evict_first")
        else:
            m_k = (column < width)[None, :]
            b_w = tl.load(p_w + column[None, :], mask=m_k, other=0.0, eviction_policy="evict_first")
        b_x = _x_tile(p_x, m_m, column, width, EVEN_K)  # [BLOCK_M, BLOCK_K]
        if NORM:
            if EVEN_K:
                b_norm = tl.load(norm_ptr + column)
            else:
                b_norm = tl.load(norm_ptr + column, mask=column < width, other=0.0)
            b_x = b_x.to(tl.float32)
            squares = _add_squares(squares, b_x, BLOCK_M, BLOCK_K)
            b_x = cast(b_x * b_norm.to(tl.float32)[None, :], dtype)
        if dtype == tl.float32 and not INTERPRETED:
            # A sum of short sums errs far less than one long chain. The option keeps the compiler
            # from making the chain again: it takes a dot plus a tensor for an accumulating dot.
            acc += tl.dot(b_w, tl.trans(b_x), input_precision="ieee", max_num_imprecise_acc=1)
        else:
            acc = dot(b_w, tl.trans(b_x), acc)
    if NORM:
        scale = 1.0 / tl.sqrt(_pair_sums(squares, BLOCK_M, BLOCK_K // 2) / width + eps)
        acc *= scale[None, :]
    return acc


@triton.jit
def _x_tile(p_x, m_m, column, width, EVEN_K: tl.constexpr):
    if EVEN_K:
        return tl.load(p_x + column[None, :], mask=m_m[:, None], other=0.0)
    else:
        mask = m_m[:, None] & (column < width)[None, :]
        return tl.load(p_x + column[None, :], mask=mask, other=0.0)
