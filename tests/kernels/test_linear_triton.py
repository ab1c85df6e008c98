"""The Triton linear layer: odd sizes, split K, batch invariance, what it reads and leaves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import get_op, linear
from kernels.case_inputs import Case
from kernels.errors import UnsupportedError
from kernels.linear.kernel import LINEAR
from kernels.linear.tiles import config_space, default_config, key_of, launch_options, padded_rows
from kernels.target import for_arch, target_of
from kernels.tuning import Config, forced
from kernels.workspace import counters, workspace
from tests.devices import DEVICE

pytestmark = pytest.mark.usefixtures("on_device", "poisoned_memory")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = (1, 5, 97, 129)


def check(t: int, n: int, k: int, dtype: str, bias: bool, residual: bool) -> None:
    params = {"t": t, "n": n, "k": k, "dtype": dtype, "bias": bias, "residual": residual}
    case = Case(f"T{t}-N{n}-K{k}-{dtype}", params)
    for verdict in get_op("linear").check(case, "triton", DEVICE):
        assert verdict.ok, (params, verdict)


def tile(n: int, k: int, dtype: torch.dtype, splits: int) -> Config:
    """The default's tiles, smaller along N, with another number of parts."""
    default = LINEAR.default(key_of(n, k, dtype), target_of(torch.device(DEVICE)))
    constants = {**default.constants, "BLOCK_N": 32, "SPLIT_K": splits}
    return Config(constants, default.num_warps, default.num_stages)


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("n", SIZES)
def test_odd_sizes(n: int, k: int) -> None:
    check(64, n, k, ("fp32", "bf16", "fp16")[(n + k) % 3], n % 4 == 1, k % 4 == 1)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    t=st.integers(20, 64),
    n=st.integers(20, 300),
    k=st.integers(1, 300),
    dtype=st.sampled_from(sorted(DTYPES)),
    bias=st.booleans(),
    residual=st.booleans(),
)
def test_any_shape(t: int, n: int, k: int, dtype: str, bias: bool, residual: bool) -> None:
    check(t, n, k, dtype, bias, residual)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("splits", [1, 2, 4, 8])
@pytest.mark.parametrize("k", [384, 417])
def test_any_number_of_parts(k: int, splits: int, dtype: str) -> None:
    n = 70  # and more parts than there are blocks of columns
    with forced(LINEAR, key_of(n, k, DTYPES[dtype]), tile(n, k, DTYPES[dtype], splits)):
        check(33, n, k, dtype, True, True)


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_rows_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    n, k = 70, 1000
    x, residual = torch.randn(64, k).to(dtype), torch.randn(64, n)
    packed = linear.pack(torch.randn(n, k).to(dtype), torch.randn(n).to(dtype), impl="triton")
    whole = linear.linear(x, packed, residual=residual)
    # Of 1, 3, 17 and 40 rows: tiles of 16, 32 and 64.
    for rows in (slice(0, 1), slice(63, 64), slice(9, 12), slice(30, 47), slice(5, 45)):
        some = linear.linear(x[rows], packed, residual=residual[rows])
        assert torch.equal(some, whole[rows]), rows


def test_the_same_bits_every_time_and_counters_left_at_zero() -> None:
    n, k, device = 50, 200, torch.device(DEVICE)
    x = torch.randn(3, k)
    packed = linear.pack(torch.randn(n, k), impl="triton")
    with forced(LINEAR, key_of(n, k, x.dtype), tile(n, k, x.dtype, 4)):
        first = linear.linear(x, packed)
        for _ in range(20):
            workspace("linear.parts", (4, 3, n), torch.float32, device).fill_(torch.nan)
            assert torch.equal(linear.linear(x, packed), first)
            assert not counters("linear.arrived", 64, device).any()
    assert first.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_nothing_beside_the_operands_counts(dtype: torch.dtype) -> None:
    weight = torch.randn(7, 37).to(dtype)
    weight[3] = torch.nan  # the row after the third's end
    wide = torch.full((9, 100), torch.nan, dtype=dtype)
    wide[2:7, 40:77] = torch.randn(5, 37).to(dtype)
    residual = torch.full((5, 20), torch.nan)
    residual[:, 4:11] = 0.0
    packed = linear.pack(weight, impl="triton")
    out = linear.linear(wide[2:7, 40:77], packed, residual=residual[:, 4:11])
    bad = out.isnan()
    assert bad[:, 3].all()
    assert int(bad.sum()) == 5
    assert torch.equal(
        linear.linear(wide[2:7, 40:77].contiguous(), packed)[:, 4:].float(), out[:, 4:]
    )


