"""`lamella parity`: its verdict and its exit code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import pipeline.parity
from pipeline.parity import compare
from tests.pipeline.cli.running import document, invoke


def test_split_equals_whole() -> None:
    result = invoke("parity", "--kv-dtype", "int8", "--steps", "2")
    assert result.exit_code == 0, result.stderr
    assert "split equals whole, bit for bit" in result.stdout
    assert " auto " in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "stage0:cpu:layers=0-1;stage1:cpu:layers=2-3" in result.stderr
    assert "stage0:cpu:layers=0-3 " in result.stderr


def test_json() -> None:
    found = document(
        invoke("parity", "--json", "-q", "--splits", "1,1,2", "-n", "1", "import os", "x")
    )
    keys = ("max_abs_diff", "bitwise_equal", "rows", "stages", "mode", "kv_dtype", "ok")
    assert {key: found[key] for key in keys} == {
        "max_abs_diff": 0.0,
        "bitwise_equal": True,
        "rows": 4,
        "stages": 3,
        "mode": "auto",
        "kv_dtype": "bf16",
        "ok": True,
    }


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_a_difference_fails(difference: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def differ(*args: Any, **options: Any) -> Any:
        report = compare(*args, **options)
        return replace(report, ok=False, bitwise_equal=False, max_abs_diff=difference)

    monkeypatch.setattr(pipeline.parity, "compare", differ)
    result = invoke("parity", "-n", "0", "x")
    assert result.exit_code == 1
    assert "split differs from whole" in result.stdout
    assert invoke("parity", "--json", "-n", "0", "x").exit_code == 1
