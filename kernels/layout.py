"""Paged layouts of the KV cache: which dtype, how many bytes, and the pools of one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.errors import InvalidInputError

_TORCH_DTYPE = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
KV_DTYPES = tuple(_TORCH_DTYPE)


@dataclass(frozen=True)
class KVLayout:
    """How K and V of one layer lie in memory: pools `[num_blocks, block_size, Hkv, D]`.

    `dtype` is one of fp32, fp16, bf16 and int8; int8 has a float32 scale per (token, kv head)
    beside each pool. `block_size` counts tokens. Raises `InvalidInputError` for other values.
    """

    dtype: str
    block_size: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.dtype not in _TORCH_DTYPE:
            raise InvalidInputError(
                f"KVLayout: dtype is {self.dtype!r}; expected one of {list(KV_DTYPES)}"
            )
        for name in ("block_size", "num_kv_heads", "head_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"KVLayout: {name} is {value!r}; expected an integer >= 1")

    @property
    def torch_dtype(self) -> torch.dtype:
        """Element type of the pools."""
        return _TORCH_DTYPE[self.dtype]

    @property
    def quantized(self) -> bool:
        """Whether the pools hold codes that need scales."""
        return self.dtype == "int8"

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in one layer: K, V and their scales."""
        per_head = self.head_dim * self.torch_dtype.itemsize + (4 if self.quantized else 0)
        return 2 * self.num_kv_heads * per_head

    def allocate(self, num_blocks: int, device: str | torch.device = "cpu") -> KVPool:
        """The zero-filled pools of one layer, `num_blocks` blocks on `device`."""
        if num_blocks < 0:
            raise InvalidInputError(f"KVLayout.allocate: num_blocks is {num_blocks}; expected >= 0")
        scale_shape = (num_blocks, self.block_size, self.num_kv_heads)
        shape = (*scale_shape, self.head_dim)

        k, v = (_zeros(shape, self.torch_dtype, device) for _ in "kv")
        if not self.quantized:
            return KVPool(self, k, v)
        return KVPool(self, k, v, *(_zeros(scale_shape, torch.float32, device) for _ in "kv"))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device) -> Tensor:
    """Zeros; on a CPU from numpy, whose zeros take no memory until they are written."""
    with torch.inference_mode(False):  # else they could not be written outside that mode
        if torch.device(device).type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        nbytes = math.prod(shape) * dtype.itemsize
        return torch.from_numpy(np.zeros(nbytes, np.uint8)).view(dtype).view(shape)


@dataclass(frozen=True, eq=False)
class KVPool:
    """K and V of one layer: `k`, `v` [num_blocks, block_size, Hkv, D]; `k_scale`, `v_scale` float32
    [num_blocks, block_size, Hkv] where the layout is quantised, else None."""

    layout: KVLayout
    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    @property
    def num_blocks(self) -> int:
        """Number of blocks, used or not."""
        return self.k.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all four tensors."""
        parts = (self.k, self.v, self.k_scale, self.v_scale)
        return sum(part.nbytes for part in parts if part is not None)
