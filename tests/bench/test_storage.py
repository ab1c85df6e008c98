"""Baselines of operators: timed only when asked for, kept apart by device and versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.benchmarking import environment
from tests.bench.storage import storage

ROOT = Path(__file__).parents[2]


def pytest_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "tests/bench/test_operators.py", "-q", *arguments]
    # One of several workers of pytest itself, it would time nothing.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)


def test_folders_tell_devices_and_versions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    here = storage("cpu")
    assert torch.__version__.split("+")[0] in here.name
    monkeypatch.setattr(environment, "package_version", lambda name: "0.0")
    other_triton = storage("cpu")
    monkeypatch.setattr(environment, "device_name", lambda device: "NVIDIA H100")
    assert len({here, other_triton, storage("cpu")}) == 3
    assert storage("cpu").name.startswith("nvidia-h100-torch-")


def test_operators_are_timed_only_when_asked_for(tmp_path: Path) -> None:
    assert "deselected" in pytest_run("--collect-only").stdout
    options = ("-m", "bench", "-k", "rms_norm-T1-", "--benchmark-max-time=0.05")
    store = f"--benchmark-storage=file://{tmp_path}"
    done = pytest_run(*options, store, "--benchmark-save=base")
    assert done.returncode == 0, done.stdout
    (path,) = tmp_path.rglob("*_base.json")
    bound = ("--benchmark-compare", "--benchmark-compare-fail=median:10000%")
    assert pytest_run(*options, store, *bound).returncode == 0
    stored = json.loads(path.read_text())
    stored["benchmarks"][0]["stats"]["median"] /= 1e6
    path.write_text(json.dumps(stored))
    slower = pytest_run(*options, store, *bound)
    assert slower.returncode == 1
    assert "Performance has regressed" in slower.stdout + slower.stderr
