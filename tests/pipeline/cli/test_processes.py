"""The command in a process of its own: streams, exit codes, pipes, Ctrl-C, start-up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.folders import DEMO_PROMPTS
from tests.pipeline.cli.running import environment, finish, only_line, spawn


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_start_up_loads_nothing_heavy(argument: str) -> None:
    code = (
        f"import sys, atexit; sys.argv = ['lamella', '{argument}']\n"
        "from pipeline.cli import main\n"
        "heavy = ('torch', 'numpy', 'tokenizers', 'safetensors', 'transformers', 'triton')\n"
        "atexit.register(lambda: print([n for n in heavy if n in sys.modules], file=sys.stderr))\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr == "[]\n"
    assert "lamella" in done.stdout


def test_document_from_piped_prompts() -> None:
    code, out, err = finish(
        spawn("generate", "--json", "--stages", "2", "-n", "4"), "import os\n\nclass A\n"
    )
    assert code == 0
    found = json.loads(out)
    assert [done["prompt"] for done in found["completions"]] == ["import os", "class A"]
    assert "\x1b" not in err
    assert "stage0:cpu:layers=0-1;stage1:cpu:layers=2-3" in err


def test_exit_codes() -> None:
    code, out, err = finish(spawn("generate", "--max-batch", "0", "x"))
    assert (code, out) == (2, "")
    assert only_line(err).startswith("error: --max-batch 0: ")
    code, out, err = finish(spawn("generate", "--quiet", "--kv-tokens", "1", "x"))
    assert (code, out) == (1, "")
    assert only_line(err).startswith("error: ")


def test_demonstration_without_standard_input() -> None:
    code, out, _ = finish(spawn("generate", "-q", "-n", "1", stdin=subprocess.DEVNULL))
    assert code == 0
    assert out.count("--- ") == len(DEMO_PROMPTS.read_text().splitlines())


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and signals of another kind")
def test_reader_that_leaves() -> None:
    process = spawn("generate", "--quiet", "-n", "1000", "x")
    assert process.stdout is not None
    assert process.stdout.read(1) == "x"
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr is not None
    assert process.stderr.read() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and signals of another kind")
def test_ctrl_c() -> None:
    process = spawn("generate", "--quiet", "--stages", "2", "-n", "1000", "x")
    assert process.stdout is not None
    assert process.stdout.read(2)[0] == "x"  # text comes: stages are at work
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert only_line(err) == "interrupted"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:
        code, _, err = finish(spawn("--version", stdout=full))
    assert code == 1
    assert only_line(err) == "error: No space left on device"
