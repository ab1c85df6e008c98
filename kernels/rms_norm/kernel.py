"""RMSNorm in Triton: one program a row, the row in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import launch
from kernels.primitives import cast


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # [T, H]
    residual_ptr,  # [T, H]
    weight_ptr,  # [H]
    y_ptr,  # [T, H]
    sum_ptr,  # float32 [T, H]
    x_stride,
    residual_stride,
    width,
    eps,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + row * residual_stride + column, mask=inside, other=0.0).to(
            tl.float32
        )
        tl.store(sum_ptr + row * width + column, x, mask=inside)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / width + eps)
    y = x * scale * weight
    tl.store(y_ptr + row * width + column, cast(y, y_ptr.dtype.element_ty), mask=inside)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `kernels.rms_norm.rms_norm`."""
    rows, width = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    y = torch.empty(rows, width, dtype=out_dtype or x.dtype, device=x.device)
    total = y if residual is None else torch.empty(rows, width, device=x.device)
    added = x if residual is None else residual
    added = added if added.stride(1) == 1 else added.contiguous()
    block = triton.next_power_of_2(width)
    launch(
        _rms_norm_kernel,
        (rows,),
        x,
        added,
        weight.contiguous(),
        y,
        total,
        x.stride(0),
        added.stride(0),
        width,
        eps,
        ADD=residual is not None,
        BLOCK=block,
        num_warps=max(1, min(16, block // 512)),
    )
    return y if residual is None else (y, total)
