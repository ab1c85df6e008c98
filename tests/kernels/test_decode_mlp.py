"""The gated MLP: how it is packed, and what the Triton kernels promise of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import get_op
from kernels.case_inputs import Case
from kernels.decode_mlp import PackedMLP, decode_mlp, pack
from kernels.decode_mlp.kernel import GATE_UP, _silu_mul_kernel
from kernels.errors import InvalidInputError, UnsupportedError
from kernels.launch import launch
from kernels.linear.tiles import key_of
from kernels.target import target_of
from kernels.tuning import Config, forced
from tests.devices import DEVICE, IMPLS

pytestmark = pytest.mark.usefixtures("on_device")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check(b: int, h: int, i: int, dtype: str) -> None:
    case = Case(f"B{b}-H{h}-I{i}-{dtype}", {"b": b, "h": h, "i": i, "dtype": dtype})
    for verdict in get_op("decode_mlp").check(case, "triton", DEVICE):
        assert verdict.ok, (case.name, verdict)


def random_mlp(h: int, i: int, dtype: torch.dtype, impl: str = "triton") -> PackedMLP:
    gate_up, down = torch.randn(2 * i, h) * h**-0.5, torch.randn(h, i) * i**-0.5
    return pack(gate_up.to(dtype), down.to(dtype), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_weights_describe_themselves(impl: str) -> None:
    mlp = random_mlp(64, 160, torch.float32, impl)
    assert (mlp.hidden_size, mlp.intermediate_size, mlp.dtype) == (64, 160, torch.float32)
    assert 3 * 64 * 160 * 4 <= mlp.nbytes <= 1.1 * 3 * 64 * 160 * 4
    assert mlp.interleaved == (impl == "triton")


def test_gate_and_up_take_turns_for_triton() -> None:
    gate_up = torch.randn(6, 4)
    mlp = pack(gate_up, torch.randn(4, 3), impl="triton")
    assert torch.equal(mlp.gate_up.rows(torch.arange(6)), gate_up[[0, 3, 1, 4, 2, 5]])


@pytest.mark.parametrize("impl", IMPLS)
def test_matrices_are_read_one_at_a_time(impl: str) -> None:
    gate_up, down = torch.randn(6, 4), torch.randn(4, 3)
    living: list[weakref.ref[Tensor]] = []

    def read(matrix: Tensor) -> Callable[[], Tensor]:
        def source() -> Tensor:
            if impl != "reference":  # which keeps the very tensor
                assert all(ref() is None for ref in living)
            copy = matrix.clone()
            living.append(weakref.ref(copy))
            return copy

        return source

    mlp = pack(read(gate_up), read(down), impl=impl)
    assert len(living) == 2
    x = torch.randn(2, 4)
    expected = decode_mlp(x, torch.ones(4), 1e-5, pack(gate_up, down, impl=impl), impl=impl)
    assert torch.equal(decode_mlp(x, torch.ones(4), 1e-5, mlp, impl=impl), expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_matrices_that_are_read_are_checked(impl: str) -> None:
    with pytest.raises(InvalidInputError, match=r"down is .*\[4, 4\]; expected .*\[4, 3\]"):
        pack(torch.ones(6, 4), lambda: torch.ones(4, 4), impl=impl)
    with pytest.raises(InvalidInputError, match=r"gate_up is .*\[5, 4\]"):
        pack(lambda: torch.ones(5, 4), torch.ones(4, 3), impl=impl)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("h", [1, 97, 129])
@pytest.mark.parametrize("i", [1, 5, 97, 129])
def test_odd_sizes(h: int, i: int) -> None:
    check(64, h, i, ("fp32", "bf16", "fp16")[(h + i) % 3])


@pytest.mark.usefixtures("poisoned_memory")
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    b=st.integers(20, 64),
    h=st.integers(2, 300),
    i=st.integers(1, 200),
    dtype=st.sampled_from(sorted(DTYPES)),
)
def test_any_shape(b: int, h: int, i: int, dtype: str) -> None:
    check(b, h, i, dtype)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_more_rows_than_a_tile_holds(dtype: str) -> None:
    check(70, 96, 130, dtype)


@pytest.mark.parametrize("count", [1, 1000, 2**30, 2**31 - 1])
def test_products_of_many_rows_are_counted_in_64_bits(count: int) -> None:
    gate_up, out = torch.randn(2 * 1024), torch.full((1024,), 77.0)
    # Only the first of the programs, so that no more memory is needed.
    launch(_silu_mul_kernel, (1,), gate_up, out, count, BLOCK=1024, num_warps=4)
    gate, up = gate_up.view(-1, 2).unbind(1)
    torch.testing.assert_close(out[:count], torch.nn.functional.silu(gate)[:count] * up[:count])
    assert out[count:].eq(77).all()


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_rows_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    mlp, norm, x = random_mlp(200, 90, dtype), torch.rand(200) + 0.5, 3 * torch.randn(64, 200)
    whole = decode_mlp(x, norm, 1e-5, mlp, impl="triton")
    # Of 1, 3, 17 and 40 rows: tiles of 16, 32 and 64.
    for rows in (slice(0, 1), slice(63, 64), slice(9, 12), slice(30, 47), slice(5, 45)):
        some = decode_mlp(x[rows], norm, 1e-5, mlp, impl="triton")
        assert torch.equal(some, whole[rows]), rows


@pytest.mark.usefixtures("poisoned_memory")
def test_the_same_bits_every_time() -> None:
    mlp, norm, x = random_mlp(130, 70, torch.float32), torch.ones(130), torch.randn(3, 130)
    first = decode_mlp(x, norm, 1e-5, mlp, impl="triton")
    for _ in range(20):
        assert torch.equal(decode_mlp(x, norm, 1e-5, mlp, impl="triton"), first)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_nothing_beside_the_operands_counts(dtype: torch.dtype) -> None:
    wide = torch.full((9, 100), torch.nan)
    wide[2:7, 40:77] = torch.randn(5, 37)
    norm = torch.full((60,), torch.nan)[:37].copy_(torch.rand(37))
    mlp, x = random_mlp(37, 45, dtype), wide[2:7, 40:77]
    out = decode_mlp(x, norm, 1e-5, mlp, impl="triton")
    assert out.isfinite().all()
    assert torch.equal(out, decode_mlp(x.contiguous(), norm.clone(), 1e-5, mlp, impl="triton"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-12, 3e4])
def test_a_stream_beyond_the_weights_range(scale: float, dtype: torch.dtype) -> None:
    """The norm brings x back into float16's range; nothing on the way there may leave it."""
    gate_up, down = torch.randn(60, 40) * 0.1, torch.randn(40, 30) * 0.1
    x, norm = scale * torch.randn(4, 40), 30 * torch.rand(40)
    outs = []
    for impl in ("triton", "reference"):
        mlp = pack(gate_up.to(dtype), down.to(dtype), impl=impl)
        outs.append(decode_mlp(x, norm, 1e-30, mlp, impl=impl) - x)
    assert outs[0].isfinite().all()
    atol = 4 * torch.finfo(dtype).eps * float(outs[1].abs().max()) + scale * 2**-22
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_any_tile(dtype: str) -> None:
    b, h, i = 20, 150, 50
    key = key_of(2 * i, h, DTYPES[dtype])
    default = GATE_UP.default(key, target_of(torch.device(DEVICE)))
    constants = {"BLOCK_N": 32, "BLOCK_K": default.constants["BLOCK_K"]}
    with forced(GATE_UP, key, Config(constants, default.num_warps, default.num_stages)):
        check(b, h, i, dtype)


def test_no_rows_and_float64() -> None:
    mlp = random_mlp(8, 6, torch.float32)
    assert decode_mlp(torch.ones(0, 8), torch.ones(8), 1e-5, mlp, impl="triton").shape == (0, 8)
    x = torch.ones(1, 8, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match="decode_mlp: x is float64"):
        decode_mlp(x, torch.ones(8), 1e-5, mlp, impl="triton")
