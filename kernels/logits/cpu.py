"""Logits and greedy choice on the CPU, over packed weights."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear.cpu import linear
from kernels.linear.packed import PackedLinear
from kernels.rms_norm.cpu import rms_norm


def logits(hidden: Tensor, norm_weight: Tensor, eps: float, head: PackedLinear) -> Tensor:
    """See `kernels.logits.logits`."""
    scores = _scores(hidden, norm_weight, eps, head)
    return scores.to(torch.promote_types(head.dtype, torch.float32))


def greedy(hidden: Tensor, norm_weight: Tensor, eps: float, head: PackedLinear) -> Tensor:
    """See `kernels.logits.greedy`."""
    return _scores(hidden, norm_weight, eps, head).argmax(dim=-1)


def _scores(hidden: Tensor, norm_weight: Tensor, eps: float, head: PackedLinear) -> Tensor:
    y = rms_norm(hidden, norm_weight, eps, out_dtype=head.dtype)
    assert isinstance(y, Tensor)
    return linear(y, head)
