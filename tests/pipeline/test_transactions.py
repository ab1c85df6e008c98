"""A failure anywhere leaves every stage's cache as it was, and the pipeline goes on working."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from kernels.errors import LamellaError
from pipeline.errors import StageError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from tests.pipeline.building import footprint, parity_pipeline
from tests.pipeline.fake_stage import FakeStage, Fault, fake_logits, fake_stages

LAYERS = [2, 1, 3]


def fake_pipeline(mode: str) -> tuple[LlamaPipeline, list[FakeStage]]:
    """Three stages that hold "old" with 5 positions, "cut" with 1 and "reserved" with none."""
    stages = fake_stages(LAYERS)
    pipeline = LlamaPipeline(stages, Placement.from_splits(6, LAYERS, mode=mode), threads=1)
    pipeline.prefill("old", [1, 2, 3, 4, 5])
    pipeline.prefill("cut", [1])
    pipeline.prepare("reserved", 9)
    return pipeline, stages


def batch_of(rows: int) -> list[tuple[str, int, int]]:
    """Sequences that are there, reserved and new."""
    known = [("old", 6, 5), ("cut", 2, 1), ("reserved", 3, 0)]
    return [*known, *((f"new{row}", row % 50, 0) for row in range(rows))][:rows]


def expect_failure(
    pipeline: LlamaPipeline, call: Callable[[], object], stage: int, operation: str, number: int
) -> None:
    before = footprint(pipeline)
    with pytest.raises(StageError) as caught:
        call()
    error = caught.value
    assert (error.stage, error.operation, error.microbatch) == (stage, operation, number)
    assert isinstance(error.cause, Fault)
    assert error.__cause__ is error.cause
    assert isinstance(error, LamellaError)
    assert re.fullmatch(
        rf"stage {stage} failed in {operation} \(microbatch {number}\): Fault: injected in "
        rf"{operation} {number}",
        str(error),
    )
    assert footprint(pipeline) == before


def expect_all_well(pipeline: LlamaPipeline, stages: list[FakeStage], rows: int) -> None:
    for stage in stages:
        stage.mend()
    logits = pipeline.decode_batch(batch_of(rows), full_logits=True)
    history = [[1, 2, 3, 4, 5, 6], [1, 2], [3], *([row % 50] for row in range(rows))][:rows]
    assert torch.equal(logits, torch.stack([fake_logits(tokens, 6) for tokens in history]))
    lengths, _ = zip(*footprint(pipeline), strict=True)
    assert lengths[0] == lengths[1] == lengths[2]


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, "head"])
def test_a_failing_microbatch_of_an_overlapped_decode(
    stage: int | str, number: int, late: bool
) -> None:
    pipeline, stages = fake_pipeline("overlapped")
    with pipeline:
        index = 2 if stage == "head" else int(stage)
        operation = (
            "logits" if stage == "head" else "decode_tokens" if stage == 0 else "decode_hidden"
        )
        stages[index].fail(operation, number, late=late)
        expect_failure(
            pipeline, lambda: pipeline.decode_batch(batch_of(20)), index, operation, number
        )
        expect_all_well(pipeline, stages, 20)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("rows", [1, 5, 20])
@pytest.mark.parametrize("stage", [0, 1, 2, "logits", "greedy"])
def test_a_failing_decode_in_batch_mode(stage: int | str, rows: int, late: bool) -> None:
    pipeline, stages = fake_pipeline("batch")
    with pipeline:
        index = stage if isinstance(stage, int) else 2
        operation = (
            stage if isinstance(stage, str) else "decode_tokens" if stage == 0 else "decode_hidden"
        )
        stages[index].fail(operation, late=late)
        decode = pipeline.decode_greedy if stage == "greedy" else pipeline.decode_batch
        expect_failure(pipeline, lambda: decode(batch_of(rows)), index, operation, 0)
        expect_all_well(pipeline, stages, rows)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("seq_id", ["old", "reserved", "new0"])
@pytest.mark.parametrize("stage", [0, 1, 2, "head"])
@pytest.mark.parametrize("mode", ["batch", "overlapped", "continuous", "auto"])
def test_a_failing_prefill(mode: str, stage: int | str, seq_id: str, late: bool) -> None:
    pipeline, stages = fake_pipeline(mode)
    with pipeline:
        index = 2 if stage == "head" else int(stage)
        operation = (
            "logits" if stage == "head" else "prefill_tokens" if stage == 0 else "prefill_hidden"
        )
        stages[index].fail(operation, late=late)
        tokens = list(range(30))  # several blocks
        expect_failure(pipeline, lambda: pipeline.prefill(seq_id, tokens), index, operation, 0)
        stages[index].fail(operation, late=late)
        expect_failure(pipeline, lambda: pipeline.score(tokens), index, operation, 0)
        expect_all_well(pipeline, stages, 20)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("seq_id", ["new", "old", "reserved"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_failing_prepare_reserves_nowhere(stage: int, seq_id: str, late: bool) -> None:
    pipeline, stages = fake_pipeline("batch")
    with pipeline:
        stages[stage].fail("prepare", late=late)
        before = footprint(pipeline)
        reserved = [one.cache.reserved_blocks(seq_id) for one in stages]
        with pytest.raises(StageError) as caught:
            pipeline.prepare(seq_id, 20)
        assert str(caught.value) == f"stage {stage} failed in prepare: Fault: injected in prepare 0"
        assert caught.value.microbatch is None
        assert footprint(pipeline) == before
        assert [one.cache.reserved_blocks(seq_id) for one in stages] == reserved
        expect_all_well(pipeline, stages, 20)


def test_the_first_of_several_failures_is_told() -> None:
    pipeline, stages = fake_pipeline("overlapped")
    with pipeline:
        for stage, operation in zip(stages, ("decode_tokens", *["decode_hidden"] * 2), strict=True):
            stage.fail(operation, 1)
        expect_failure(pipeline, lambda: pipeline.decode_batch(batch_of(30)), 0, "decode_tokens", 1)
        expect_all_well(pipeline, stages, 30)


def test_a_hidden_state_of_the_wrong_kind_is_a_stages_failure() -> None:
    pipeline, stages = fake_pipeline("batch")
    with pipeline:
        before = footprint(pipeline)
        append = stages[1]._append
        stages[1]._append = lambda *work: append(*work).double()  # type: ignore[method-assign]
        with pytest.raises(StageError, match=r"stage 1 failed in prefill_hidden.*torch.float64"):
            pipeline.prefill("old", [1, 2])
        assert footprint(pipeline) == before
        del stages[1]._append
        expect_all_well(pipeline, stages, 3)


def test_a_bridge_that_fails_in_a_call_is_a_failure_like_others() -> None:
    pipeline, stages = fake_pipeline("overlapped")
    with pipeline:
        before = footprint(pipeline)
        link = pipeline._engine.line._loops[1].link_out
        fill, link.fill = link.fill, lambda slot, hidden: 1 / 0
        with pytest.raises(StageError, match=r"stage 1 failed in send \(microbatch 0\): ZeroDiv"):
            pipeline.decode_batch(batch_of(20))
        assert footprint(pipeline) == before
        link.fill = fill
        expect_all_well(pipeline, stages, 20)


def test_many_failures_in_a_row_lose_nothing() -> None:
    pipeline, stages = fake_pipeline("overlapped")
    with pipeline:
        for turn in range(30):
            stages[turn % 3].fail("decode_hidden" if turn % 3 else "decode_tokens", turn % 2)
            with pytest.raises(StageError):
                pipeline.decode_batch(batch_of(20))
            stages[turn % 3].mend()
        expect_all_well(pipeline, stages, 20)


def test_a_stage_that_cannot_restore_breaks_the_pipeline_until_reset() -> None:
    pipeline, stages = fake_pipeline("batch")
    with pipeline:
        stages[2].fail("decode_hidden")
        stages[0].fail("truncate")
        with pytest.raises(LamellaError, match="caches could not be restored") as caught:
            pipeline.decode("old", 1, 5)
        assert isinstance(caught.value.__cause__, Fault)
        assert isinstance(caught.value.__context__, Fault)
        for stage in stages:
            stage.mend()
        for _ in range(2):
            with pytest.raises(LamellaError, match=r"reset\(\) makes the pipeline usable again"):
                pipeline.cache_len("old")
        pipeline.reset()
        assert footprint(pipeline) == [({}, 256)] * 3
        assert pipeline.decode("fresh", 1, 0).shape == (50,)


def test_a_result_that_cannot_be_recorded_undoes_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, stages = fake_pipeline("batch")
    with pipeline:
        before = footprint(pipeline)
        with monkeypatch.context() as patch:
            patch.setattr(pipeline._engine._profile, "record", lambda *call: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                pipeline.decode_batch(batch_of(3))
        assert footprint(pipeline) == before
        assert pipeline.cache_metrics_snapshot()["pipeline_decode"]["calls"] == 0
        expect_all_well(pipeline, stages, 3)


def test_reset_mends_also_what_still_waits_to_be_undone() -> None:
    pipeline, _ = fake_pipeline("batch")
    with pipeline:
        pipeline._engine._unfinished = lambda: 1 / 0
        pipeline._engine.abandon(["old"])
        pipeline.reset()
        assert footprint(pipeline) == [({}, 256)] * 3
        assert pipeline.decode("fresh", 1, 0).shape == (50,)


@pytest.mark.parametrize("operation", ["truncate", "release"])
def test_a_failing_truncate_or_release_still_reaches_the_other_stages(operation: str) -> None:
    pipeline, stages = fake_pipeline("batch")
    with pipeline:
        stages[1].fail(operation)
        with pytest.raises(StageError, match=f"stage 1 failed in {operation}"):
            pipeline.truncate_kv("old", 2) if operation == "truncate" else pipeline.release("old")
        stages[1].mend()
        kept = 2 if operation == "truncate" else 0
        assert [stage.cache_len("old") for stage in stages] == [kept, 5, kept]
        pipeline.release("old")
        assert [stage.cache_len("old") for stage in stages] == [0, 0, 0]


def test_statistics_do_not_count_what_failed() -> None:
    pipeline, stages = fake_pipeline("overlapped")
    with pipeline:
        stages[1].fail("decode_hidden", 1)
        with pytest.raises(StageError):
            pipeline.decode_batch(batch_of(20))
        assert pipeline.cache_metrics_snapshot()["pipeline_decode"]["calls"] == 0


REAL = [
    ("prefill_tokens", 0, lambda p: p.prefill("a", [1, 2, 3])),
    ("prefill_hidden", 1, lambda p: p.prefill("fresh", [1, 2, 3])),
    ("decode_tokens", 0, lambda p: p.decode("a", 1, 5)),
    ("decode_hidden", 1, lambda p: p.decode_batch([("a", 1, 5), ("fresh", 1, 0)])),
    ("decode_hidden", 1, lambda p: p.decode_batch([(f"n{i}", 1, 0) for i in range(20)])),
    ("logits", 1, lambda p: p.decode_batch([("a", 1, 5), ("fresh", 1, 0)])),
    ("greedy", 1, lambda p: p.decode_greedy([("a", 1, 5), ("fresh", 1, 0)])),
]


@pytest.mark.parametrize(("operation", "stage", "call"), REAL)
@pytest.mark.parametrize("kv_dtype", ["fp16", "int8"])
def test_real_stages_are_restored_and_give_the_same_logits(
    operation: str,
    stage: int,
    call: Callable[[LlamaPipeline], object],
    kv_dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        parity_pipeline(kv_dtype=kv_dtype, block_size=2) as pipeline,
        parity_pipeline(kv_dtype=kv_dtype, block_size=2) as undisturbed,
    ):
        for one in (pipeline, undisturbed):
            one.prefill("a", [1, 2, 3, 4, 5])
        before = footprint(pipeline)
        target = pipeline.stages[stage]
        whole = getattr(target, operation)

        def half(*arguments: object) -> torch.Tensor:
            whole(*arguments)  # has written to the cache
            raise Fault(f"injected in {operation} 0")

        with monkeypatch.context() as patch:
            patch.setattr(target, operation, half)
            expect_failure(pipeline, lambda: call(pipeline), stage, operation, 0)
        assert footprint(pipeline) == before
        assert torch.equal(pipeline.prefill("a", [6, 0]), undisturbed.prefill("a", [6, 0]))
        assert torch.equal(pipeline.decode("a", 3, 7), undisturbed.decode("a", 3, 7))
