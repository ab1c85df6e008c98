"""int8 codes and scales against an independent oracle in numpy, over any finite floats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import KVLayout, rope_append
from kernels.quantization import dequantize, quantize
from tests.devices import DEVICE, IMPLS

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
SMALLEST = 2.0**-149


def numpy_oracle(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """the layout's rule, element by element."""
    codes = np.zeros(x.shape, np.int8)
    scales = np.zeros(x.shape[:-1], np.float32)
    for row in np.ndindex(scales.shape):
        scale = np.float32(np.float32(max(abs(e) for e in x[row])) / np.float32(127))
        scales[row] = scale
        for column, element in enumerate(x[row]):
            if scale > 0:
                quotient = np.float32(element) / scale
                codes[row][column] = min(127, max(-127, round(float(quotient))))
    return codes, scales


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[FLOATS] * 6), min_size=1, max_size=4))
@example([(0.0,) * 6, (-0.0, 0.0, 0.0, 0.0, 0.0, -0.0)])
@example([(SMALLEST, -SMALLEST, 0.0, 0.0, 0.0, 0.0), (63 * SMALLEST,) * 6, (64 * SMALLEST,) * 6])
@example([(190 * SMALLEST, -191 * SMALLEST, 100 * SMALLEST, 0.0, 1.0 * SMALLEST, 0.0)])
@example([(3.4028234663852886e38, -3.4028234663852886e38, 1.0, 1e38, 0.0, 1e-45)])
def test_codes_and_scales_equal_the_oracle(rows: list[tuple[float, ...]]) -> None:
    x = np.array(rows, np.float32)
    codes, scale = quantize(torch.from_numpy(x))
    expected_codes, expected_scale = numpy_oracle(x)
    assert codes.dtype == torch.int8
    assert scale.dtype == torch.float32
    np.testing.assert_array_equal(codes.numpy(), expected_codes)
    np.testing.assert_array_equal(scale.numpy(), expected_scale)
    # The bound of quantisation: half a step, or what a subnormal scale's own rounding costs.
    error = np.abs(dequantize(codes, scale, torch.float64).numpy() - x.astype(np.float64))
    bound = expected_scale.astype(np.float64) * (0.5 + 1e-5) + 127 * SMALLEST
    assert (error <= bound[:, None]).all()


class Divisors(TorchDispatchMode):
    """Notes what is divided by."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.div, torch.ops.aten.div_):
            self.seen.append(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("on_device")
def test_divides_by_tensors_only() -> None:
    with Divisors() as divisors:
        quantize(torch.randn(3, 8))
    assert len(divisors.seen) == 2
    # By a number, or a tensor of none, CUDA multiplies by the inverse, and the scale is not IEEE's.
    assert all(isinstance(seen, torch.Tensor) and seen.dim() > 0 for seen in divisors.seen)


@pytest.mark.usefixtures("on_device")
def test_scales_are_ieee_quotients() -> None:
    x = torch.rand(1000, 1) + 0.5
    expected = x.cpu().numpy()[:, 0] / np.float32(127)
    np.testing.assert_array_equal(quantize(x)[1].cpu().numpy(), expected)


def test_rounds_half_to_even_and_does_not_truncate() -> None:
    x = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.6, -0.6, 126.51])
    codes, scale = quantize(x)
    assert scale == 1.0
    assert codes.tolist() == [127, 0, 2, 2, 0, -2, -2, 1, -1, 127]


def test_rows_are_quantised_apart() -> None:
    x = torch.randn(5, 3, 64) * torch.tensor([1e-30, 1.0, 1e30]).view(1, 3, 1)
    codes, scale = quantize(x)
    assert scale.shape == (5, 3)
    assert codes.abs().amax(-1).eq(127).all()


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("impl", IMPLS)
def test_the_cache_holds_the_oracles_codes(impl: str) -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 9, 2, 64).unbind()
    k[3, 1] = 0
    v[4] *= 1e-44
    pool = KVLayout("int8", 4, 2, 64).allocate(5, DEVICE)
    slots = torch.randperm(20)[:9]
    cos, sin = torch.ones(9, 32), torch.zeros(9, 32)
    rope_append.rope_append(torch.randn(9, 4, 64), k, v, cos, sin, pool, slots, impl=impl)
    for x, codes, scale in ((k, pool.k, pool.k_scale), (v, pool.v, pool.v_scale)):
        assert scale is not None
        expected_codes, expected_scale = numpy_oracle(x.cpu().numpy())
        np.testing.assert_array_equal(codes.flatten(0, 1)[slots].cpu().numpy(), expected_codes)
        np.testing.assert_array_equal(scale.flatten(0, 1)[slots].cpu().numpy(), expected_scale)
