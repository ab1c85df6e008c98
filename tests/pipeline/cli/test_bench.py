"""`lamella bench`: figures of ours and of peers, none of a kernel whose check is red."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kernels.benchmarking import roofline, run
from pipeline.cli.bench import figures
from tests.pipeline.cli.running import document, invoke, only_line

BENCH = ("bench", "rms_norm", "--case", "T1-", "--device", "cpu", "--seconds", "0.02")
OWN = """
import torch

def rms_norm(x, weight, eps, *, residual=None, out_dtype=None, factor=1.0):
    s = x + residual
    y = s * torch.rsqrt(s.square().mean(-1, keepdim=True) + eps) * (weight.float() * factor)
    return y.to(out_dtype or x.dtype), s

def inexact(*args, **options):
    return rms_norm(*args, **options, factor=1.05)

def broken(*args, **options):
    raise ValueError("out of luck")

def crashing(*args, **options):
    import os
    os._exit(7)
"""


def test_figures(tmp_path: Path) -> None:
    picture = tmp_path / "roofline.svg"
    found = document(invoke(*BENCH, "--json", "--plot", str(picture)))
    assert found["refused"] == []
    assert [(row["impl"], row["peer"]) for row in found["results"]] == [
        ("cpu", False),
        ("reference", False),
        ("torch", True),
    ]
    for row in found["results"]:
        assert (row["op"], row["case"]) == ("rms_norm", "T1-H2048-bf16-residual")
        moved = 2048 * (3 * 4 + 2) + 2048 * 2
        assert row["gb_per_s"] == pytest.approx(moved / row["median_us"] / 1e3)
        assert row["fraction_of_copy"] == pytest.approx(row["gb_per_s"] / found["copy_gb_per_s"])
        assert row["tflop_per_s"] == pytest.approx(5 * 2048 / row["median_us"] / 1e6)
        assert row["spread"] >= 0
    assert found["environment"]["load_average"] >= 0
    assert {"device", "torch", "triton", "commit", "date"} <= set(found["environment"])
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize(("spread", "told"), [(0.25, "25%"), (0.26, "26% noisy")])
def test_a_wide_spread_is_told(spread: float, told: str) -> None:
    row = {"median_us": 1.0, "gb_per_s": 1.0, "fraction_of_copy": 1.0, "tflop_per_s": 1.0}
    assert figures({**row, "spread": spread})[1] == told


def test_a_red_kernel_is_not_timed(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    chosen = [part for n in ("rms_norm", "inexact", "broken") for part in ("--impl", f"{own}:{n}")]
    result = invoke(*BENCH, "--json", *chosen)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [row["impl"] for row in found["results"]] == [f"{own}:rms_norm", "torch"]
    inexact, broken = (row["refused"] for row in found["refused"])
    assert inexact.startswith("its check is red: y is off by ")
    assert broken == "ValueError: out of luck"


def test_what_ends_a_process_is_refused_alone(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    chosen = [part for n in ("crashing", "rms_norm") for part in ("--impl", f"{own}:{n}")]
    result = invoke(*BENCH, "--json", *chosen)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [row["impl"] for row in found["results"]] == [f"{own}:rms_norm", "torch"]
    (crashing,) = found["refused"]
    assert crashing["refused"] == "the process ended with exit code 7"


def test_table() -> None:
    result = invoke(*BENCH, "--impl", "cpu")
    assert result.exit_code == 0
    assert "1 figure of ours, each checked before it was timed" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    result = invoke(*BENCH, "--plot", str(tmp_path / "x.png"))
    assert result.exit_code == 1
    message = "error: matplotlib is not installed: pip install 'lamella[plot]'"
    assert only_line(result.stderr) == message


def test_a_picture_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "bench", lambda *args, **options: pytest.fail("was timed"))
    (tmp_path / "folder.png").mkdir()
    for path, why in (
        (tmp_path / "folder.png", "cannot be written: Is a directory"),
        (Path("/proc/x.png"), "cannot be written: "),
    ):
        result = invoke(*BENCH, "--plot", str(path))
        assert result.exit_code == 2
        assert why in only_line(result.stderr)


def test_figures_are_told_before_the_picture_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(roofline, "plot", fail)
    picture = tmp_path / "x.png"
    result = invoke(*BENCH, "--impl", "cpu", "--plot", str(picture))
    assert result.exit_code == 1
    assert "1 figure of ours" in result.stdout
    assert not picture.exists()
