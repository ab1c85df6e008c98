"""Plain torch logits and greedy choice."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear.packed import PackedLinear
from kernels.linear.reference import linear
from kernels.rms_norm.reference import rms_norm


def logits(hidden: Tensor, norm_weight: Tensor, eps: float, head: PackedLinear) -> Tensor:
    """See `kernels.logits.logits`."""
    y = rms_norm(hidden, norm_weight, eps, out_dtype=head.dtype)
    assert isinstance(y, Tensor)
    return linear(y, head).to(torch.promote_types(head.dtype, torch.float32))


def greedy(hidden: Tensor, norm_weight: Tensor, eps: float, head: PackedLinear) -> Tensor:
    """See `kernels.logits.greedy`."""
    scores = logits(hidden, norm_weight, eps, head)
    is_best = scores == scores.amax(dim=-1, keepdim=True)
    return is_best.int().argmax(dim=-1)