def test_weights_stay_plain() -> None:
    weight = torch.randn(20, 12).T  # [12, 20], columns first
    packed = linear.pack(weight, impl="triton")
    assert packed.kind == "plain"
    assert packed.nbytes == weight.nbytes
    x = torch.randn(3, 20)
    torch.testing.assert_close(linear.linear(x, packed), x @ weight.T)


def test_float64_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"linear\.pack: impl 'triton' has no float64"):
        linear.pack(torch.randn(4, 4, dtype=torch.float64), impl="triton")


SHAPES = [(4096, 14336), (28672, 4096), (6144, 4096), (2048, 2048), (128256, 2048), (33, 129)]


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90", "sm_100"])
@pytest.mark.parametrize("split", [True, False])
def test_configurations_fit_the_gpu(arch: str, split: bool) -> None:
    target = for_arch(arch)
    for n, k in SHAPES:
        for dtype in DTYPES.values():
            key = key_of(n, k, dtype)
            space = config_space(key, target, split=split)
            assert space[0] == default_config(key, target, split=split)
            assert len(space) <= 40
            for config in space:
                for rows in (1, 17, 64):
                    stages = launch_options(config, target, rows, dtype, torch.float32)
                    block_n, block_k = config.constants["BLOCK_N"], config.constants["BLOCK_K"]
                    stage = block_k * (block_n * dtype.itemsize + padded_rows(rows) * 4)
                    count = stages["num_stages"]
                    buffers = max(1, count - (arch in ("sm_80", "sm_86")))
                    assert buffers * stage <= target.shared_bytes, (key, config, rows)
                    assert count == config.num_stages or rows > 16 or arch == "sm_86"


@pytest.mark.parametrize(("arch", "stages"), [("sm_80", 3), ("sm_90", 4), ("sm_86", 2)])
def test_many_rows_leave_as_many_stages_as_fit(arch: str, stages: int) -> None:
    # A stage takes 48 KB, of 163, 227 and 99; the first and last have a buffer fewer than stages.
    target, config = for_arch(arch), Config({"BLOCK_N": 64, "BLOCK_K": 128}, 4, 4)
    options = launch_options(config, target, 64, torch.bfloat16, torch.float32)
    assert options == {"num_warps": 4, "num_stages": stages}


def test_down_of_a_large_model_fills_the_gpu() -> None:
    for arch in ("sm_80", "sm_90", "sm_100"):
        target = for_arch(arch)
        constants = default_config((4096, 14336, "bfloat16"), target, split=True).constants
        programs = 4096 // constants["BLOCK_N"] * constants["SPLIT_K"]
        assert programs >= 1.5 * target.sms


def reference_rows(x: Tensor, packed: linear.PackedLinear) -> Tensor:
    return x.float() @ packed.rows(torch.arange(packed.out_features)).float().T


@pytest.mark.parametrize("rows", [64, 65])
def test_both_sides_of_the_change_to_the_library(rows: int) -> None:
    x = torch.randn(rows, 40).bfloat16()
    packed = linear.pack(torch.randn(30, 40).bfloat16(), impl="triton")
    residual = torch.randn(rows, 30)
    out = linear.linear(x, packed, residual=residual)
    assert out.dtype == torch.float32
    expected = residual + reference_rows(x, packed).bfloat16()
    torch.testing.assert_close(out, expected, rtol=2**-7, atol=2**-6)
