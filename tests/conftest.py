"""`--device`: where the tests of Triton kernels run; set before any kernel is decorated."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="Triton kernels run: on the cpu in Triton's interpreter (default), on cuda compiled",
    )


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--device")
    os.environ["LAMELLA_TEST_DEVICE"] = device
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ.pop("TRITON_INTERPRET", None)
