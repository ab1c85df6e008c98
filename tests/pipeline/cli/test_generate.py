"""`lamella generate` on the bundled model: what it writes where, and that its options matter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import LlamaPipeline
from pipeline.cli.folders import BUNDLED, DEMO_PROMPTS
from pipeline.cli.prompts import read_file
from tests.pipeline.cli.running import document, invoke, only_line

PROMPT = "def read(self):"


def completions(*arguments: str, given: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document(invoke("generate", "--json", *arguments, given=given))[
        "completions"
    ]
    return found


def test_json_is_what_the_library_gives() -> None:
    result = invoke("generate", "--json", "--quiet", "--stages", "2", "-n", "6", PROMPT, "import ")
    assert result.stderr == ""
    found = document(result)
    assert set(found) == {"completions", "metrics"}
    with LlamaPipeline.from_pretrained(stages=2) as pipeline:
        expected = pipeline.generate([PROMPT, "import "], max_new_tokens=6)
    assert found["completions"] == [
        {"prompt": c.prompt, "text": c.text, "tokens": c.tokens, "finish_reason": c.finish_reason}
        for c in expected.completions
    ]
    assert found["metrics"]["snapshot"]["stage_count"] == 2
    assert found["metrics"]["snapshot"]["pipeline_decode"]["rows"] == 10


def test_one_prompt_is_text_alone_on_standard_output() -> None:
    [expected] = completions("-n", "8", PROMPT)
    result = invoke("generate", "-n", "8", "--stages", "2", PROMPT)
    assert result.exit_code == 0
    assert result.stdout == f"{PROMPT}{expected['text']}\n"
    assert "stage0:cpu:layers=0-1;stage1:cpu:layers=2-3 mode=auto" in result.stderr
    for word in ("prefill", "decode", "stage 1", "bridge", "overlap"):
        assert word in result.stderr
    assert max(map(len, result.stderr.splitlines())) <= 80


def test_several_prompts_are_blocks_in_their_order() -> None:
    result = invoke("generate", "--quiet", "-n", "4", "--max-batch", "1", PROMPT, "import ")
    expected = completions("-n", "4", PROMPT, "import ")
    assert result.stderr == ""
    assert result.stdout == "".join(
        f"--- {number}/2 (4 tokens, length)\n{done['prompt']}{done['text']}\n\n"
        for number, done in enumerate(expected, 1)
    )


def test_prompts_from_standard_input_and_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("import \n\nclass \n")
    piped = completions("-n", "2", given="import \n\nclass \n")
    assert [done["prompt"] for done in piped] == ["import ", "class "]
    assert completions("-n", "2", "-f", "-", given="import \nclass\u0020\n") == piped
    assert completions("-n", "2", "-f", str(tmp_path / "prompts.txt")) == piped


def test_demonstration_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cli.prompts.has_piped_input", lambda: False)
    assert [done["prompt"] for done in completions("-n", "1")] == read_file(DEMO_PROMPTS)
    result = invoke("generate", "--model", str(BUNDLED))
    assert result.exit_code == 2
    assert only_line(result.stderr).startswith("error: no prompt: give one")


def test_stop_texts_end_a_completion() -> None:
    [whole] = completions("-n", "24", PROMPT)
    middle = whole["text"].strip()[4:7]
    [cut] = completions("-n", "24", "--stop", "never there", "--stop", middle, PROMPT)
    assert cut["finish_reason"] == "stop"
    assert cut["text"] == whole["text"][: whole["text"].index(middle)]


@pytest.mark.parametrize(
    "options",
    [
        "--temperature 2 --seed 7",
        "--temperature 2 --seed 3 --top-k 2",
        "--temperature 2 --seed 3 --top-p 0.3",
        "--temperature 2 --seed 3 --min-p 0.5",
        "--repetition-penalty 2",
    ],
)
def test_sampling_options_change_the_text(options: str) -> None:
    plain = "" if "--seed" not in options else "--temperature 2 --seed 3"
    [before] = completions("-n", "16", PROMPT, *plain.split())
    [after] = completions("-n", "16", PROMPT, *options.split())
    assert after["tokens"] != before["tokens"]
    assert completions("-n", "16", PROMPT, *options.split()) == [after]


def test_seeded_text_does_not_depend_on_split_or_batch() -> None:
    options = (
        "-n",
        "8",
        "--temperature",
        "1",
        "--kv-dtype",
        "fp32",
        "--dtype",
        "fp32",
        "--seed",
        "5",
    )
    together = completions(*options, "--stages", "2", PROMPT, "import ")
    apart = completions(*options, "--max-batch", "1", PROMPT, "import ")
    assert together == apart


def test_chat_needs_a_template() -> None:
    result = invoke("generate", "--quiet", "--chat", "x")
    assert result.exit_code == 1
    assert only_line(result.stderr) == "error: --chat: the checkpoint has no chat template"


def test_chat_puts_the_prompt_into_the_template(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(BUNDLED, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}def {{ m.content }}(x):{% endfor %}"
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    [chat] = completions("-n", "6", "--chat", "--model", str(model), "double")
    assert chat["prompt"] == "double"
    with LlamaPipeline.from_pretrained() as pipeline:
        expected = pipeline.generate("def double(x):", max_new_tokens=6, add_special_tokens=False)
    assert chat["tokens"] == expected.completions[0].tokens
