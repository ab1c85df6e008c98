"""Timing: as many runs as the seconds allow."""

from __future__ import annotations

from kernels.benchmarking.timing import time_call


def test_seconds_decide() -> None:
    few, many = (time_call(lambda: None, "cpu", seconds).runs for seconds in (0.0, 0.5))
    assert few == 5
    assert many > 500  # of 0.2 ms each, on a machine that is busy with something else
