"""Building blocks of registry cases: seeded random tensors and paged pools with poison in them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from kernels.layout import KVLayout, KVPool
from kernels.quantization import dequantize, quantize

Inputs = dict[str, Any]

DTYPES = MappingProxyType(
    {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
)


@dataclass(frozen=True)
class Case:
    """One set of sizes and options.

    `bench` marks realistic sizes, kept out of quick checks; `gpu` those among them that are too
    large for anything but a GPU. `stand_in` is what is checked in its place where the case itself
    is too large for the reference.
    """

    name: str
    params: Mapping[str, Any]
    bench: bool = False
    gpu: bool = False
    stand_in: Case | None = None


class Random:
    """Seeded by the case's name and the draw, so that every device sees the same numbers.

    On the device "meta" tensors have shapes and nothing else. What is too large for a CPU is drawn
    on the GPU.
    """

    def __init__(self, case: Case, device: str, draw: int) -> None:
        seed = zlib.crc32(f"{case.name} {draw}".encode())
        source = "cpu" if device == "meta" or not case.gpu else device
        self.generator = torch.Generator(source).manual_seed(seed)
        self.device = device

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, std: float = 1.0) -> Tensor:
        """Normally distributed values."""
        if self.device == "meta":
            return torch.empty(shape, dtype=dtype, device="meta")
        source = self.generator.device
        values = torch.randn(shape, generator=self.generator, device=source) * std
        return values.to(dtype).to(self.device)

    def permutation(self, n: int) -> Tensor:
        """The numbers below `n`, int64, in random order."""
        if self.device == "meta":
            return torch.empty(n, dtype=torch.int64, device="meta")
        source = self.generator.device
        return torch.randperm(n, generator=self.generator, device=source).to(self.device)


def paged_cache(
    random: Random, layout: KVLayout, lengths: Sequence[int], spare_blocks: int = 2
) -> tuple[KVPool, Tensor]:
    """A pool with random tokens for sequences of `lengths`, and its block table int32 [B, blocks].

    Blocks are shuffled. Everything unused is poisoned: NaN in tails and spare blocks (of int8: in
    the scales), impossible numbers in the table past a sequence's end.
    """
    size = layout.block_size
    per_row = [-(-length // size) for length in lengths]
    if random.device == "meta":
        table = torch.empty(len(lengths), max(per_row) + 1, dtype=torch.int32, device="meta")
        return layout.allocate(sum(per_row) + spare_blocks, "meta"), table
    blocks = random.permutation(sum(per_row) + spare_blocks).tolist()
    table = torch.full((len(lengths), max(per_row, default=0) + 1), 2**31 - 1, dtype=torch.int32)
    used = torch.zeros(len(blocks), size, dtype=torch.bool)
    for row, (count, length) in enumerate(zip(per_row, lengths, strict=True)):
        mine = torch.tensor([blocks.pop() for _ in range(count)], dtype=torch.int64)
        table[row, :count] = mine
        used[mine] = (torch.arange(count * size) < length).view(count, size)
    pool = layout.allocate(used.shape[0], random.device)
    used = used.to(random.device)
    for values, scales in ((pool.k, pool.k_scale), (pool.v, pool.v_scale)):
        tokens = random.normal(*values.shape)
        if scales is None:
            values.copy_(tokens)
            values[~used] = torch.nan
        else:
            codes, scale = quantize(tokens)
            values.copy_(codes)
            scales.copy_(scale)
            scales[~used] = torch.nan
    return pool, table.to(random.device)


def widen(inputs: Inputs) -> Inputs:
    """The same values in float64; pools come out dequantised."""
    return {name: _widen(value) for name, value in inputs.items()}


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    if isinstance(value, KVPool):
        return replace(
            value,
            k=_stored(value.k, value.k_scale),
            v=_stored(value.v, value.v_scale),
            k_scale=None,
            v_scale=None,
        )
    return value


def stored_tokens(pool: KVPool, slots: Tensor) -> dict[str, Tensor]:
    """K and V at `slots`, dequantised: [T, Hkv, D] each."""
    return {
        "k": _stored(pool.k, pool.k_scale).flatten(0, 1)[slots],
        "v": _stored(pool.v, pool.v_scale).flatten(0, 1)[slots],
    }


def _stored(values: Tensor, scale: Tensor | None) -> Tensor:
    return values.double() if scale is None else dequantize(values, scale, torch.float64)
