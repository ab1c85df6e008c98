"""Deterministic weights made from tensor names, the same as in the Rust origin's parity tests."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.errors import InvalidInputError
from model.config import LlamaConfig
from model.weight_names import EMBEDDING, LM_HEAD, has_bias, linear_parts, tensor_shape
from model.weights import LinearWeights

NORM_SCALE, EMBEDDING_SCALE, LINEAR_SCALE = 0.005, 0.02, 0.015
_CHUNK = 17 << 16  # a multiple of 17, so that every chunk starts with a rotation of 0


def parity_values(name: str, length: int, base: float, scale: float) -> torch.Tensor:
    """`length` float32 values that depend on the name alone, within base +- 11 scale.

    Value i is base + (rotl32(h + i * 0x9e3779b9, i mod 17) mod 23 - 11) * scale with wrapping
    32-bit arithmetic, where h is the FNV-1a hash of the name.
    """
    levels = (np.arange(23, dtype=np.float32) - np.float32(11)) * np.float32(scale)
    levels += np.float32(base)
    start = np.uint32(_fnv1a(name))
    index: NDArray[np.uint32] = np.arange(min(_CHUNK, length), dtype=np.uint32)
    left: NDArray[np.uint32] = index % np.uint32(17)
    # a shift by 32 is undefined, so a rotation by 0 also shifts right by 0: x | x is x
    right: NDArray[np.uint32] = (np.uint32(32) - left) % np.uint32(32)
    steps = index * np.uint32(0x9E3779B9)
    values = np.empty(length, dtype=np.float32)
    for begin in range(0, length, _CHUNK):
        count = min(_CHUNK, length - begin)
        offset = np.uint32((int(start) + begin * 0x9E3779B9) & 0xFFFFFFFF)
        mixed = steps[:count] + offset
        mixed = (mixed << left[:count]) | (mixed >> right[:count])
        np.take(levels, mixed % np.uint32(23), out=values[begin : begin + count])
    return torch.from_numpy(values)


class ParityWeights:
    """A `WeightSource` that needs no files: weights by name for any configuration, float32.

    Linears are hashed by their fused name without ".weight", norms and the embedding by the
    name with it, so that the values are those of the origin. The head is never tied.
    """

    def __init__(self, config: LlamaConfig) -> None:
        self.config = config
        self.dtype = torch.float32

    def tensor(self, name: str) -> torch.Tensor:
        """A norm's weight (around 1) or the embedding [V, H]; float32."""
        shape = tensor_shape(self.config, name)
        base, scale = (0.0, EMBEDDING_SCALE) if name == EMBEDDING else (1.0, NORM_SCALE)
        return parity_values(name, int(np.prod(shape)), base, scale).view(shape)

    def linear(self, name: str) -> LinearWeights:
        """A fused linear [N, K], and its bias [N] where the configuration has one; float32."""
        rows, columns = self._linear_shape(name)
        weight = parity_values(name, rows * columns, 0.0, LINEAR_SCALE).view(rows, columns)
        bias = None
        if has_bias(self.config, name):
            bias = parity_values(f"{name}.bias", rows, 0.0, LINEAR_SCALE)
        return LinearWeights(weight, bias)

    def has(self, name: str) -> bool:
        """Whether a tensor of this name is there: the head, the embedding and the norms."""
        if name == f"{LM_HEAD}.weight":
            return True
        try:
            tensor_shape(self.config, name)
        except InvalidInputError:
            return False
        return True

    def nbytes(self, name: str) -> int:
        """Bytes of `tensor(name)` or `linear(name)`."""
        if name.endswith(".weight"):
            return 4 * int(np.prod(tensor_shape(self.config, name)))
        rows, columns = self._linear_shape(name)
        return 4 * (rows * columns + (rows if has_bias(self.config, name) else 0))

    def _linear_shape(self, name: str) -> tuple[int, int]:
        parts = linear_parts(self.config, name)
        return sum(rows for _, rows, _ in parts), parts[0][2]


def _fnv1a(text: str) -> int:
    """The 32-bit FNV-1a hash of a text's UTF-8 bytes."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value
