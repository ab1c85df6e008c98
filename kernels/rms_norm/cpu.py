"""RMSNorm on the CPU in few passes over memory and few temporaries."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.scratch import scratch


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
    # One buffer for the squares, then for the product: a fresh one would cost page faults. The
    # mean's pairwise sums are twice as exact here as torch.linalg.vector_norm's chains.
    buffer = scratch("rms_norm", s.shape, compute)
    scale = torch.mul(s, s, out=buffer).mean(dim=-1, keepdim=True).add_(eps).rsqrt_()  # [T, 1]
    torch.mul(s, scale, out=buffer).mul_(weight)
    y = buffer.to(out_dtype or x.dtype, copy=True)
    return y if residual is None else (y, s)
