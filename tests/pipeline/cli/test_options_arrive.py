"""Every option about the pipeline reaches it: none is accepted and ignored."""

from __future__ import annotations

from typing import Any

import pytest

from kernels.errors import LamellaError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.modes import LlamaPipelineMode
from tests.pipeline.cli.running import invoke

EXPECTED = [
    ("--stages 2", "splits", [range(0, 2), range(2, 4)]),
    ("--splits 1,3", "splits", [range(0, 1), range(1, 4)]),
    ("--splits 0-2,3-3", "splits", [range(0, 3), range(3, 4)]),
    ("--stages 2 --devices cpu", "devices", [None, None]),
    ("--kv-dtype int8", "kv_dtype", "int8"),
    ("--dtype fp32", "dtype", "fp32"),
    ("--impl reference", "impl", "reference"),
    ("--bridge host", "bridge", "host"),
    ("--bridge-dtype bf16", "bridge_dtype", "bf16"),
    ("--threads 3", "threads", 3),
    ("--block-size 8", "block_size", 8),
    ("--kv-tokens 99", "kv_tokens", 99),
    ("--max-seq-len 77", "max_seq_len", 77),
    ("--cuda-graphs", "cuda_graphs", True),
    ("--no-cuda-graphs", "cuda_graphs", False),
]
RUN = [
    ("--stages 2 --mode batch", "mode", LlamaPipelineMode.BATCH),
    ("--mode continuous --groups 3", "groups", 3),
]
COMMANDS = {"generate": [*EXPECTED, *RUN], "parity": [*EXPECTED, *RUN], "eval": EXPECTED}
CASES = [(command, *case) for command, cases in COMMANDS.items() for case in cases]


@pytest.mark.parametrize(("command", "options", "name", "value"), CASES)
def test_option_reaches_the_pipeline(
    command: str, options: str, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def note(*args: object, **given: object) -> None:
        seen.update(given)
        raise LamellaError("seen")

    monkeypatch.setattr(LlamaPipeline, "from_pretrained", note)
    result = invoke(command, *options.split(), *(["x"] if command == "generate" else []))
    assert result.stderr == "error: seen\n"
    assert seen[name] == value
