"""Wrong usage: exit code 2, one line on standard error with option, value and what is allowed."""

from __future__ import annotations

import pytest

from tests.pipeline.cli.running import invoke, only_line

WRONG = [
    ("plan --stages 0", "--stages 0: expected a whole number, 1 or more"),
    ("plan --stages two", "--stages two: expected a whole number, 1 or more"),
    ("plan --stages 5", "--stages 5: cannot split 4 layers into 5 stages; expected 1 to 4"),
    ("plan --stages 3 --splits 2,2", "--stages 3: but --splits has 2 parts"),
    ("plan --splits 2,1", "--splits 2,1: "),
    ("plan --splits a,b", "--splits a,b: "),
    ("plan --splits 1-3", "--splits 1-3: "),
    ("plan --devices gpu", "--devices gpu: "),
    ("plan --devices cpu,cpu,cpu --stages 2", "--devices cpu,cpu,cpu: 3 devices for 2 stages"),
    ("plan --kv-dtype int4", "--kv-dtype int4: expected one of auto, fp32, fp16, bf16, int8"),
    ("plan --dtype int8", "--dtype int8: expected one of auto, fp32, fp16, bf16"),
    ("plan --mode fast", "--mode fast: expected one of auto, batch, overlapped, continuous"),
    ("plan --mode overlapped", "--mode overlapped: needs at least two stages"),
    ("plan --max-seq-len 1025", "--max-seq-len 1025: the model has 1024 positions"),
    ("plan --kv-tokens 0", "--kv-tokens 0: expected a whole number, 1 or more"),
    ("plan --block-size -1", "--block-size -1: expected a whole number, 1 or more"),
    ("plan --model /no/such/folder", "--model /no/such/folder: not a folder"),
    ("plan --model /", "--model /: has no config.json"),
    ("plan extra", "got unexpected extra argument"),
    ("plan --stages", "option '--stages' requires an argument"),
    ("generate --impl gpu x", "--impl gpu: expected one of auto, triton, cpu, reference"),
    ("generate --bridge tcp x", "--bridge tcp: expected one of auto, host,"),
    ("generate --bridge-dtype fp16 x", "--bridge-dtype fp16: expected one of fp32, bf16"),
    ("generate --groups 3 x", "--groups 3: needs --mode continuous, not auto"),
    ("parity --groups 2 --mode overlapped", "--groups 2: needs --mode continuous, not overlapped"),
    ("plan --groups 2", "no such option"),
    ("generate --threads 0 x", "--threads 0: expected a whole number, 1 or more"),
    ("generate --temperature -1 x", "--temperature -1: expected a number of 0 or more"),
    ("generate --temperature nan x", "--temperature nan: expected a number of 0 or more"),
    ("generate --temperature inf x", "--temperature inf: expected a number of 0 or more"),
    ("generate --top-k -1 x", "--top-k -1: expected a whole number, 0 or more"),
    ("generate --top-p 0 x", "--top-p 0: expected a number above 0 and at most 1"),
    ("generate --min-p 1.5 x", "--min-p 1.5: expected a number from 0 to 1"),
    ("generate --repetition-penalty 0 x", "--repetition-penalty 0: expected a number above 0"),
    ("generate --seed -1 x", "--seed -1: expected a whole number, 0 to 18446744073709551615"),
    ("generate --max-new-tokens 0 x", "--max-new-tokens 0: expected a whole number, 1 or more"),
    ("generate --max-batch 0 x", "--max-batch 0: expected a whole number, 1 or more"),
    ("generate --stop= x", "--stop '': expected some text"),
    ("generate --top-k 5 x", "--top-k 5: needs a --temperature above 0"),
    ("generate --top-p 0.5 x", "--top-p 0.5: needs a --temperature above 0"),
    ("generate --min-p 0.5 x", "--min-p 0.5: needs a --temperature above 0"),
    ("parity --steps -1", "--steps -1: expected a whole number, 0 or more"),
    ("eval --window 0", "--window 0: expected a whole number, 1 or more"),
    ("eval --window 1025", "--window 1025: a sequence holds 1024 tokens"),
    ("check attend", "OPERATOR attend: expected some of rms_norm, rope_append, attention,"),
    ("check --impl gpu", "--impl gpu: expected one of triton, cpu, reference, module:function"),
    ("check --impl my:f", "--impl my:f: name the one operator that it stands for"),
    ("check linear --impl no_such:f", "--impl no_such:f: 'no_such:f': ModuleNotFoundError: "),
    ("check linear --impl no.py:f", "--impl no.py:f: "),
    ("check linear --case x", "--case x: no case of linear has this in its name"),
    ("check --like gpu", "--like gpu: expected one of triton, cpu, reference"),
    ("check --device tpu", "--device tpu: expected one of auto, cpu, cuda"),
    ("generate --impl my:f x", "--impl my:f: use --override OPERATOR=my:f, as f is no operator's"),
    ("generate --override my:f x", "--override my:f: expected OPERATOR=module:function"),
    ("generate --override greedy x", "--override greedy: '': expected module:function"),
    ("parity --override greedy=no:f", "--override greedy=no:f: 'no:f': ModuleNotFoundError"),
    ("aot attend", "OPERATOR attend: expected some of rms_norm, rope_append, attention,"),
    ("aot --arch sm_70", "--arch sm_70: expected one of sm_80, sm_90, sm_100, gfx942"),
    ("aot --impl triton", "--impl triton: expected module:function or file.py:function"),
    ("aot --impl my:f", "--impl my:f: name the one operator that it stands for"),
    ("aot linear --impl no_such:f", "--impl no_such:f: 'no_such:f': ModuleNotFoundError: "),
    ("aot --kernel x", "--kernel x: needs --ttgir, --ptx or --sass"),
    ("bench attend", "OPERATOR attend: expected some of rms_norm, rope_append, attention,"),
    ("bench linear --case zzz", "--case zzz: no case of linear to time has this"),
    ("bench --seconds 0", "--seconds 0: expected a number above 0"),
    ("bench --device cpu --tune", "--tune here: needs a CUDA GPU"),
    ("bench rms_norm --device cpu --impl triton", "--impl triton: needs a CUDA GPU"),
    ("bench --device cpu --plot x.doc", "--plot x.doc: "),
    ("compare attend", "OPERATOR attend: expected some of rms_norm, rope_append, attention,"),
    ("compare --base no-such-ref", "--base no-such-ref: 'no-such-ref' is no commit, branch or"),
    ("compare --base=--all", "--base --all: '--all' is no commit, branch or tag of"),
    ("compare --rounds 1", "--rounds 1: expected a whole number, 2 or more"),
    ("compare linear --case zzz", "--case zzz: no case of linear to time has this"),
    ("--no-such-option", "no such option"),
    ("plan --no-such-option", "no such option"),
    ("compute", "no such command 'compute'"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_usage_is_one_line(line: str, message: str) -> None:
    result = invoke(*line.split(), *(["-q"] if line.startswith("eval") else []))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert only_line(result.stderr).startswith(f"error: {message}")


def test_empty_prompt_is_wrong_usage() -> None:
    result = invoke("generate", "fine", "")
    assert result.exit_code == 2
    assert only_line(result.stderr).startswith("error: prompt 2 is empty")


def test_prompt_that_is_no_text_is_wrong_usage() -> None:
    result = invoke("generate", "\udcff")
    assert result.exit_code == 2
    assert only_line(result.stderr).startswith("error: prompt 1 is not UTF-8 text")


def test_a_line_break_in_a_value_does_not_break_the_line() -> None:
    result = invoke("plan", "--stages", "1\n2")
    assert result.exit_code == 2
    assert only_line(result.stderr).startswith("error: --stages 1 2: ")


def test_words_may_be_in_capitals() -> None:
    result = invoke("plan", "--kv-dtype", "INT8", "--mode", " Batch ")
    assert result.exit_code == 0, result.stderr
    assert "KV cache int8" in result.stdout
