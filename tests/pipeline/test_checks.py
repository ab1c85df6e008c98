"""What a pipeline refuses to be built from, each with its message."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kernels.errors import InvalidInputError, UnsupportedError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.modes import LlamaPipelineMode
from pipeline.placement import Placement, StagePlacement
from tests.pipeline.fake_stage import FakeStage, fake_config, fake_stages


def refused(message: str, stages: list[FakeStage], placement: Placement | None = None) -> None:
    before = threading.active_count()
    with pytest.raises(InvalidInputError, match=message):
        LlamaPipeline(stages, placement)
    assert threading.active_count() == before


def changed(stage: FakeStage, **changes: object) -> FakeStage:
    stage.spec = replace(stage.spec, **changes)
    return stage


def test_no_stages() -> None:
    refused("LlamaPipeline requires at least one stage", [])
    refused("LlamaPipeline requires at least one stage", [], Placement.even(2, 2))


def test_without_a_placement_stages_are_where_they_are_in_mode_auto() -> None:
    for layers in ([3], [1, 2], [1, 1, 1]):
        with LlamaPipeline(fake_stages(layers), threads=1) as pipeline:
            assert pipeline.placement.mode is LlamaPipelineMode.AUTO
            assert [len(stage.layers) for stage in pipeline.placement.stages] == layers


def test_a_placement_of_another_number_of_stages() -> None:
    message = "Llama pipeline stage device count 3 must match stage count 2"
    refused(message, fake_stages([1, 2]), Placement.even(3, 3))


def test_a_first_stage_without_embedding() -> None:
    first, last = fake_stages([1, 2])
    message = "first Llama pipeline stage must load embedding weights"
    refused(message, [changed(first, embed=False), last])


def test_a_last_stage_without_head() -> None:
    first, last = fake_stages([1, 2])
    message = "last Llama pipeline stage must load lm_head weights"
    refused(message, [first, changed(last, head=False)])


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ((range(1), range(2, 3)), "stage 1 range starts at 2, expected 1"),
        ((range(2), range(1, 3)), "stage 1 range starts at 1, expected 2"),
        ((range(1, 2), range(2, 3)), "stage 0 range starts at 1, expected 0"),
        ((range(1), range(1, 2)), "stages cover 2 layers but model has 3"),
        ((range(1), range(1, 1)), "stage 1 has no layers"),
    ],
)
@pytest.mark.parametrize("placed", [False, True])
def test_ranges_that_do_not_make_the_model(
    ranges: tuple[range, range], message: str, placed: bool
) -> None:
    first, last = fake_stages([1, 2])
    stages = [changed(first, layers=ranges[0]), changed(last, layers=ranges[1])]
    placement = Placement(tuple(map(StagePlacement, ranges)), "batch") if placed else None
    refused(message, stages, placement)


def test_a_placement_of_other_layers() -> None:
    message = "stage 0 holds layers 0-0, but its placement says 0-1"
    refused(message, fake_stages([1, 2]), Placement.from_splits(3, [2, 1]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 16),
        ("vocab_size", 51),
        ("num_key_value_heads", 2),
        ("head_dim", 8),
        ("max_position_embeddings", 32),
    ],
)
def test_stages_of_different_models(name: str, value: int) -> None:
    first, last = fake_stages([1, 2])
    last.config = fake_config(3, **{name: value})
    message = f"share runtime dimensions: {name} of stage 1 is {value}, of stage 0 it is"
    refused(message, [first, last])


def test_ordinals_on_stages_that_are_on_the_cpu() -> None:
    placement = Placement.from_splits(3, [1, 2], ordinals=[0, None])
    with pytest.raises(UnsupportedError, match="does not support device-scoped execution"):
        LlamaPipeline(fake_stages([1, 2]), placement)


def test_ordinals_of_other_devices_than_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    stages = fake_stages([1, 2])
    for index, stage in enumerate(stages):
        stage.impl, stage.device = "triton", SimpleNamespace(type="cuda", index=index)
    placement = Placement.from_splits(3, [1, 2], ordinals=[0, 3])
    with pytest.raises(InvalidInputError, match="placement says cuda:3"):
        LlamaPipeline(stages, placement)


def test_threads_and_bridges_are_checked_too() -> None:
    with pytest.raises(InvalidInputError, match="threads has 3 numbers for 2 stages"):
        LlamaPipeline(fake_stages([1, 2]), threads=[1, 1, 1])
    with pytest.raises(UnsupportedError, match="bridge 'cuda_peer' copies between CUDA dev"):
        LlamaPipeline(fake_stages([1, 2]), bridge="cuda_peer")
