"""The hidden state that passes between stages: the float32 residual before the final norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from kernels.errors import InvalidInputError


@dataclass(frozen=True, eq=False)
class PipelineHidden:
    """Rows of hidden state, row-major.

    Args:
        storage: float32 [rows, hidden], contiguous. Anything else is an `InvalidInputError`.
    """

    storage: torch.Tensor

    DTYPE: ClassVar[str] = "f32"
    LAYOUT: ClassVar[str] = "row_major"

    def __post_init__(self) -> None:
        shape, dtype = tuple(self.storage.shape), self.storage.dtype
        if len(shape) != 2 or dtype != torch.float32 or not self.storage.is_contiguous():
            raise InvalidInputError(
                f"pipeline hidden is {dtype} {list(shape)} with strides "
                f"{list(self.storage.stride())}; expected row-major torch.float32 [rows, hidden]"
            )

    @property
    def row_count(self) -> int:
        """Tokens or sequences, one per row."""
        return self.storage.shape[0]

    @property
    def hidden_size(self) -> int:
        """Width of a row."""
        return self.storage.shape[1]

    @property
    def len_bytes(self) -> int:
        """Bytes of all rows."""
        return self.storage.numel() * self.storage.element_size()

    @property
    def device(self) -> str:
        """ "host" or "backend_device"."""
        return "host" if self.storage.device.type == "cpu" else "backend_device"

    def metadata(self) -> dict[str, Any]:
        """Shape, dtype, device, layout and length in bytes, without the numbers."""
        return {
            "shape": [self.row_count, self.hidden_size],
            "dtype": self.DTYPE,
            "device": self.device,
            "layout": self.LAYOUT,
            "len_bytes": self.len_bytes,
        }
