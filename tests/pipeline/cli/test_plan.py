"""`lamella plan`: what it foretells is what loading gives."""

from __future__ import annotations

import pytest

from model import LlamaStage
from pipeline import LlamaPipeline
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
    assert any("KV of 4096" in line for line in lines)
    assert any(line.split()[:4] == ["1", "cpu", "2-3", "head"] for line in lines)
    assert max(map(len, lines)) <= 80


def test_devices_of_another_machine() -> None:
    planned = document(invoke("plan", "--json", "--devices", "cuda:0,cuda:7"))
    assert planned["plan"] == "stage0:cuda:0:layers=0-1;stage1:cuda:7:layers=2-3"
    assert [stage["device"] for stage in planned["stages"]] == ["cuda:0", "cuda:7"]


def test_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.checkpoint.Checkpoint._read_into", lambda *_: pytest.fail("read"))
    assert invoke("plan", "--stages", "4").exit_code == 0
