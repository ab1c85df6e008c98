"""Linear layer in Triton for up to 64 rows, where it is bound by reading the weights.

More rows go to the library's GEMM (cuBLAS), which then is as fast as anything. Up to 64 rows, a
row's bits depend on nothing but itself; the library chooses its kernels by shape and promises
less.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.errors import UnsupportedError
from kernels.launch import launch
from kernels.linear.device import tile_product
from kernels.linear.packed import PackedLinear, PlainWeight
from kernels.linear.tiles import (
    MOST_ROWS,
    config_space,
    default_config,
    key_of,
    launch_options,
    padded_rows,
)
from kernels.primitives import cast
from kernels.target import target_of
from kernels.tuning import Tunable
from kernels.workspace import counters, workspace

LINEAR = Tunable(
    "linear",
    functools.partial(default_config, split=True),
    functools.partial(config_space, split=True),
)


def pack(weight: Tensor, bias: Tensor | None, keep_rows: bool) -> PackedLinear:
    """Keep the matrix [N, K] contiguous; its rows can always be read.

    Raises `UnsupportedError` for float64.
    """
    if weight.dtype == torch.float64:
        raise UnsupportedError("linear.pack: impl 'triton' has no float64; use 'reference'")
    n, k = weight.shape
    bias = None if bias is None else bias.contiguous()
    return PackedLinear("triton", PlainWeight(weight.contiguous()), k, n, weight.dtype, bias)


@triton.jit(do_not_specialize=["rows"])
def _linear_kernel(
    x_ptr,  # [rows, width]
    w_ptr,  # [N, width]
    bias_ptr,  # [N]
    residual_ptr,  # [rows, N]
    out_ptr,  # [rows, N]: float32 with a residual, else as x
    parts_ptr,  # float32 [SPLIT_K, rows, N]
    arrived_ptr,  # int32 [tiles], zeros before and after
    x_stride,
    residual_stride,
    rows,
    n,
    width,
    part,  # columns of a part of K, a multiple of BLOCK_K
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    tile = tl.program_id(0)
    split = tl.program_id(1)
    o_n = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_m = tl.arange(0, BLOCK_M).to(tl.int64)
    m_out = (o_n < n)[:, None] & (o_m < rows)[None, :]  # [BLOCK_N, BLOCK_M]
    start = split * part
    acc = tile_product(
        x_ptr,
        x_stride,
        x_ptr,
        w_ptr,
        tl.minimum(o_n, n - 1),  # past the end: the last row again, never stored
        rows,
        start,
        tl.minimum(start + part, width),
        width,
        0.0,
        False,
        EVEN_K,
        BLOCK_N,
        BLOCK_M,
        BLOCK_K,
    )
    o_out = o_m[None, :] * n + o_n[:, None]
    last = True
    if SPLIT_K > 1:
        rows = rows.to(tl.int64)
        tl.store(parts_ptr + split * rows * n + o_out, acc, mask=m_out)
        tl.debug_barrier()  # all threads' stores come before the count
        last = tl.atomic_add(arrived_ptr + tile, 1, sem="acq_rel", scope="gpu") == SPLIT_K - 1
    if last:
        if SPLIT_K > 1:
            tl.store(arrived_ptr + tile, 0)
            acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            for s in range(SPLIT_K):
                acc += tl.load(
                    parts_ptr + s * rows * n + o_out, mask=m_out, other=0.0, cache_modifier=".cg"
                )
        if HAS_BIAS:
            acc += tl.load(bias_ptr + o_n, mask=o_n < n, other=0.0).to(tl.float32)[:, None]
        y = cast(acc, x_ptr.dtype.element_ty)
        if HAS_RESIDUAL:
            p_residual = residual_ptr + o_m[None, :] * residual_stride + o_n[:, None]
            y = tl.load(p_residual, mask=m_out, other=0.0).to(tl.float32) + y.to(tl.float32)
        tl.store(out_ptr + o_out, y, mask=m_out)


def linear(x: Tensor, packed: PackedLinear, *, residual: Tensor | None = None) -> Tensor:
    """See `kernels.linear.linear`."""
    weight = plain_weight(packed)
    rows, (n, k) = x.shape[0], weight.shape
    if rows > MOST_ROWS or weight.numel() == 0 or rows == 0:
        y = F.linear(x, weight, packed.bias)
        # Adding promotes to float32 in the same pass.
        return y if residual is None else torch.add(residual, y).float()
    x = x if x.stride(1) == 1 else x.contiguous()
    if residual is not None and residual.stride(1) != 1:
        residual = residual.contiguous()
    config = LINEAR.config(key_of(n, k, weight.dtype), x.device)
    block_n, block_k = config.constants["BLOCK_N"], config.constants["BLOCK_K"]
    splits, tiles = config.constants["SPLIT_K"], triton.cdiv(n, block_n)
    out = torch.empty(
        rows, n, dtype=x.dtype if residual is None else torch.float32, device=x.device
    )
    parts, arrived = out, out
    if splits > 1:
        parts = workspace("linear.parts", (splits, rows, n), torch.float32, x.device)
        arrived = counters("linear.arrived", tiles, x.device)
    launch(
        _linear_kernel,
        (tiles, splits),
        x,
        weight,
        x if packed.bias is None else packed.bias,
        x if residual is None else residual,
        out,
        parts,
        arrived,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        rows,
        n,
        k,
        triton.cdiv(triton.cdiv(k, block_k), splits) * block_k,
        HAS_BIAS=packed.bias is not None,
        HAS_RESIDUAL=residual is not None,
        EVEN_K=k % block_k == 0,
        BLOCK_M=padded_rows(rows),
        **config.constants,
        **launch_options(config, target_of(x.device), rows, weight.dtype, x.dtype),
    )
    return out


def plain_weight(packed: PackedLinear) -> Tensor:
    """The matrix [N, K] that `pack` kept."""
    assert isinstance(packed.weight, PlainWeight)
    return packed.weight.weight
