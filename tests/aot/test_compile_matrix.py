"""Every kernel that models launch compiles for every architecture, spills nothing and fits.

With the Triton that is installed, and with the oldest that is supported, which `make test` unpacks
beside it. Compiled in processes without an interpreter; what was
compiled before, from the same source by the same Triton, comes from the cache.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kernels import OPS
from kernels.aot import Request, compile_matrix, default_archs

OLDEST = Path(sys.prefix) / "triton-3.6"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("op", OPS)
def test_installed_triton(op: str) -> None:
    _require_good(op, default_archs())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("op", OPS)
def test_oldest_triton(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (OLDEST / "triton").is_dir():
        pytest.skip(f"no Triton 3.6 in {OLDEST}; `make test` puts it there")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(OLDEST), *_paths()]))
    # It is what CUDA builds of torch bring; AMD's bring their own.
    _require_good(op, tuple(arch for arch in default_archs() if arch.startswith("sm_")))


def _paths() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _require_good(op: str, archs: tuple[str, ...]) -> None:
    rows = compile_matrix(Request((op,), archs))
    assert {row.arch for row in rows} == set(archs)
    red = [f"{r.kernel} {r.variant} {r.arch}: {'; '.join(r.problems)}" for r in rows if not r.ok]
    assert not red, "\n".join(red)
