"""What the two attention kernels take of a call, alike for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kernels.target import Target


@dataclass(frozen=True)
class Work:
    """What both kernels take."""

    tensors: tuple[Tensor, ...]  # q, K, V, their scales, query_start, kv_len, block_table, out
    numbers: tuple[float, ...]  # strides of q, scale, softcap, window
    constants: dict[str, Any]
    batch: int
    target: Target


def registers(target: Target, warps: int) -> dict[str, int]:
    """Registers of a thread when `warps` share a multiprocessor.

    Unless told, the assembler aims at more programs at once, and spills a few bytes for it.
    """
    return {"maxnreg": min(255, 65536 // (32 * warps) // 8 * 8)} if target.nvidia else {}
