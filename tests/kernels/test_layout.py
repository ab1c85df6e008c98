"""KV layouts: shapes, dtypes, bytes, errors."""

from __future__ import annotations

import pytest
import torch

from kernels import KVLayout
from kernels.errors import InvalidInputError

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [1, 5, 16])
def test_pools_have_the_documented_shapes(dtype: str, block_size: int) -> None:
    layout = KVLayout(dtype, block_size, 3, 80)
    pool = layout.allocate(7)
    for tensor in (pool.k, pool.v):
        assert tensor.shape == (7, block_size, 3, 80)
        assert tensor.dtype == DTYPES[dtype]
        assert tensor.is_contiguous()
        assert not tensor.any()
    for scale in (pool.k_scale, pool.v_scale):
        if dtype == "int8":
            assert scale is not None
            assert scale.shape == (7, block_size, 3)
            assert scale.dtype == torch.float32
            assert not scale.any()
        else:
            assert scale is None
    assert pool.k.data_ptr() != pool.v.data_ptr()
    assert pool.num_blocks == 7
    assert pool.layout == layout
    assert pool.nbytes == 7 * block_size * layout.bytes_per_token


def test_bytes_per_token() -> None:
    sizes = {dtype: KVLayout(dtype, 16, 8, 64).bytes_per_token for dtype in DTYPES}
    assert sizes == {"fp32": 4096, "fp16": 2048, "bf16": 2048, "int8": 1088}
    assert sizes["int8"] <= 0.54 * sizes["fp16"]


def test_equal_layouts_are_equal() -> None:
    assert KVLayout("int8", 16, 8, 64) == KVLayout("int8", 16, 8, 64)
    assert hash(KVLayout("int8", 16, 8, 64)) == hash(KVLayout("int8", 16, 8, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fp8", 16, 8, 64), r"dtype is 'fp8'; expected one of \['fp32', 'fp16', 'bf16', 'int8'\]"),
        (("fp16", 0, 8, 64), r"block_size is 0; expected an integer >= 1"),
        (("fp16", 16, -1, 64), r"num_kv_heads is -1; expected"),
        (("fp16", 16, 8, 0.5), r"head_dim is 0.5; expected"),
    ],
)
def test_bad_layouts(arguments: tuple[str, int, int, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        KVLayout(*arguments)


def test_negative_number_of_blocks() -> None:
    with pytest.raises(InvalidInputError, match=r"num_blocks is -1; expected >= 0"):
        KVLayout("fp16", 16, 8, 64).allocate(-1)
