"""Failures, Ctrl-C and `close` while steps of several groups are under way."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.errors import LamellaError
from pipeline.chores import Release
from pipeline.errors import StageError
from pipeline.job import Call
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.modes import LlamaPipelineMode
from pipeline.placement import Placement
from pipeline.sequences import Completion
from pipeline.work import Answer, Decode, Piece, Prefill
from tests.pipeline.building import footprint, workers_of
from tests.pipeline.fake_stage import FakeStage, Fault, fake_logits, fake_stages
from tests.pipeline.test_many_requests import continued

PROMPTS = [[(5 * n + place) % 50 for place in range(1 + n % 11)] for n in range(14)]


def in_mode(mode: str, groups: int | None = None) -> tuple[LlamaPipeline, list[FakeStage]]:
    stages = fake_stages([1, 1, 1])
    placement = Placement.even(3, 3, mode=mode)
    groups = groups if mode == "continuous" else None
    return LlamaPipeline(stages, placement, threads=1, groups=groups), stages


def landed(pipeline: LlamaPipeline, call: Call) -> list[int]:
    """Wait for a call that was launched; its tokens."""
    pipeline.engine.land(call)
    return call.answers().tolist()


def expect_all_well(pipeline: LlamaPipeline) -> None:
    assert torch.equal(pipeline.decode("mine", 4, 3), fake_logits([1, 2, 3, 4], 3))
    pipeline.truncate_kv("mine", 3)
    result = pipeline.generate(PROMPTS[:3], max_new_tokens=3, stop_token_ids=())
    assert [done.tokens for done in result.completions] == [continued(p, 3) for p in PROMPTS[:3]]


def ended(pipeline: LlamaPipeline, report: bool) -> tuple[StageError | None, list[Completion]]:
    """Generate; what it raised, or gave."""
    try:
        result = pipeline.generate(
            PROMPTS,
            max_new_tokens=4,
            max_batch=9,
            prefill_chunk=5,
            stop_token_ids=(),
            on_error="report" if report else "raise",
        )
    except StageError as error:
        return error, []
    assert [done.index for done in result.completions] == list(range(len(PROMPTS)))
    return None, result.completions


@given(
    st.sampled_from(list(LlamaPipelineMode)),
    st.integers(1, 5),
    st.integers(0, 2),
    st.sampled_from(["prefill", "append", "decode", "greedy"]),
    st.integers(0, 12),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_a_failure_at_any_step_of_any_mode(
    mode: str, groups: int, stage: int, what: str, number: int, late: bool, report: bool
) -> None:
    pipeline, stages = in_mode(mode, groups)
    with pipeline:
        pipeline.prefill("mine", [1, 2, 3])
        before = footprint(pipeline)
        index = 2 if what == "greedy" else stage
        operation = what if what == "greedy" else f"{what}_{'hidden' if index else 'tokens'}"
        stages[index].fail(operation, number, late=late)
        told = f"stage {index} failed in {operation}"
        error, completions = ended(pipeline, report)
        came = stages[index]._counts.get(operation, 0) > number
        assert (error is not None) == (came and not report)
        if error is not None:
            assert str(error).startswith(told)
            assert isinstance(error.cause, Fault)
        for done in completions:
            expected = continued(done.prompt, 4)
            if done.finish_reason == "error":
                assert done.error.startswith(told)
                expected = expected[: len(done.tokens)]
            assert done.tokens == expected
        assert came or not any(done.error for done in completions)
        assert not (came and report) or any(done.error for done in completions)
        assert footprint(pipeline) == before
        stages[index].mend()
        expect_all_well(pipeline)
        assert footprint(pipeline) == before


def test_a_release_that_fails_under_a_stream_is_tried_again() -> None:
    for stage in range(3):
        pipeline, stages = in_mode("continuous")
        with pipeline:
            pipeline.prefill("mine", [1, 2, 3])
            before = footprint(pipeline)
            stages[stage].fail("release", 1)
            with pytest.raises(StageError, match=f"stage {stage} failed in release"):
                pipeline.generate(PROMPTS, max_new_tokens=3, stop_token_ids=())
            assert footprint(pipeline) == before
            expect_all_well(pipeline)


def test_others_in_flight_go_on_when_one_call_fails() -> None:
    pipeline, stages = in_mode("continuous")
    with pipeline:
        engine = pipeline.engine
        stages[1].fail("decode_hidden", 1, late=True)
        calls = [
            engine.launch([Decode(pipeline._rows([(f"s{n}", n, 0)]), Answer.GREEDY)])
            for n in range(4)
        ]
        for n, call in enumerate(calls):
            if n == 1:
                with pytest.raises(StageError, match="stage 1 failed in decode_hidden"):
                    landed(pipeline, call)
            else:
                assert landed(pipeline, call) == continued([n], 1)
        pipeline.release("s1")
        lengths = [length for length, _ in footprint(pipeline)]
        assert lengths == [{"s0": 1, "s2": 1, "s3": 1}] * 3


def test_a_chunk_does_not_follow_one_that_failed() -> None:
    for stage in range(3):
        pipeline, stages = in_mode("continuous")
        with pipeline:
            stages[stage].fail("prefill_hidden" if stage else "prefill_tokens", 1)
            pieces = [Piece("a", [1, 2, 3], 3 * n, n == 3) for n in range(4)]
            calls = [pipeline.engine.launch([Prefill([p], Answer.GREEDY)]) for p in pieces]
            assert landed(pipeline, calls[0]) == []
            for call in calls[1:]:
                with pytest.raises(StageError, match=f"stage {stage} failed in prefill_"):
                    landed(pipeline, call)
            assert stages[stage].cache_len("a") == 3
            pipeline.release("a")
            assert footprint(pipeline) == [({}, 256)] * 3


def test_a_job_that_was_never_sent_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, _ = in_mode("continuous")
    with pipeline:
        pipeline.prefill("mine", [1, 2, 3])
        before = footprint(pipeline)
        stream = pipeline.stream(PROMPTS, max_new_tokens=4, stop_token_ids=())
        for _ in range(20):
            next(stream)
        submit = pipeline.engine.line.submit

        def interrupted(job: object) -> None:
            monkeypatch.setattr(pipeline.engine.line, "submit", submit)
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline.engine.line, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(stream)
        assert footprint(pipeline) == before
        expect_all_well(pipeline)


@contextmanager
def signals(handler: signal._HANDLER) -> Iterator[None]:
    former = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in finalisers
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("mode", ["continuous", "auto"])
def test_interrupts_at_random_moments_leave_nothing_behind(mode: str) -> None:
    chance = random.Random(mode)
    pipeline, _ = in_mode(mode)
    interrupted = 0
    with pipeline, signals(interrupt):
        pipeline.prefill("mine", [1, 2, 3])
        before = footprint(pipeline)
        for _ in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 0.02))
                pipeline.generate(PROMPTS, max_new_tokens=6, prefill_chunk=4, stop_token_ids=())
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            assert pipeline.cache_len("mine") == 3
            assert footprint(pipeline) == before
        assert interrupted > 10
        expect_all_well(pipeline)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("handled", [False, True], ids=["by another thread", "by a handler"])
def test_closing_at_random_moments_ends_a_stream(handled: bool) -> None:
    chance = random.Random(handled)
    for _ in range(12):
        pipeline, stages = in_mode("continuous")
        workers = workers_of(pipeline)
        for stage in stages:
            stage.seconds = lambda rows: 0.002
        delay = chance.uniform(1e-3, 0.06)
        with signals(lambda *_: pipeline.close()):  # noqa: B023
            timer = threading.Timer(delay, pipeline.close)
            timer.start() if not handled else signal.setitimer(signal.ITIMER_REAL, delay)
            start = time.perf_counter()
            with pytest.raises(LamellaError, match="closed"):
                pipeline.generate(PROMPTS * 3, max_new_tokens=9, stop_token_ids=())
            timer.join() if not handled else None
        assert time.perf_counter() - start < 5
        assert not any(worker.alive for worker in workers)


def test_every_job_comes_to_its_end_in_order() -> None:
    """Chores and work of many sequences, sent without waiting."""
    pipeline, stages = in_mode("continuous")
    with pipeline:
        engine = pipeline.engine
        calls = []
        for n in range(50):
            seq_id = f"s{n % 5}"
            calls.append(engine.launch([Prefill([Piece(seq_id, [n % 50], 0)], Answer.GREEDY)]))
            calls.append(engine.let_go([seq_id]))
        answers = [landed(pipeline, call) for call in calls]
        assert answers[::2] == [continued([n % 50], 1) for n in range(50)]
        assert all(isinstance(call.jobs[0].task, Release) for call in calls[1::2])
        for stage in stages:
            done = [name for name, _ in stage.calls if name != "greedy"]
            assert done == [done[0], "release"] * 50
