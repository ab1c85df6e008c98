"""The int8 rule of the KV cache: symmetric, one float32 scale per (token, kv head).

scale = max|x| / 127 as stored in float32; code = clamp(round-half-even(x / scale), -127, 127).
"""

from __future__ import annotations

import torch
from torch import Tensor

INT8_MAX = 127


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [..., D] and scales float32 [...] of `x` [..., D], float32 or float64.

    Codes are computed with the scale as stored. A row of zeros, or one so small that its scale
    underflows to zero, gives zero codes and scale zero: no finite input gives a NaN. A row with a
    NaN has scale NaN, one with an infinity an infinite scale.
    """
    most = x.abs().amax(dim=-1)
    # By a tensor: CUDA divides by a number as it multiplies by its inverse, an ulp off at times.
    scale = (most / torch.full_like(most, INT8_MAX)).to(torch.float32)
    divisor = torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
    # A subnormal scale is coarse, so that the quotient may pass 127: hence the clamp.
    codes = (x / divisor).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
    return codes, scale


def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """codes [..., D] times scale [...], in `dtype` (float32 or float64)."""
    return codes.to(dtype) * scale.to(dtype).unsqueeze(-1)
