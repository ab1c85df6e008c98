"""Gated MLP on the CPU: two packed multiplications, and elementwise work in place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels.decode_mlp.packed import PackedMLP
from kernels.linear.cpu import linear
from kernels.rms_norm.cpu import rms_norm


def decode_mlp(x: Tensor, norm_weight: Tensor, eps: float, mlp: PackedMLP) -> Tensor:
    """See `kernels.decode_mlp.decode_mlp`."""
    y = rms_norm(x, norm_weight, eps, out_dtype=mlp.dtype)
    assert isinstance(y, Tensor)
    gate, up = linear(y, mlp.gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate).mul_(up), mlp.down, residual=x)
