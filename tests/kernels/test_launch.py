"""Launches: what is refused before a kernel runs."""

from __future__ import annotations

import pytest
import torch

from kernels.errors import InvalidInputError
from kernels.launch import launch, recording
from kernels.rms_norm.kernel import _rms_norm_kernel
from tests.devices import DEVICE


def test_tensors_of_several_devices_are_refused() -> None:
    here, there = torch.ones(2, 8, device=DEVICE), torch.ones(2, 8, device="meta")
    message = r"kernel rms_norm_kernel: tensors are on (cpu|cuda:0) and meta; expected one device"
    args = (here, here, here[0], there, here, 8, 8, 8, 1e-5)
    with pytest.raises(InvalidInputError, match=message):
        launch(_rms_norm_kernel, (2,), *args, ADD=False, BLOCK=8)
    with recording() as launches, pytest.raises(InvalidInputError, match=message):
        launch(_rms_norm_kernel, (2,), *args, ADD=False, BLOCK=8)
    assert not launches
