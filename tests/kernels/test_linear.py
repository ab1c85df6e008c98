"""Packed linear layers: forms of weights, rows for tied embeddings, the fallback."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels import linear
from kernels.errors import UnsupportedError
from kernels.linear import onednn
from kernels.linear.blocked_rows import RowReader
from tests.devices import DEVICE, IMPLS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def expected_kind(dtype: torch.dtype) -> str:
    return "onednn" if onednn.available(dtype) else "plain"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("impl", IMPLS)
def test_packed_linear_describes_itself(impl: str, dtype: torch.dtype) -> None:
    weight, bias = torch.randn(256, 128).to(dtype), torch.randn(256).to(dtype)
    packed = linear.pack(weight, bias, impl=impl)
    assert (packed.impl, packed.dtype) == (impl, dtype)
    assert (packed.in_features, packed.out_features) == (128, 256)
    assert packed.kind == (expected_kind(dtype) if impl == "cpu" else "plain")
    assert packed.nbytes >= weight.nbytes + bias.nbytes
    assert packed.nbytes <= 1.1 * (weight.nbytes + bias.nbytes)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("impl", IMPLS)
def test_residual_is_added_into_a_new_float32_tensor(impl: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    packed = linear.pack(torch.randn(5, 8, dtype=torch.bfloat16), impl=impl)
    residual = torch.randn(3, 5)
    before = residual.clone()
    y = linear.linear(x, packed)
    out = linear.linear(x, packed, residual=residual)
    assert y.dtype == torch.bfloat16
    assert out.dtype == torch.float32
    assert torch.equal(out, before + y.float())
    assert torch.equal(residual, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (5, 3), (64, 64), (65, 33), (130, 7), (193, 65), (999, 64), (2000, 250)]
)
def test_rows_are_the_weights_bit_for_bit(impl: str, dtype: torch.dtype, n: int, k: int) -> None:
    weight = torch.randn(n, k).to(dtype)
    weight[n // 2] = torch.nan
    weight[0, 0] = -0.0
    original = weight.clone()
    packed = linear.pack(weight, impl=impl, keep_rows=True)
    ids = torch.cat([torch.arange(n), torch.tensor([n - 1, 0, n // 2])])
    rows = packed.rows(ids)
    assert torch.equal(rows.view(torch.uint8), original[ids].view(torch.uint8))
    assert packed.rows(ids[:0]).shape == (0, k)
    assert packed.rows_shared
    rows.zero_()  # a copy: the weights stay
    assert torch.equal(packed.rows(ids[:1]).view(torch.uint8), original[:1].view(torch.uint8))


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU that is asked for no row stops for good")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bad", [-1, 10, 10**9])
def test_rows_out_of_range(impl: str, bad: int) -> None:
    packed = linear.pack(torch.randn(10, 8), impl=impl, keep_rows=True)
    with pytest.raises(IndexError):
        packed.rows(torch.tensor([0, bad]))


needs_onednn = pytest.mark.skipif(
    not onednn.available(torch.float32), reason="no oneDNN packing in this torch or on this CPU"
)


@needs_onednn
def test_rows_of_blocked_weights_must_be_asked_for() -> None:
    packed = linear.pack(torch.randn(10, 8), impl="cpu")
    with pytest.raises(UnsupportedError, match="keep_rows=True"):
        packed.rows(torch.tensor([0]))


@needs_onednn
def test_rows_live_on_without_the_packed_linear() -> None:
    weight = torch.randn(300, 40)
    rows = linear.pack(weight.clone(), impl="cpu", keep_rows=True).weight.rows
    torch.randn(300, 40)  # would take the freed memory
    assert torch.equal(rows(torch.arange(300)), weight)


@needs_onednn
@pytest.mark.parametrize("wrong", ["offsets", "values"])
def test_a_layout_that_cannot_be_read_keeps_the_weights(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(300, 32)
    if wrong == "offsets":  # no separable offsets: rows of the probe come out shuffled apart
        monkeypatch.setattr("kernels.linear.blocked_rows._probe_offsets", lambda *_: None)
    else:
        real = onednn._reorder
        monkeypatch.setattr(
            onednn, "_reorder", lambda w: real(w.flip(1) if torch.equal(w, weight) else w)
        )
    packed = linear.pack(weight, impl="cpu", keep_rows=True)
    assert packed.kind == "onednn"
    assert not packed.rows_shared
    assert packed.nbytes >= 2 * weight.nbytes
    assert torch.equal(packed.rows(torch.arange(300)), weight)


@needs_onednn
def test_reader_checks_the_real_matrix() -> None:
    weight = torch.randn(200, 16)
    blocked = onednn._reorder(weight)
    assert RowReader.learn(blocked, weight, onednn._reorder) is not None
    other = weight.clone()
    other[-1, -1] += 1
    assert RowReader.learn(blocked, other, onednn._reorder) is None


def test_fallback_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "available", lambda dtype: False)
    weight, bias = torch.randn(7, 5), torch.randn(7)
    x = torch.randn(3, 5)
    packed = linear.pack(weight, bias, impl="cpu")
    assert packed.kind == "plain"
    assert torch.equal(linear.linear(x, packed), F.linear(x, weight, bias))
    assert torch.equal(packed.rows(torch.tensor([6])), weight[6:])


def test_a_library_without_the_operators_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(weight: torch.Tensor) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute")

    monkeypatch.setattr(onednn, "_reorder", missing)
    assert not onednn.available.__wrapped__(torch.float32)


@needs_onednn
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 3), (16, 16), (64, 64), (300, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocked_weights_own_their_memory(n: int, k: int, dtype: torch.dtype) -> None:
    weight = torch.randn(n, k).to(dtype)
    x = torch.randn(4, k).to(dtype)
    packed = linear.pack(weight, impl="cpu", keep_rows=True)
    before = linear.linear(x, packed)
    weight.zero_()
    assert torch.equal(linear.linear(x, packed), before)
    assert packed.rows(torch.arange(n)).any()


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl != "reference"])
@pytest.mark.parametrize("rows", [1, 2, 5, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_input(impl: str, rows: int, dtype: torch.dtype) -> None:
    packed = linear.pack(torch.randn(30, 20).to(dtype), impl=impl)
    wide = torch.randn(rows, 50).to(dtype)
    for x in (wide[:, 7:27], wide.repeat(2, 1)[::2, 30:], wide.T.contiguous().T[:, :20]):
        assert torch.equal(linear.linear(x, packed), linear.linear(x.contiguous(), packed))


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows(impl: str) -> None:
    packed = linear.pack(torch.randn(7, 5), impl=impl)
    assert linear.linear(torch.ones(0, 5), packed).shape == (0, 7)
    out = linear.linear(torch.ones(0, 5), packed, residual=torch.ones(0, 7))
    assert out.shape == (0, 7)
