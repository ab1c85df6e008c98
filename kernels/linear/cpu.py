"""Linear layer on the CPU: oneDNN with weights blocked once, where the library has it."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear import onednn
from kernels.linear.packed import PackedLinear, PackedWeight, PlainWeight


def pack(weight: Tensor, bias: Tensor | None, keep_rows: bool) -> PackedLinear:
    """Block the matrix for oneDNN (bfloat16, float32), or keep it for `F.linear` (all else).

    `PackedLinear.kind` says which. float16 has no fast path on CPUs: choose another dtype.
    """
    n, k = weight.shape
    packed: PackedWeight
    if onednn.available(weight.dtype) and weight.numel() > 0:
        packed = onednn.pack(weight, keep_rows)
    else:
        packed = PlainWeight(weight)
    return PackedLinear("cpu", packed, k, n, weight.dtype, bias)


def linear(x: Tensor, packed: PackedLinear, *, residual: Tensor | None = None) -> Tensor:
    """See `kernels.linear.linear`."""
    y = packed.weight.matmul(x, packed.bias)
    # Adding promotes to float32 in the same pass.
    return y if residual is None else torch.add(residual, y)
