"""Failures: exit code 1 and one line on standard error; a traceback only if asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.cli.folders import BUNDLED
from pipeline.llama_pipeline import LlamaPipeline
from tests.pipeline.cli.running import invoke, only_line


def fail(*args: object, **options: object) -> None:
    raise ZeroDivisionError("of all\nthings")


def test_missing_prompts_file() -> None:
    result = invoke("generate", "--prompts-file", "/no/such/file")
    assert result.exit_code == 1
    assert only_line(result.stderr) == "error: /no/such/file: No such file or directory"


def test_missing_text() -> None:
    result = invoke("eval", "/no/such/file")
    assert result.exit_code == 1
    assert only_line(result.stderr) == "error: /no/such/file: No such file or directory"


def test_a_folder_for_prompts(tmp_path: Path) -> None:
    result = invoke("generate", "--prompts-file", str(tmp_path))
    assert result.exit_code == 1
    assert only_line(result.stderr) == f"error: {tmp_path}: Is a directory"


def test_broken_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = invoke("plan", "--model", str(tmp_path / "model"))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "model.safetensors" in only_line(result.stderr)


def test_what_this_build_has_not() -> None:
    result = invoke("generate", "--bridge", "distributed", "x")
    assert result.exit_code == 1
    needs = "error: bridge 'distributed' needs the processes of torchrun"
    assert only_line(result.stderr).startswith(needs)


def test_a_bridge_that_the_devices_cannot_have() -> None:
    result = invoke("generate", "--impl", "cpu", "--bridge", "cuda_peer", "x")
    assert result.exit_code == 1
    line = only_line(result.stderr)
    assert line.startswith("error: bridge 'cuda_peer' copies between CUDA devices, and stage 0 is")


def test_prompt_that_can_never_fit() -> None:
    result = invoke("generate", "--quiet", "--max-seq-len", "8", "x")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "at most 8" in only_line(result.stderr)


def test_unexpected_errors_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaPipeline, "from_pretrained", fail)
    result = invoke("generate", "x")
    assert result.exit_code == 1
    assert only_line(result.stderr) == "error: ZeroDivisionError: of all things"


def test_traceback_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaPipeline, "from_pretrained", fail)
    result = invoke("generate", "--traceback", "x")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert result.stderr.endswith("error: ZeroDivisionError: of all things\n")


def test_nothing_of_a_document_on_failure() -> None:
    result = invoke("generate", "--json", "--quiet", "--kv-tokens", "16", "x")
    assert result.exit_code == 1
    assert result.stdout == ""
    only_line(result.stderr)


def test_interrupt_closes_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    close = LlamaPipeline.close

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    def note(pipeline: LlamaPipeline) -> None:
        closed.append(pipeline)
        close(pipeline)

    monkeypatch.setattr(LlamaPipeline, "stream", interrupt)
    monkeypatch.setattr(LlamaPipeline, "close", note)
    result = invoke("generate", "--quiet", "x")
    assert result.exit_code == 130
    assert only_line(result.stderr) == "interrupted"
    assert closed
