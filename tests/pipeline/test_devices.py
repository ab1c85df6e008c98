"""Devices of stages: ordinals, defaults, and the machines that lack them."""

from __future__ import annotations

import pytest
import torch

from kernels.errors import InvalidInputError, UnsupportedError
from pipeline.devices import default_device, parse_ordinals, resolve_devices


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("impl", ["auto", "cpu", "reference"])
def test_no_ordinal_is_the_default_device(impl: str) -> None:
    assert resolve_devices([None, None], impl) == [torch.device("cpu")] * 2


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("impl", ["auto", "cpu", "reference"])
def test_ordinals_without_cuda_are_not_supported(impl: str) -> None:
    with pytest.raises(UnsupportedError, match=r"ordinals \[None, 1\].*device-scoped execution"):
        resolve_devices([None, 1], impl)


@pytest.mark.usefixtures("two_gpus")
def test_ordinals_are_cuda_devices() -> None:
    devices = resolve_devices([1, 0], "reference")
    assert devices == [torch.device("cuda", 1), torch.device("cuda", 0)]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("ordinal", [2, -1])
def test_an_ordinal_that_is_not_there_names_those_that_are(ordinal: int) -> None:
    with pytest.raises(
        InvalidInputError, match=rf"stage 1 asks for device ordinal {ordinal}.* has \[0, 1\]"
    ):
        resolve_devices([0, ordinal], "reference")


@pytest.mark.usefixtures("two_gpus")
def test_the_cpu_implementation_takes_no_ordinals() -> None:
    with pytest.raises(UnsupportedError, match="device-scoped execution: it is the cpu impl"):
        resolve_devices([0], "cpu")
    assert default_device("cpu") == default_device("reference") == torch.device("cpu")


def test_ordinals_are_read_from_text() -> None:
    assert parse_ordinals("0, cuda:1,CPU") == [0, 1, None]


@pytest.mark.parametrize("text", ["", "0,", "gpu", "cuda:", "-1"])
def test_text_that_names_no_device_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="is not an ordinal; expected a number"):
        parse_ordinals(text)
