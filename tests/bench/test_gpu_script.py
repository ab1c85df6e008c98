"""`make gpu`, rehearsed on the CPU: parts report, and none takes another with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import gpu

SCRIPT = Path(gpu.__file__)


def rehearse(out: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(out), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environment}, cwd=out, timeout=120, check=False
    )
    (path,) = out.glob("gpu-*.json")
    loaded: dict[str, Any] = json.loads(path.read_text())
    assert [p.name for p in out.iterdir() if p.suffix != ".json"] == []
    assert {row["verdict"] for row in loaded["targets"]} == {"not measured"}  # of a CPU
    return done.returncode, loaded["parts"]


def test_rehearsal(tmp_path: Path) -> None:
    code, parts = rehearse(tmp_path, "--only", "look,check,bench,tune,step", "--minutes", "4")
    assert code == 0
    assert {part["status"] for part in parts.values()} == {"done"}
    assert parts["look"]["environment"]["torch"]
    assert parts["check"]["ok"]
    assert parts["check"]["done"] == parts["check"]["cases"]
    assert {row["impl"] for row in parts["bench"]["results"]} == {"cpu", "reference", "torch"}
    assert parts["tune"]["skipped"] == "needs a CUDA GPU"
    assert parts["step"]["results"][0]["tokens_per_s"] > 0


def test_a_part_that_takes_too_long_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    broken = tmp_path / "modules" / "sitecustomize.py"
    broken.write_text(
        "import sys, time\n"
        "if 'kernels.checking.worker' in ' '.join(sys.orig_argv): time.sleep(60)\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    code, parts = rehearse(
        out, "--only", "check,tune", "--minutes", "0.2", PYTHONPATH=str(broken.parent)
    )
    assert code == 1
    assert parts["check"]["status"] == "out of time"
    assert not parts["check"]["ok"]
    assert parts["tune"]["status"] == "done"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("look", {"status": "failed"}),
        ("check", {"status": "done", "ok": False, "red": [{}], "done": 2, "cases": 2}),
        ("check", {"status": "out of time", "ok": False, "red": [], "done": 1, "cases": 2}),
        ("check", {"status": "out of time"}),
        ("bench", {"status": "done", "refused": [{"peer": False}, {"peer": True}]}),
        ("tests", {"status": "done", "exit_code": 1, "failed": ["FAILED one"]}),
        ("tests", {"status": "done", "exit_code": 5, "failed": []}),
        ("tests", {"status": "out of time", "failed": ["FAILED one"]}),
    ],
)
def test_what_is_no_success(name: str, part: dict[str, Any]) -> None:
    assert gpu.wrongs(name, part)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("check", {"status": "done", "ok": True, "red": [], "done": 2, "cases": 2}),
        ("bench", {"status": "out of time", "refused": [{"peer": True}]}),
        ("tune", {"status": "done", "skipped": "needs a CUDA GPU"}),
        ("tests", {"status": "done", "exit_code": 0, "failed": []}),
        ("tests", {"status": "out of time", "failed": []}),
    ],
)
def test_what_is_a_success(name: str, part: dict[str, Any]) -> None:
    assert gpu.wrongs(name, part) == []


def test_it_needs_no_command_line_package() -> None:
    code = (
        "import sys\n"
        "for name in ('typer', 'rich', 'pytest', 'hypothesis', 'safetensors', 'tokenizers'):\n"
        "    sys.modules[name] = None\n"
        "from scripts import gpu\n"
        "import kernels.checking, kernels.benchmarking.run, kernels.benchmarking.worker\n"
        "import kernels.checking.worker, tests.bench.targets\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
