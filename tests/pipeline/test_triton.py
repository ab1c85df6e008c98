"""The bundled model with Triton's kernels, from Python and from the command line.

Without a GPU they run in Triton's interpreter. Weights are float32, so that on a GPU no near-tie
between two tokens is decided by how tensor cores sum.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import torch

from kernels import rms_norm
from pipeline.llama_pipeline import LlamaPipeline
from tests.devices import DEVICE
from tests.pipeline.cli.running import ROOT, environment, only_line

PROMPTS = ["import os\n", "def read(path):\n    "]


def greedy_tokens(impl: str, tokens: int) -> list[list[int]]:
    options = {"impl": impl, "dtype": "fp32", "kv_dtype": "int8", "threads": 1}
    with LlamaPipeline.from_pretrained(stages=2, **options) as pipeline:
        done = pipeline.generate(PROMPTS, max_new_tokens=tokens).completions
    return [completion.tokens for completion in done]


def test_greedy_tokens_are_the_references() -> None:
    found = greedy_tokens("triton", 8)
    assert found == greedy_tokens("reference", 8)
    assert [len(tokens) for tokens in found] == [8, 8]
    assert found[0] != found[1]


def command(*arguments: str, interpreted: bool) -> subprocess.CompletedProcess[str]:
    variables = environment()
    variables.pop("TRITON_INTERPRET", None)
    if interpreted:
        variables["TRITON_INTERPRET"] = "1"
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "generate", "--impl", "triton", "-q", *arguments],
        env=variables,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command_line() -> None:
    arguments = ("--dtype", "fp32", "--kv-dtype", "int8", "--stages", "2", "-n", "2", "--json")
    done = command(*arguments, PROMPTS[0], interpreted=DEVICE == "cpu")
    assert done.returncode == 0, done.stderr
    [completion] = json.loads(done.stdout)["completions"]
    assert completion["tokens"] == greedy_tokens("reference", 2)[0]


def test_command_line_without_gpu_or_interpreter_says_so() -> None:
    if torch.cuda.is_available():
        return  # it would run
    done = command("-n", "2", PROMPTS[0], interpreted=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "set TRITON_INTERPRET=1 before Python starts" in only_line(done.stderr)


def test_threads_may_launch_at_once() -> None:
    """The interpreter keeps the running program's place for the whole process."""
    x, weight = torch.randn(24, 32, device=DEVICE), torch.rand(32, device=DEVICE)
    expected = rms_norm.rms_norm(x, weight, 1e-5, impl="triton")
    wrong = []

    def work() -> None:
        for _ in range(5):
            if not torch.equal(rms_norm.rms_norm(x, weight, 1e-5, impl="triton"), expected):
                wrong.append(threading.current_thread().name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
