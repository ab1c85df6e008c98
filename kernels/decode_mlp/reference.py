"""Plain torch gated MLP; what each operation gives is rounded to the weights' dtype."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from kernels.decode_mlp.packed import PackedMLP
from kernels.linear.reference import linear
from kernels.rms_norm.reference import rms_norm


def decode_mlp(x: Tensor, norm_weight: Tensor, eps: float, mlp: PackedMLP) -> Tensor:
    """See `kernels.decode_mlp.decode_mlp`."""
    y = rms_norm(x, norm_weight, eps, out_dtype=mlp.dtype)
    assert isinstance(y, Tensor)
    compute = torch.promote_types(mlp.dtype, torch.float32)
    gate, up = rearrange(linear(y, mlp.gate_up).to(compute), "b (two i) -> two b i", two=2)
    activation = gate * torch.sigmoid(gate) * up
    return linear(activation.to(mlp.dtype), mlp.down, residual=x)
