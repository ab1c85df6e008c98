"""RMSNorm (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467), residual included."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from kernels.dispatch import implementation
from kernels.validation import require

__all__ = ["rms_norm"]


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: None = None,
    out_dtype: torch.dtype | None = None,
    impl: str,
) -> Tensor: ...


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor,
    out_dtype: torch.dtype | None = None,
    impl: str,
) -> tuple[Tensor, Tensor]: ...


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    impl: str,
) -> Tensor | tuple[Tensor, Tensor]:
    """x [T, H], weight [H] -> y = x / sqrt(mean(x^2) + eps) * weight, [T, H].

    With `residual` [T, H]: norm of s = x + residual, and (y, s) comes back, s in float32. The maths
    is in float32 (float64 for float64 input); y is rounded once, to `out_dtype` or x.dtype.
    Raises `InvalidInputError` for shapes that do not fit.
    """
    if x.dim() != 2 or weight.shape != x.shape[1:]:
        require(x.dim() == 2, "rms_norm", "x", x, "a matrix [T, H]")
        require(False, "rms_norm", "weight", weight, f"shape [{x.shape[1]}], the width of x")
    if residual is not None:
        ok = residual.shape == x.shape
        require(ok, "rms_norm", "residual", residual, f"shape {list(x.shape)}, as x")
    fn = implementation("rms_norm", impl)
    result: Tensor | tuple[Tensor, Tensor] = fn(
        x, weight, eps, residual=residual, out_dtype=out_dtype
    )
    return result
