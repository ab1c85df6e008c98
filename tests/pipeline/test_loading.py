"""`from_pretrained`: where layers go, in which thread they load, and what stays after a failure."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.errors import CheckpointError, InvalidInputError, LamellaError, UnsupportedError
from model.bundled_model import bundled_model_path
from model.checkpoint import Checkpoint
from model.stage import LlamaStage, StageSpec
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.loading import place, stage_specs
from pipeline.placement import Placement


def test_specs_have_the_ends_of_the_model() -> None:
    assert stage_specs(Placement.even(3, 3)) == [
        StageSpec(range(1), embed=True, head=False),
        StageSpec(range(1, 2), embed=False, head=False),
        StageSpec(range(2, 3), embed=False, head=True),
    ]
    assert stage_specs(Placement.even(3, 1)) == [StageSpec(range(3), embed=True, head=True)]


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, [4]),
        ({"stages": 2}, [2, 2]),
        ({"splits": "1,3"}, [1, 3]),
        ({"splits": "0-2,3-3", "stages": 2}, [3, 1]),
        ({"devices": [None, None, None]}, [1, 2, 1]),
        ({"stages": 3, "splits": "even"}, [2, 1, 1]),
        ({"stages": 3, "splits": " Auto"}, [1, 2, 1]),
        ({"devices": "cpu,cpu,cpu", "splits": "auto"}, [1, 2, 1]),
        ({"devices": "cpu,cpu"}, [2, 2]),
    ],
)
def test_options_make_a_placement(options: dict[str, Any], layers: list[int]) -> None:
    placement = place(Checkpoint.open(bundled_model_path()), **options)
    assert [len(stage.layers) for stage in placement.stages] == layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 3, "splits": "1,3"}, "stages is 3, but splits '1,3' make 2 stages"),
        ({"stages": 5}, "cannot split 4 layers into 5 stages"),
        ({"stages": 2, "devices": [0]}, "device count 1 must match stage count 2"),
        ({"stages": 2, "mode": "warp"}, 'continuous or auto, got "warp"'),
        ({"stages": 1, "mode": "overlapped"}, "requires at least two stages"),
        ({"splits": "auto"}, "splits are 'auto'; expected stages or devices beside it"),
        ({"splits": "even"}, "splits are 'even'; expected stages or devices beside it"),
        ({"splits": "1,2"}, "stages cover 3 layers but model has 4"),
    ],
)
def test_options_that_contradict_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        place(Checkpoint.open(bundled_model_path()), **options)


def test_stages_load_in_their_workers_one_after_the_other() -> None:
    seen: list[tuple[str, int]] = []

    def progress(name: str, nbytes: int) -> None:
        seen.append((threading.current_thread().name, nbytes))

    with LlamaPipeline.from_pretrained(stages=2, threads=[1, 2], progress=progress) as pipeline:
        assert pipeline.threads == [1, 2]
        assert pipeline.tokenizer is not None
        assert [stage.spec.embed for stage in pipeline.stages] == [True, False]
        threads = [name for name, _ in seen]
    first = threads.index("lamella-stage-1")
    assert set(threads[:first]) == {"lamella-stage-0"}
    assert set(threads[first:]) == {"lamella-stage-1"}
    assert all(nbytes > 0 for _, nbytes in seen)


def test_options_reach_the_stages() -> None:
    with LlamaPipeline.from_pretrained(
        stages=2,
        mode="batch",
        impl="reference",
        kv_dtype="int8",
        dtype="fp32",
        block_size=8,
        kv_tokens=100,
        max_seq_len=64,
        bridge="host",
        threads=1,
    ) as pipeline:
        for stage in pipeline.stages:
            assert (stage.impl, stage.layout.dtype, stage.layout.block_size) == (
                "reference",
                "int8",
                8,
            )
            assert stage.cache.num_blocks == 13
        assert pipeline.kv_capacity() == 64
        assert pipeline.placement.mode == "batch"


def test_a_checkpoint_without_a_tokenizer_takes_token_ids(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(bundled_model_path() / name)
    options: dict[str, Any] = {"threads": 1, "max_seq_len": 64}
    with LlamaPipeline.from_pretrained(tmp_path, **options) as pipeline:
        assert pipeline.tokenizer is None
        [done] = pipeline.generate([[1, 2]], max_new_tokens=2).completions
        assert done.text == ""
        with pytest.raises(InvalidInputError, match="prompt 0 is text"):
            pipeline.generate("text")


def stage_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("lamella-stage")]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"bridge": "cuda_peer"},
            UnsupportedError,
            "bridge 'cuda_peer' copies between CUDA devices",
        ),
        ({"bridge": "wire"}, InvalidInputError, "bridge is 'wire'"),
        ({"mode": "warp"}, InvalidInputError, 'got "warp"'),
        ({"kv_dtype": "fp4"}, InvalidInputError, "fp4"),
        ({"impl": "fast"}, InvalidInputError, "fast"),
        ({"threads": 0}, InvalidInputError, "threads of stage 0 is 0"),
        ({"max_seq_len": 10**9}, InvalidInputError, "max_seq_len is 1000000000"),
        ({"path": "/nowhere"}, CheckpointError, "/nowhere"),
    ],
)
def test_what_cannot_be_loaded_leaves_no_threads(
    options: dict[str, Any], error: type[LamellaError], message: str
) -> None:
    with pytest.raises(error, match=message):
        LlamaPipeline.from_pretrained(**{"stages": 2, **options})
    assert stage_threads() == []


def test_a_failure_while_loading_the_second_stage_leaves_no_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = LlamaStage.load

    def fail(source: object, spec: StageSpec, **options: Any) -> LlamaStage:
        if not spec.embed:
            raise CheckpointError("tensor 'x' is truncated")
        return load(source, spec, **options)

    monkeypatch.setattr(LlamaStage, "load", fail)
    with pytest.raises(CheckpointError, match="tensor 'x' is truncated"):
        LlamaPipeline.from_pretrained(stages=2)
    assert stage_threads() == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_ordinals_without_cuda_are_not_supported() -> None:
    with pytest.raises(UnsupportedError, match="does not support device-scoped execution"):
        LlamaPipeline.from_pretrained(devices=[0, 1])
    with pytest.raises(UnsupportedError, match="does not support device-scoped execution"):
        LlamaPipeline.from_pretrained(devices="cuda:0,cuda:1")
