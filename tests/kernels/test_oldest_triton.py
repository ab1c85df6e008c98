"""Kernels under the interpreter of the oldest supported Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OLDEST = Path(sys.prefix) / "triton-3.6"
ROOT = Path(__file__).resolve().parents[2]
CHECK = """
import sys

import triton

from kernels import OPS

assert triton.__version__.startswith("3.6.")
for op in OPS.values():
    small = [case for case in op.cases if not case.bench]
    for case in small[:: max(1, len(small) // 4)]:
        for verdict in op.check(case, "triton"):
            if not verdict.ok:
                sys.exit(f"{op.name} {case.name}: {verdict}")
"""


def test_interpreted_within_budget() -> None:
    if not (OLDEST / "triton").is_dir():
        pytest.skip(f"no Triton 3.6 in {OLDEST}; `make test` puts it there")
    paths = [str(OLDEST), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
