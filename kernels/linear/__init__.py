"""Linear layer over weights packed once per implementation: y = x W^T + bias (+ residual)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import implementation, implementation_module
from kernels.linear.packed import PackedLinear
from kernels.validation import require

__all__ = ["PackedLinear", "linear", "pack"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def pack(
    weight: Tensor, bias: Tensor | None = None, *, impl: str, keep_rows: bool = False
) -> PackedLinear:
    """Pack weight [N, K] and bias [N] for `impl`.

    With `keep_rows`, `PackedLinear.rows` works too: the embedding look-up of tied embeddings. The
    result may or may not share memory with `weight`; `weight` must not be changed afterwards.
    Raises `InvalidInputError` for other shapes or dtypes, `UnsupportedError` for a missing `impl`.
    """
    require(weight.dim() == 2, "linear.pack", "weight", weight, "a matrix [N, K]")
    require(weight.dtype in _DTYPES, "linear.pack", "weight", weight, "a floating-point dtype")
    if bias is not None:
        expected = f"{weight.dtype} of shape [{weight.shape[0]}], as the weight"
        ok = bias.shape == weight.shape[:1] and bias.dtype == weight.dtype
        require(ok, "linear.pack", "bias", bias, expected)
    packed: PackedLinear = implementation_module("linear", impl).pack(weight, bias, keep_rows)
    return packed


def linear(x: Tensor, packed: PackedLinear, *, residual: Tensor | None = None) -> Tensor:
    """x [T, K], dtype as the weights, -> y [T, N] in x.dtype.

    With `residual` [T, N], float32: a new float32 tensor residual + y. The implementation is the
    one that packed the weights. Raises `InvalidInputError` for other shapes or dtypes.
    """
    if x.dim() != 2 or x.shape[1] != packed.in_features or x.dtype != packed.dtype:
        require(False, "linear", "x", x, f"{packed.dtype} of shape [T, {packed.in_features}]")
    if residual is not None:
        expected = (x.shape[0], packed.out_features)
        ok = residual.shape == expected and residual.dtype in (torch.float32, torch.float64)
        require(ok, "linear", "residual", residual, f"float32 of shape {list(expected)}")
    y: Tensor = implementation("linear", packed.impl)(x, packed, residual=residual)
    return y
