"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels import scratch
from tests.devices import DEVICE


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Every tensor that torch allocates without filling it holds NaN (integers: their maximum)."""
    scratch.clear()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    scratch.clear()


@pytest.fixture
def on_device() -> Iterator[None]:
    """Tensors made without a device land on `DEVICE`."""
    with torch.device(DEVICE):
        yield
