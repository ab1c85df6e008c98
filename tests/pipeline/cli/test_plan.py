"""`lamella plan`: what it foretells is what loading gives."""

from __future__ import annotations

from typing import Any

import pytest

from model import LlamaStage
from pipeline import LlamaPipeline
from pipeline.balance import balanced
from pipeline.placement import Placement
from pipeline.step_cost import DecodeStep
from tests.pipeline.cli.running import document, invoke


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"splits": "1,3", "kv_dtype": "int8", "kv_tokens": 1000, "block_size": 7},
        {"splits": "2,1,1", "dtype": "fp32", "max_seq_len": 100},
    ],
)
def test_bytes_are_those_of_loaded_stages(options: dict[str, object]) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    planned = document(invoke("plan", "--json", *words))
    # Packed weights may be padded; as they are stored is what the plan counts.
    with LlamaPipeline.from_pretrained(impl="reference", **options) as pipeline:  # type: ignore[arg-type]
        assert planned["plan"] == str(pipeline.placement)
        assert planned["mode"] == pipeline.placement.mode
        assert len(planned["stages"]) == len(pipeline.stages)
        for plan, stage in zip(planned["stages"], pipeline.stages, strict=True):
            assert isinstance(stage, LlamaStage)
            assert plan["weight_bytes"] == stage.weight_bytes
            assert plan["kv_bytes"] == stage.kv_bytes
            layers = len(stage.spec.layers)
            assert plan["kv_bytes_per_token"] == stage.layout.bytes_per_token * layers
            assert (plan["embed"], plan["head"]) == (stage.spec.embed, stage.spec.head)


def test_table() -> None:
    result = invoke("plan", "--stages", "2", "--kv-tokens", "4096")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert result.stderr == ""
    assert lines[0] == "stage0:cpu:layers=0-1;stage1:cpu:layers=2-3"
    [titles] = [line.split() for line in lines if "stage " in line and "device" in line]
    assert titles[4:] == ["weights", "KV", "workspace", "time"]
    assert any(line.split()[:4] == ["1", "cpu", "2-3", "head"] for line in lines)
    assert any("bf16 of 4096 tokens, 2.0 KiB each" in line for line in lines)
    assert "times: a decode step of 16 rows with 512 tokens each" in lines
    assert "layers are cut for this step, as loading does" in lines
    assert any(line.startswith("slowest: stage 1; imbalance ") for line in lines)
    assert any(line.startswith("cpu needs ") for line in lines)
    assert max(map(len, lines)) <= 80


def test_splits_by_hand_are_shown_like_those_by_weight() -> None:
    planned = document(invoke("plan", "--json", "--splits", "3,1", "--rows", "1"))
    first, last = planned["stages"]
    assert (planned["rows"], planned["context"]) == (1, 512)
    assert (planned["slowest_stage"], planned["fits"]) == (0, True)
    # Three layers against one and a head as heavy as 0.7 of them.
    assert 1.5 < first["seconds"] / last["seconds"] < 2.5
    waiting = (first["seconds"] - last["seconds"]) / (2 * first["seconds"])
    assert planned["imbalance"] == pytest.approx(waiting)
    [device] = planned["devices"]
    assert device["stages"] == [0, 1]
    assert device["basis"] == "measured"
    kinds = ("weight_bytes", "kv_bytes", "workspace_bytes")
    assert device["needed_bytes"] == sum(stage[kind] for stage in (first, last) for kind in kinds)


@pytest.mark.parametrize(
    ("splits", "ranges"),
    [
        (["--stages", "3"], "0-0 1-2 3-3"),  # the head weighs, so that the middle has most
        (["--stages", "3", "--splits", "AUTO"], "0-0 1-2 3-3"),
        (["--stages", "3", "--splits", "even"], "0-1 2-2 3-3"),
        (["--devices", "cpu,cpu,cpu", "--splits", "auto"], "0-0 1-2 3-3"),
    ],
)
def test_layers_are_cut_by_weight_unless_told_otherwise(splits: list[str], ranges: str) -> None:
    stages = document(invoke("plan", "--json", *splits))["stages"]
    assert [f"{s['first_layer']}-{s['last_layer']}" for s in stages] == ranges.split()


def test_the_cut_is_for_the_step_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[object] = []

    def noted(*args: Any) -> Placement:
        steps.append(args[-1])
        return balanced(*args)

    monkeypatch.setattr("pipeline.cli.placing.balanced", noted)
    words = ("plan", "--stages", "2", "--rows", "3", "--context", "700")
    assert invoke(*words).exit_code == 0
    assert steps == [DecodeStep(3, 700)]
    told = "layers are cut for this step; loading cuts for 16 rows with 512 tokens each"
    assert told in invoke(*words).stdout.splitlines()
    assert "layers are cut" not in invoke(*words, "--splits", "1,3").stdout


def test_what_does_not_fit_is_shown_and_no_error() -> None:
    options = ("plan", "--stages", "2", "--kv-tokens", str(10**9))
    planned = document(invoke(*options, "--json"))
    [device] = planned["devices"]
    assert not planned["fits"]
    assert device["lacking_bytes"] == device["needed_bytes"] - device["memory_bytes"] > 0
    result = invoke(*options)
    assert result.exit_code == 0
    shown = " ".join(result.stdout.split())
    assert "does not fit: cpu needs 1.9 TiB and has " in shown
    assert " bytes are missing" in shown


def test_devices_of_another_machine() -> None:
    planned = document(invoke("plan", "--json", "--devices", "cuda:0,cuda:7"))
    assert planned["plan"] == "stage0:cuda:0:layers=0-1;stage1:cuda:7:layers=2-3"
    assert [stage["device"] for stage in planned["stages"]] == ["cuda:0", "cuda:7"]
    assert [device["basis"] for device in planned["devices"]][1] == "absent"
    lines = invoke("plan", "--devices", "cuda:0,cuda:7").stdout.splitlines()
    assert "cuda:7 is not here: times and memory guess an A100, 2039 GB/s" in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--splits auto", "--splits auto: needs --stages or --devices"),
        ("--splits even", "--splits even: needs --stages or --devices"),
        ("--rows 0", "--rows 0: expected a whole number, 1 or more"),
        ("--context 1025", "--context 1025: a sequence has at most 1024 tokens"),
        ("--max-seq-len 100 --context 101", "--context 101: a sequence has at most 100 tokens"),
        ("--stages 5 --splits auto", "--stages 5: cannot split 4 layers into 5 stages"),
    ],
)
def test_options_that_cannot_be(words: str, message: str) -> None:
    result = invoke("plan", *words.split())
    assert result.exit_code == 2
    assert message in result.stderr


def test_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.checkpoint.Checkpoint._read_into", lambda *_: pytest.fail("read"))
    assert invoke("plan", "--stages", "4").exit_code == 0


def test_explain_says_what_each_mode_is_expected_to_take() -> None:
    result = invoke("plan", "--stages", "2", "--rows", "32", "--explain")
    assert result.exit_code == 0
    for word in ("batch", "overlapped", "continuous", "chosen:", "slower"):
        assert word in result.stdout
    [headings] = [line.split() for line in result.stdout.splitlines() if "predicted" in line]
    assert headings == ["mode", "groups", "predicted", "ms", "tokens/s", "why"]
    assert max(map(len, result.stdout.splitlines())) <= 80
    expected = document(invoke("plan", "--json", "--stages", "2", "--explain"))["expected"]
    assert expected["mode"] in ("batch", "overlapped", "continuous")
    assert expected["candidates"][0]["mode"] == "batch"
    assert "expected" not in document(invoke("plan", "--json", "--stages", "2"))
