"""Gated MLP in Triton for up to 64 rows: two kernels, each bound by reading its weights once.

The first makes the activation, norm fused; the second is the linear layer with its residual. More
rows go to the library's GEMM.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.decode_mlp.packed import PackedMLP
from kernels.errors import UnsupportedError
from kernels.launch import launch
from kernels.linear.device import before_product, tile_product
from kernels.linear.kernel import linear, plain_weight
from kernels.linear.tiles import (
    MOST_ROWS,
    config_space,
    default_config,
    key_of,
    launch_options,
    padded_rows,
)
from kernels.primitives import cast, silu
from kernels.rms_norm.kernel import rms_norm
from kernels.target import target_of
from kernels.tuning import Tunable

GATE_UP = Tunable(
    "gate_up",
    functools.partial(default_config, split=False),
    functools.partial(config_space, split=False),
)
_ELEMENTS = 1024


def interleave(gate_up: Tensor) -> Tensor:
    """[2I, H], gate's rows first -> gate's and up's rows in turns.

    A program needs rows of both, and so reads one run of memory.
    """
    return torch.stack(gate_up.chunk(2), dim=1).flatten(0, 1)


@triton.jit(do_not_specialize=["rows"])
def _gate_up_kernel(
    x_ptr,  # [rows, width]
    norm_ptr,  # [width]
    w_ptr,  # [n, width], gate's and up's rows in turns
    out_ptr,  # [rows, n / 2]
    x_stride,
    rows,
    n,
    width,
    eps,
    NORM: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_N
    acc = tile_product(
        x_ptr,
        x_stride,
        norm_ptr,
        w_ptr,
        tl.minimum(first + tl.arange(0, BLOCK_N), n - 1),
        rows,
        0,
        width,
        width,
        eps,
        NORM,
        EVEN_K,
        BLOCK_N,
        BLOCK_M,
        BLOCK_K,
    )
    pairs = tl.reshape(acc, (BLOCK_N // 2, 2, BLOCK_M))
    gate, up = tl.split(tl.permute(pairs, (0, 2, 1)))  # [BLOCK_N / 2, BLOCK_M] each
    o_i = first // 2 + tl.arange(0, BLOCK_N // 2)
    o_m = tl.arange(0, BLOCK_M).to(tl.int64)
    mask = (o_i < n // 2)[:, None] & (o_m < rows)[None, :]
    activation = cast(silu(gate) * up, out_ptr.dtype.element_ty)
    tl.store(out_ptr + o_m[None, :] * (n // 2) + o_i[:, None], activation, mask=mask)


@triton.jit
def _silu_mul_kernel(
    gate_up_ptr,  # [2 * count], gate and up in turns
    out_ptr,  # [count]
    count,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    o_pair = 2 * first + tl.arange(0, 2 * BLOCK)
    m_pair = o_pair < 2 * tl.cast(count, tl.int64)  # twice an int32 may not be one
    pairs = tl.load(gate_up_ptr + o_pair, mask=m_pair, other=0.0).to(tl.float32)
    gate, up = tl.split(tl.reshape(pairs, (BLOCK, 2)))
    o_i = first + tl.arange(0, BLOCK)
    activation = cast(silu(gate) * up, out_ptr.dtype.element_ty)
    tl.store(out_ptr + o_i, activation, mask=o_i < count)


def decode_mlp(x: Tensor, norm_weight: Tensor, eps: float, mlp: PackedMLP) -> Tensor:
    """See `kernels.decode_mlp.decode_mlp`.

    Raises `UnsupportedError` for a float64 x.
    """
    if x.dtype == torch.float64:
        raise UnsupportedError("decode_mlp: x is float64; impl 'triton' takes float32")
    if x.shape[0] == 0:
        return torch.empty_like(x)
    few = x.shape[0] <= MOST_ROWS
    activation = (_gate_up if few else _gate_up_by_library)(x, norm_weight, eps, mlp)
    return linear(activation, mlp.down, residual=x)


def _gate_up(x: Tensor, norm_weight: Tensor, eps: float, mlp: PackedMLP) -> Tensor:
    """The activation silu(gate) * up, [B, I] in the weights' dtype."""
    weight = plain_weight(mlp.gate_up)
    rows, (n, width) = x.shape[0], weight.shape
    x, norm = before_product(x, norm_weight, eps, weight.dtype)
    config = GATE_UP.config(key_of(n, width, weight.dtype), x.device)
    out = torch.empty(rows, n // 2, dtype=weight.dtype, device=x.device)
    launch(
        _gate_up_kernel,
        (triton.cdiv(n, config.constants["BLOCK_N"]),),
        x,
        norm_weight.contiguous(),
        weight,
        out,
        x.stride(0),
        rows,
        n,
        width,
        eps,
        NORM=norm,
        EVEN_K=width % config.constants["BLOCK_K"] == 0,
        BLOCK_M=padded_rows(rows),
        **config.constants,
        **launch_options(config, target_of(x.device), rows, weight.dtype, x.dtype),
    )
    return out


def _gate_up_by_library(x: Tensor, norm_weight: Tensor, eps: float, mlp: PackedMLP) -> Tensor:
    y = rms_norm(x, norm_weight, eps, out_dtype=mlp.dtype)
    assert isinstance(y, Tensor)
    gate_up = F.linear(y, plain_weight(mlp.gate_up))
    out = torch.empty(x.shape[0], mlp.intermediate_size, dtype=mlp.dtype, device=x.device)
    count = out.numel()
    launch(
        _silu_mul_kernel,
        (triton.cdiv(count, _ELEMENTS),),
        gate_up,
        out,
        count,
        BLOCK=_ELEMENTS,
        num_warps=4,
    )
    return out
