"""Plain torch RMSNorm."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `kernels.rms_norm.rms_norm`."""
    compute = torch.promote_types(x.dtype, torch.float32)
    s = x.to(compute)
    if residual is not None:
        s = s + residual.to(compute)
    mean_square = s.square().mean(dim=-1, keepdim=True)  # [T, 1]
    y = s / torch.sqrt(mean_square + eps) * weight.to(compute)
    y = y.to(out_dtype or x.dtype)
    return y if residual is None else (y, s)
