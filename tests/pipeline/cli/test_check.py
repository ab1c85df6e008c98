"""`lamella check`: verdicts of ours and of a researcher's own kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.cli.running import document, invoke

CHECK = ("check", "--device", "cpu")

OWN = """
import torch

def rms_norm(x, weight, eps, *, residual=None, out_dtype=None, factor=1.0):
    s = x if residual is None else x + residual
    scale = torch.rsqrt(s.square().mean(-1, keepdim=True) + eps)
    y = (s * scale * (weight * factor)).to(out_dtype or x.dtype)
    return y if residual is None else (y, s)

def inexact(*args, **options):
    return rms_norm(*args, **options, factor=1.05)

def broken(*args, **options):
    print("about to break")
    raise ValueError("out of\\nluck")

def logits(hidden, norm_weight, eps, head):
    assert head.impl == "cpu", head.impl
    return head.weight.matmul(rms_norm(hidden, norm_weight, eps).to(head.dtype), None).float()
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


def test_every_implementation_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = document(invoke(*CHECK, "rms_norm", "--json", "--case", "H97"))
    assert found["ok"]
    assert {row["impl"] for row in found["cases"]} == {"triton", "cpu", "reference"}
    assert {row["output"] for row in found["cases"]} == {"y", "s"}
    assert len(found["cases"]) == 3 * 3 * 2
    for row in found["cases"]:
        assert (row["op"], row["ok"]) == ("rms_norm", True)
        assert 0 < row["mean_error"] <= row["error"] <= row["budget"]


def test_own_kernels_are_measured_like_ours(own: str) -> None:
    names = [f"{own}:{name}" for name in ("rms_norm", "inexact", "broken")]
    chosen = [part for name in names for part in ("--impl", name)]
    result = invoke(*CHECK, "rms_norm", "--case", "T1-H64-fp32", "--json", *chosen)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    good, inexact, broken = found["cases"]
    assert (found["ok"], good["ok"], inexact["ok"], broken["ok"]) == (False, True, False, False)
    assert inexact["error"] > 100 * inexact["budget"]
    assert (broken["error"], broken["message"]) == (None, "ValueError: out of luck")


def test_table(own: str) -> None:
    result = invoke(*CHECK, "rms_norm", "--case", "T1-H64", "--impl", f"{own}:inexact")
    assert result.exit_code == 1
    assert "3 of 3 checks red: rms_norm" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_own_kernels_get_the_weights_they_ask_for(own: str) -> None:
    options = ("--case", "B1-H64-V1000-bf16", "--impl", f"{own}:logits")
    assert document(invoke(*CHECK, "logits", *options, "--like", "cpu", "--json"))["ok"]
    result = invoke(*CHECK, "logits", *options)
    assert result.exit_code == 1
    assert "AssertionError: reference" in " ".join(result.stdout.split())


def test_own_kernels_in_a_whole_run(own: str) -> None:
    run = ("parity", "x", "--steps", "1", "--stages", "1", "-q")
    assert invoke(*run, "--impl", f"{own}:rms_norm").exit_code == 0
    assert invoke(*run, "--override", f"rms_norm={own}:rms_norm").exit_code == 0
    for name in ("parity", "generate", "eval"):
        result = invoke(
            name, *([] if name == "eval" else ["x"]), "--override", f"rms_norm={own}:broken"
        )
        assert result.exit_code == 1
        assert "out of luck" in result.stderr
