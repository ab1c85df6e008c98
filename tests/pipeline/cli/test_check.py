"""`lamella check`: verdicts of ours and of a researcher's own kernels."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.pipeline.cli.running import document, finish, invoke, spawn

CHECK = ("check", "--device", "cpu")

OWN = """
import os, sys, torch

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

def endless(*args, **options):
    while True:
        pass

def announced(*args, **options):
    print("endless", flush=True)
    endless()

def crashing(*args, **options):
    os._exit(7)

def leaving(*args, **options):
    sys.exit(0)

def greedy(hidden, norm_weight, eps, head):
    from kernels.logits.reference import greedy
    return greedy(hidden, norm_weight, eps, head)

def narrow(*args):
    return greedy(*args).int()

def column(*args):
    return greedy(*args)[:, None]

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


def test_shapes_and_dtypes_are_the_references(own: str) -> None:
    names = [f"{own}:{name}" for name in ("greedy", "narrow", "column")]
    chosen = [part for name in names for part in ("--impl", name)]
    result = invoke(*CHECK, "greedy", "--case", "B1-H64-V1000-bf16", "--json", *chosen)
    assert result.exit_code == 1
    good, narrow, column = json.loads(result.stdout)["cases"]
    assert good["ok"]
    assert narrow["message"].endswith("is int32 [1]; the reference's is int64 [1]")
    assert column["message"].endswith("is int64 [1, 1]; the reference's is int64 [1]")


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


def test_what_ends_a_process_is_red_alone(own: str) -> None:
    names = [f"{own}:{name}" for name in ("endless", "crashing", "leaving", "rms_norm")]
    chosen = [part for name in names for part in ("--impl", name)]
    result = invoke(
        *CHECK, "rms_norm", "--case", "T1-H64-fp32", "--json", "--timeout", "8", *chosen
    )
    assert result.exit_code == 1
    rows = {row["impl"].split(":")[1]: row for row in json.loads(result.stdout)["cases"]}
    assert rows["endless"]["message"] == "took longer than 8 s"
    assert rows["crashing"]["message"] == "the process ended with exit code 7"
    assert rows["leaving"]["message"] == "SystemExit: 0"
    assert [name for name, row in rows.items() if row["ok"]] == ["rms_norm"]


@pytest.mark.parametrize(
    "command",
    [
        (*CHECK, "rms_norm", "--case", "T1-H64-fp32"),
        ("bench", "--device", "cpu", "rms_norm", "--case", "T1-"),
        ("aot", "rms_norm", "--arch", "sm_90"),
    ],
    ids=lambda command: command[0],
)
def test_an_interrupted_command_leaves_no_process(command: tuple[str, ...], own: str) -> None:
    process = spawn(*command, "--impl", f"{own}:announced", start_new_session=True)
    assert process.stderr is not None
    while process.stderr.readline() != "endless\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    # Standard error ends when the last process that holds it has.
    assert finish(process)[0] == 130
