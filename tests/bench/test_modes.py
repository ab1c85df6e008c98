"""What the benchmark of modes makes of its runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench.modes import Run, compare, line


class Told:
    """A runner whose runs take what the test says, the last time for all that follow."""

    def __init__(self, *means: float) -> None:
        self.means = list(means)
        self.pipe = SimpleNamespace(cache_metrics_snapshot=lambda: {"pipeline_mode": {}})

    def run(self, rows: int) -> Run:
        mean = self.means.pop(0) if len(self.means) > 1 else self.means[0]
        return Run(mean, mean, [mean / 2, mean / 2])


def test_autos_cold_run_is_told_beside_the_warm_ones() -> None:
    runners: dict[str, Any] = {
        "batch": Told(0.020),
        "continuous 2": Told(0.010),
        "auto": Told(0.030, 0.025, 0.011),
    }
    row = compare(runners, 8, 1)
    assert row["best_fixed"] == "continuous 2"
    assert row["auto_behind_best"] == pytest.approx(0.1)
    assert row["auto_cold_ms"] == pytest.approx(30)
    assert row["auto_cold_behind_best"] == pytest.approx(2)
    assert line(row).endswith("auto +10.0% (+200.0% cold) behind continuous 2")
