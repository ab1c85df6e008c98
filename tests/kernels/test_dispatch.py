"""Choice of implementation, and its replacement in a live process."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import torch

import kernels
from kernels import linear, override, resolve_impl, rms_norm
from kernels.dispatch import implementation, implementation_module
from kernels.errors import InvalidInputError, UnsupportedError
from kernels.override import OPERATORS


@pytest.mark.parametrize(
    ("impl", "device", "expected"),
    [
        ("auto", "cpu", "cpu"),
        ("auto", "cuda", "triton"),
        ("auto", "cuda:3", "triton"),
        ("auto", torch.device("cpu"), "cpu"),
        ("auto", torch.device("cuda", 1), "triton"),
        ("cpu", "cpu", "cpu"),
        ("reference", "cpu", "reference"),
        ("reference", "cuda:0", "reference"),
        ("triton", "cuda:0", "triton"),
    ],
)
def test_resolve(impl: str, device: Any, expected: str) -> None:
    assert resolve_impl(impl, device) == expected


def test_resolve_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match=r"impl is 'fast'; expected one of .*'reference'"):
        resolve_impl("fast", "cpu")
    with pytest.raises(InvalidInputError, match=r"'cpu' takes CPU tensors; got device 'cuda:1'"):
        resolve_impl("cpu", "cuda:1")
    with pytest.raises(UnsupportedError, match=r"device is 'meta'; expected a cpu or cuda"):
        resolve_impl("auto", "meta")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UnsupportedError, match="TRITON_INTERPRET=1"):
        resolve_impl("triton", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_impl("triton", "cpu") == "triton"


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_has_all_implementations(op: str) -> None:
    for impl in ("reference", "cpu", "triton"):
        assert callable(implementation(op, impl))
    assert implementation(op, "reference").__module__.endswith(".reference")
    assert implementation(op, "triton").__module__.endswith(".kernel")


def test_a_missing_implementation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"cpu": "kernels.linear.cpu", "reference": "kernels.linear.reference"}
    monkeypatch.setattr("kernels.dispatch.implementations", lambda op: have)
    with pytest.raises(
        UnsupportedError, match="'linear' has no implementation 'triton'; it has 'cpu', 'reference'"
    ):
        implementation_module.__wrapped__("linear", "triton")
    with pytest.raises(InvalidInputError, match="operator 'softmax' is unknown"):
        implementation("softmax", "cpu")
    with pytest.raises(InvalidInputError, match="impl is 'gpu'"):
        implementation_module("linear", "gpu")


def test_override_reaches_every_thread_and_ends() -> None:
    x, weight = torch.randn(3, 8), torch.ones(8)
    seen: list[torch.Tensor] = []

    def twice(
        x: Any, weight: Any, eps: float, *, residual: Any = None, out_dtype: Any = None
    ) -> Any:
        return 2 * x

    def worker() -> None:
        seen.append(rms_norm.rms_norm(x, weight, 1e-5, impl="cpu"))

    with override("rms_norm", twice):
        thread = threading.Thread(target=worker)
        thread.start()
        thread.join()
        assert torch.equal(rms_norm.rms_norm(x, weight, 1e-5, impl="reference"), 2 * x)
    worker()
    assert torch.equal(seen[0], 2 * x)
    assert not torch.equal(seen[1], 2 * x)


def test_override_nests_and_ends_on_exceptions() -> None:
    before = implementation("linear", "cpu")

    def outer(x: Any, packed: Any, *, residual: Any = None) -> Any:
        return x[:, :1] + 1

    def inner(x: Any, packed: Any, *, residual: Any = None) -> Any:
        return x[:, :1] + 2

    packed = linear.pack(torch.ones(1, 4), impl="cpu")
    x = torch.zeros(2, 4)
    with override("linear", outer):
        with override("linear", inner):
            assert linear.linear(x, packed).tolist() == [[2.0], [2.0]]
        with contextlib.suppress(ZeroDivisionError), override("linear", inner):
            raise ZeroDivisionError
        assert linear.linear(x, packed).tolist() == [[1.0], [1.0]]
    assert implementation("linear", "cpu") is before


def test_overrides_that_end_out_of_order() -> None:
    first, second = (lambda *_: 1), (lambda *_: 2)
    a, b = override("greedy", first), override("greedy", second)
    a.__enter__()
    b.__enter__()
    a.__exit__(None, None, None)
    assert implementation("greedy", "cpu") is second
    b.__exit__(None, None, None)
    assert implementation("greedy", "cpu").__module__ == "kernels.logits.cpu"


def test_override_errors() -> None:
    with pytest.raises(InvalidInputError, match="operator 'mlp' is unknown; expected one of"):
        override("mlp", print).__enter__()
    with pytest.raises(
        InvalidInputError, match=r"override\('linear'\): fn is 3; expected a callable"
    ):
        override("linear", 3).__enter__()  # type: ignore[arg-type]
    assert kernels.override is override
