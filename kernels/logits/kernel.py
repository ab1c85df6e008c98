"""Logits and greedy choice in Triton: the final norm fused with the head, which is read once."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.errors import UnsupportedError
from kernels.launch import launch
from kernels.linear.device import before_product, tile_product
from kernels.linear.kernel import plain_weight
from kernels.linear.packed import PackedLinear
from kernels.linear.tiles import (
    MOST_ROWS,
    config_space,
    default_config,
    key_of,
    launch_options,
    padded_rows,
)
from kernels.primitives import cast
from kernels.rms_norm.kernel import rms_norm
from kernels.target import target_of
from kernels.tuning import Config, Tunable
from kernels.workspace import counters, workspace

# One for both, so that greedy is the argmax of logits to the last bit.
HEAD = Tunable(
    "head",
    functools.partial(default_config, split=False),
    functools.partial(config_space, split=False),
)
_PARTS = 2048  # partial maxima that are compared at a time; more would need more registers
_NO_TOKEN = tl.constexpr(2147483647)


@triton.jit
def _scores(
    x_ptr,
    norm_ptr,
    w_ptr,
    bias_ptr,
    x_stride,
    o_n,
    rows,
    n,
    width,
    eps,
    NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Logits of tokens o_n [BLOCK_N], rounded to the head's dtype: float32 [BLOCK_N, BLOCK_M]."""
    acc = tile_product(
        x_ptr,
        x_stride,
        norm_ptr,
        w_ptr,
        tl.minimum(o_n, n - 1).to(tl.int64),
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
    if HAS_BIAS:
        acc += tl.load(bias_ptr + o_n, mask=o_n < n, other=0.0).to(tl.float32)[:, None]
    return cast(acc, w_ptr.dtype.element_ty).to(tl.float32)


@triton.jit(do_not_specialize=["rows"])
def _logits_kernel(
    x_ptr,  # [rows, width]
    norm_ptr,  # [width]
    w_ptr,  # [n, width]
    bias_ptr,  # [n]
    out_ptr,  # float32 [rows, n]
    x_stride,
    rows,
    n,
    width,
    eps,
    NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    scores = _scores(
        x_ptr,
        norm_ptr,
        w_ptr,
        bias_ptr,
        x_stride,
        o_n,
        rows,
        n,
        width,
        eps,
        NORM,
        HAS_BIAS,
        EVEN_K,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    o_m = tl.arange(0, BLOCK_M).to(tl.int64)
    mask = (o_n < n)[:, None] & (o_m < rows)[None, :]
    tl.store(out_ptr + o_m[None, :] * n + o_n[:, None], scores, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _greedy_kernel(
    x_ptr,  # [rows, width]
    norm_ptr,  # [width]
    w_ptr,  # [n, width]
    bias_ptr,  # [n]
    token_ptr,  # int64 [rows]
    best_ptr,  # float32 [rows, tiles]: each tile's maximum; infinity for a NaN
    where_ptr,  # int32 [rows, tiles]: the lowest token that has it; -1 for a NaN
    arrived_ptr,  # int32 [1], zero before and after
    x_stride,
    rows,
    n,
    width,
    eps,
    tiles,
    NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    tile = tl.program_id(0)
    o_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    scores = _scores(
        x_ptr,
        norm_ptr,
        w_ptr,
        bias_ptr,
        x_stride,
        o_n,
        rows,
        n,
        width,
        eps,
        NORM,
        HAS_BIAS,
        EVEN_K,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    m_n = (o_n < n)[:, None]
    is_nan = tl.max((m_n & (scores != scores)).to(tl.int32), axis=0) > 0  # [BLOCK_M]
    scores = tl.where(m_n & (scores == scores), scores, float("-inf"))
    best = tl.max(scores, axis=0)
    token = tl.min(tl.where(m_n & (scores == best[None, :]), o_n[:, None], _NO_TOKEN), axis=0)
    o_m = tl.arange(0, BLOCK_M)
    m_m = o_m < rows
    tl.store(best_ptr + o_m * tiles + tile, tl.where(is_nan, float("inf"), best), mask=m_m)
    tl.store(where_ptr + o_m * tiles + tile, tl.where(is_nan, -1, token), mask=m_m)
    tl.debug_barrier()  # all threads' stores come before the count
    if tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") == tiles - 1:
        tl.store(arrived_ptr, 0)
        most = tl.full((BLOCK_M, BLOCK_T), float("-inf"), tl.float32)
        holder = tl.full((BLOCK_M, BLOCK_T), _NO_TOKEN, tl.int32)
        for first in tl.range(0, tiles, BLOCK_T, loop_unroll_factor=2):
            o_t = first + tl.arange(0, BLOCK_T)
            o_part = o_m[:, None] * tiles + o_t[None, :]
            mask = m_m[:, None] & (o_t < tiles)[None, :]
            # [BLOCK_M, BLOCK_T]
            b_best = tl.load(
                best_ptr + o_part, mask=mask, other=float("-inf"), cache_modifier=".cg"
            )
            b_token = tl.load(where_ptr + o_part, mask=mask, other=_NO_TOKEN, cache_modifier=".cg")
            wins = (b_best > most) | ((b_best == most) & (b_token < holder))
            most = tl.where(wins, b_best, most)
            holder = tl.where(wins, b_token, holder)
        top = tl.max(most, axis=1)
        lowest = tl.min(tl.where(most == top[:, None], holder, _NO_TOKEN), axis=1)
        # No logit equals a maximum that is NaN: the reference then finds token 0.
        tl.store(token_ptr + o_m, tl.maximum(lowest, 0).to(tl.int64), mask=m_m)


def logits(hidden: Tensor, norm_weight: Tensor, eps: float, head: PackedLinear) -> Tensor:
    """See `kernels.logits.logits`. More than 64 rows go to the library's GEMM."""
    _refuse_float64("logits", hidden)
    rows, weight = hidden.shape[0], plain_weight(head)
    if rows > MOST_ROWS:
        y = rms_norm(hidden, norm_weight, eps, out_dtype=head.dtype)
        assert isinstance(y, Tensor)
        return F.linear(y, weight, head.bias).float()
    out = torch.empty(rows, head.out_features, dtype=torch.float32, device=hidden.device)
    if out.numel() == 0:
        return out
    hidden, norm = before_product(hidden, norm_weight, eps, head.dtype)
    config = _config(head, hidden)
    launch(
        _logits_kernel,
        (triton.cdiv(head.out_features, config.constants["BLOCK_N"]),),
        hidden,
        norm_weight.contiguous(),
        weight,
        weight if head.bias is None else head.bias,
        out,
        hidden.stride(0),
        rows,
        head.out_features,
        head.in_features,
        eps,
        **_meta(config, head, hidden, norm),
    )
    return out


def greedy(hidden: Tensor, norm_weight: Tensor, eps: float, head: PackedLinear) -> Tensor:
    """See `kernels.logits.greedy`. A row with a NaN among its logits gets token 0."""
    _refuse_float64("greedy", hidden)
    tokens = torch.empty(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    for some, out in zip(hidden.split(MOST_ROWS), tokens.split(MOST_ROWS), strict=True):
        if out.numel() > 0:
            _greedy(some, norm_weight.contiguous(), eps, head, out)
    return tokens


def _greedy(
    hidden: Tensor, norm_weight: Tensor, eps: float, head: PackedLinear, tokens: Tensor
) -> None:
    hidden, norm = before_product(hidden, norm_weight, eps, head.dtype)
    rows, config, device = hidden.shape[0], _config(head, hidden), hidden.device
    tiles = triton.cdiv(head.out_features, config.constants["BLOCK_N"])
    weight = plain_weight(head)
    launch(
        _greedy_kernel,
        (tiles,),
        hidden,
        norm_weight,
        weight,
        weight if head.bias is None else head.bias,
        tokens,
        workspace("greedy.best", (rows, tiles), torch.float32, device),
        workspace("greedy.where", (rows, tiles), torch.int32, device),
        counters("greedy.arrived", 1, device),
        hidden.stride(0),
        rows,
        head.out_features,
        head.in_features,
        eps,
        tiles,
        BLOCK_T=_PARTS // padded_rows(rows),
        **_meta(config, head, hidden, norm),
    )


def _config(head: PackedLinear, hidden: Tensor) -> Config:
    return HEAD.config(key_of(head.out_features, head.in_features, head.dtype), hidden.device)


def _meta(config: Config, head: PackedLinear, hidden: Tensor, norm: bool) -> dict[str, Any]:
    rows = hidden.shape[0]
    return {
        "NORM": norm,
        "HAS_BIAS": head.bias is not None,
        "EVEN_K": head.in_features % config.constants["BLOCK_K"] == 0,
        "BLOCK_M": padded_rows(rows),
        # Whether the norm's scale is fused with the bias could differ between numbers of rows.
        "enable_fp_fusion": head.bias is None,
        **config.constants,
        **launch_options(config, target_of(hidden.device), rows, head.dtype, hidden.dtype),
    }


def _refuse_float64(op: str, hidden: Tensor) -> None:
    if hidden.dtype == torch.float64:
        raise UnsupportedError(f"{op}: hidden is float64; impl 'triton' takes float32")
