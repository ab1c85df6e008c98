"""`lamella eval`: perplexity of a text, by default the held-out one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli.folders import BUNDLED, HELD_OUT
from tests.pipeline.cli.running import document, invoke, only_line


def test_held_out_text_as_after_training() -> None:
    recorded = json.loads((BUNDLED / "training.json").read_text())["held_out"]
    found = document(invoke("eval", "--json", "--kv-dtype", "fp32", "--dtype", "fp32"))
    assert set(found) == {"perplexity", "nll_per_token", "tokens"}
    assert found["tokens"] == recorded["tokens"]
    # The windows of training are one token shorter.
    assert found["perplexity"] == pytest.approx(recorded["perplexity"], rel=0.01)


def test_file_and_standard_input_agree(tmp_path: Path) -> None:
    text = HELD_OUT.read_text()[:400]
    (tmp_path / "text.txt").write_text(text)
    found = document(invoke("eval", "--json", str(tmp_path / "text.txt")))
    assert document(invoke("eval", "--json", "--stages", "2", "-", given=text)) == found
    assert document(invoke("eval", "--json", "--window", "16", "-", given=text)) != found


def test_table(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("import os\n")
    result = invoke("eval", str(tmp_path / "text.txt"))
    assert result.exit_code == 0
    assert result.stdout.split()[:4] == ["perplexity", "nats", "per", "token"]
    assert "tokens in" in result.stderr
    assert invoke("eval", "--quiet", str(tmp_path / "text.txt")).stderr == ""


def test_empty_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("")
    result = invoke("eval", "--quiet", str(tmp_path / "text.txt"))
    assert result.exit_code == 1
    only_line(result.stderr)
