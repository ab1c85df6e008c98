"""`PipelineHidden`: what it accepts and what it says of itself."""

from __future__ import annotations

import pytest
import torch

from kernels.errors import InvalidInputError
from pipeline.hidden import PipelineHidden


def test_metadata_has_the_origins_keys() -> None:
    hidden = PipelineHidden(torch.zeros(3, 8))
    assert hidden.metadata() == {
        "shape": [3, 8],
        "dtype": "f32",
        "device": "host",
        "layout": "row_major",
        "len_bytes": 96,
    }
    assert (hidden.row_count, hidden.hidden_size, hidden.len_bytes) == (3, 8, 96)


@pytest.mark.parametrize(
    "storage",
    [
        torch.zeros(3, 8, dtype=torch.bfloat16),
        torch.zeros(24),
        torch.zeros(8, 3).T,
        torch.zeros(3, 16)[:, ::2],
    ],
    ids=["dtype", "one dimension", "column-major", "strided"],
)
def test_only_row_major_float32_is_accepted(storage: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError, match=r"expected row-major torch.float32 \[rows, hid"):
        PipelineHidden(storage)
