"""`lamella doctor`: what it finds, and that what is broken fails."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from pipeline.cli.folders import BUNDLED
from pipeline.cli.health import accelerator, bundled, packages, processor
from tests.pipeline.cli.running import document, invoke


def test_report() -> None:
    result = invoke("doctor")
    assert result.exit_code == 0, result.stdout
    assert result.stderr == ""
    for word in (
        "torch",
        "triton",
        "usable core",
        "packed linears",
        "CUDA",
        "TRITON_INTERPRET",
        "ptxas",
    ):
        assert word in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_json() -> None:
    found = document(invoke("doctor", "--json"))
    assert found["ok"]
    for finding in found["findings"]:
        assert set(finding) == {"subject", "name", "status", "found", "fix"}
        assert bool(finding["fix"]) == (finding["status"] != "ok")


def test_another_owner_of_our_names_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"kernels": ["kernels"], "model": ["Lamella"], "pipeline": ["lamella"]}
    monkeypatch.setattr(packages, "packages_distributions", lambda: owners)
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "import kernels" in result.stdout
    assert "also owned by the distribution kernels" in result.stdout
    assert "import model" not in result.stdout
    assert "pip uninstall kernels" in result.stdout


def test_a_missing_library_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "REQUIRED", ("torch", "no-such-library"))
    result = invoke("doctor", "--json")
    assert result.exit_code == 1
    assert '"pip install no-such-library"' in result.stdout


def test_it_works_where_torch_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith("pipeline.cli.health."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "import of torch halted" in result.stdout


def test_a_broken_bundled_model_fails(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "model")
    assert [f.status for f in bundled.checkpoint(tmp_path / "model")] == ["ok", "ok"]
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    (tmp_path / "model" / "model.safetensors").unlink()
    assert [f.status for f in bundled.checkpoint(tmp_path / "model")] == ["fail", "fail"]


def test_more_threads_than_cores_warn() -> None:
    assert processor.threads(1 << 20).status == "ok"
    assert processor.threads(0).status == "warn"


def test_interpreter_and_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert accelerator.interpreter().status == "warn"
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(accelerator, "installed", lambda name: "3.0")
    assert accelerator.c_compiler(has_cuda=False).status == "warn"
    assert accelerator.c_compiler(has_cuda=True).status == "fail"
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/no/such/ptxas")
    assert accelerator.ptxas().status == "warn"
    monkeypatch.setattr(accelerator, "installed", lambda name: None)
    assert accelerator.triton(has_cuda=True).status == "fail"
    assert accelerator.triton(has_cuda=False).status == "ok"
