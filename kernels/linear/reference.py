"""Plain torch linear layer: products and sums in float32 or wider, one rounding at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear.packed import PackedLinear, PlainWeight


def pack(weight: Tensor, bias: Tensor | None, keep_rows: bool) -> PackedLinear:
    """Keep the matrix as it is; its rows can always be read."""
    n, k = weight.shape
    return PackedLinear("reference", PlainWeight(weight), k, n, weight.dtype, bias)


def linear(x: Tensor, packed: PackedLinear, *, residual: Tensor | None = None) -> Tensor:
    """See `kernels.linear.linear`."""
    compute = torch.promote_types(x.dtype, torch.float32)
    assert isinstance(packed.weight, PlainWeight)
    y = x.to(compute) @ packed.weight.weight.to(compute).T  # [T, N]
    if packed.bias is not None:
        y = y + packed.bias.to(compute)
    y = y.to(x.dtype)
    return y if residual is None else residual + y
