"""The parity report: it says equal where models are equal, and finds a split model that is not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from kernels.errors import InvalidInputError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.parity import ParityReport, compare, microbatch_size, parity
from pipeline.placement import Placement
from tests.pipeline.building import footprint, parity_pipeline, parity_stages


@pytest.fixture(params=["batch", "overlapped"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[LlamaPipeline, LlamaPipeline]]:
    with (
        parity_pipeline([1, 1, 1], mode=request.param, kv_dtype="int8") as split,
        parity_pipeline([3], kv_dtype="int8") as whole,
    ):
        yield split, whole
        assert [lengths for lengths, _ in footprint(split)] == [{}] * 3
        assert [lengths for lengths, _ in footprint(whole)] == [{}]


def test_a_split_model_equals_the_whole(pair: tuple[LlamaPipeline, LlamaPipeline]) -> None:
    split, whole = pair
    report = compare(split, whole, steps=3)
    assert report == ParityReport(
        max_abs_diff=0.0,
        bitwise_equal=True,
        rows=24 * 4,
        stages=3,
        mode=split.placement.mode,
        kv_dtype="int8",
        steps=3,
        whole_batch_max_abs_diff=report.whole_batch_max_abs_diff,
        ok=True,
    )
    assert report.whole_batch_max_abs_diff < 1e-5
    json.dumps(report.json())
    overlapped = split.cache_metrics_snapshot()["pipeline_decode"]["overlapped_calls"]
    assert overlapped == (3 if split.placement.mode == "overlapped" else 0)


@pytest.mark.parametrize(("groups", "size"), [(None, 8), (2, 12), (5, 5), (100, 1)])
def test_groups_are_those_of_the_pipeline(groups: int | None, size: int) -> None:
    stages = parity_stages([1, 1, 1])
    placement = Placement.even(3, 3, mode="continuous")
    with (
        LlamaPipeline(stages, placement, threads=1, groups=groups) as split,
        parity_pipeline([3]) as whole,
    ):
        assert microbatch_size(split, 24) == size
        seen = len(split.timeline().spans)
        report = compare(split, whole, steps=1)
        spans = split.timeline().spans[seen:]
    assert report.ok
    rows = {span.rows for span in spans if span.name == "decode" and span.rows}
    assert rows == {size, 24 % size} - {0}


@pytest.mark.parametrize("offset", [1e-7, 1e-3, float("nan")])
def test_a_difference_is_found(pair: tuple[LlamaPipeline, LlamaPipeline], offset: float) -> None:
    split, whole = pair
    last = split.stages[2]
    wrapped = last.decode_hidden
    calls = []

    def disturbed(batch, hidden):
        calls.append(len(batch))
        return wrapped(batch, hidden + (offset if len(calls) == 2 else 0.0))

    last.decode_hidden = disturbed
    report = compare(split, whole, [[1, 2], [3], [4, 5, 6]], steps=3)
    assert not report.bitwise_equal
    assert not report.ok
    assert report.max_abs_diff > 0 or report.max_abs_diff != report.max_abs_diff
    assert report.rows == 12


def test_bad_arguments_are_named(pair: tuple[LlamaPipeline, LlamaPipeline]) -> None:
    split, whole = pair
    with pytest.raises(InvalidInputError, match="whole has 3 stages; expected 1"):
        compare(split, split)
    with pytest.raises(InvalidInputError, match="steps is -1; expected at least 0"):
        compare(split, whole, steps=-1)
    with pytest.raises(InvalidInputError, match="no prompts; expected at least one"):
        compare(split, whole, [])
    with pytest.raises(InvalidInputError, match="prompt 1 is text"):
        compare(split, whole, [[1], "text"])
    with pytest.raises(InvalidInputError, match="token id 9"):
        compare(split, whole, [[1], [9]])


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_the_bundled_model_split_equals_itself(kv_dtype: str) -> None:
    report = parity(
        prompts=["import os\n", "def f(x):\n"] * 9,
        steps=2,
        stages=2,
        mode="overlapped",
        kv_dtype=kv_dtype,
        threads=1,
    )
    assert (report.bitwise_equal, report.ok) == (True, True)
    assert (report.rows, report.stages, report.mode) == (54, 2, "overlapped")
    assert report.kv_dtype == ("int8" if kv_dtype == "int8" else "bf16")


def test_prompts_and_steps_are_what_is_compared(pair: tuple[LlamaPipeline, LlamaPipeline]) -> None:
    split, whole = pair
    assert compare(split, whole, [[1, 2, 3]], steps=0).rows == 1
    assert compare(split, whole, [torch.tensor([1, 2]).tolist()] * 2, steps=5).rows == 12
