"""RMSNorm on the CPU in few passes over memory and few temporaries."""

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
        s = torch.add(s, residual).to(compute)
    # One pass for the norm: x.square().mean() would write the squares out first.
    norm = torch.linalg.vector_norm(s, dim=-1, keepdim=True)  # [T, 1]
    scale = norm.square_().div_(x.shape[1]).add_(eps).rsqrt_()
    y = torch.mul(s, scale).mul_(weight).to(out_dtype or x.dtype)
    return y if residual is None else (y, s)
