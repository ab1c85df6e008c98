"""`generate` and `stream`: continuous batching, stops, sampling, and nothing left behind."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kernels.errors import CapacityError, InvalidInputError, LamellaError
from model.logits_filters import repetition_penalty
from model.sampling import SamplingParams
from pipeline.candidates import BATCH, Candidate
from pipeline.errors import StageError
from pipeline.generation import GenerationStream
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.modes import LlamaPipelineMode
from pipeline.placement import Placement
from tests.pipeline.building import footprint, parity_pipeline, parity_stages
from tests.pipeline.fake_stage import FakeStage, fake_logits, fake_stages

NO_STOP: dict[str, Any] = {"stop_token_ids": ()}


def greedy(prompt: list[int], count: int, num_layers: int = 3) -> list[int]:
    """What a whole fake model says, one token after the other."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(fake_logits(tokens, num_layers).argmax()))
    return tokens[len(prompt) :]


def fake_pipeline(
    mode: str = "overlapped", num_blocks: int = 256
) -> tuple[LlamaPipeline, list[FakeStage]]:
    stages = fake_stages([1, 1, 1], num_blocks=num_blocks)
    return LlamaPipeline(stages, Placement.even(3, 3, mode=mode), threads=1), stages


@pytest.fixture(params=list(LlamaPipelineMode))
def pipeline(request: pytest.FixtureRequest) -> Iterator[LlamaPipeline]:
    pipeline, _ = fake_pipeline(request.param)
    with pipeline:
        yield pipeline
        assert footprint(pipeline) == [({}, 256)] * 3


def decoded_rows(stage: FakeStage) -> list[int]:
    return [rows for operation, rows in stage.calls if operation == "decode_tokens"]


def test_completions_are_the_models_in_the_order_of_their_prompts(pipeline: LlamaPipeline) -> None:
    prompts = [[n, n + 1, 3][: 1 + n % 3] for n in range(40)]
    result = pipeline.generate(prompts, max_new_tokens=7, **NO_STOP)
    assert [done.index for done in result.completions] == list(range(40))
    for prompt, done in zip(prompts, result.completions, strict=True):
        assert done.prompt == prompt
        assert done.tokens == greedy(prompt, 7)
        assert done.finish_reason == "length"
        assert done.text == ""  # no tokenizer, no text


def test_one_prompt_may_come_alone(pipeline: LlamaPipeline) -> None:
    [done] = pipeline.generate([4, 5], max_new_tokens=3, **NO_STOP).completions
    assert done.tokens == greedy([4, 5], 3)


def test_a_single_new_token_needs_no_decode(pipeline: LlamaPipeline) -> None:
    result = pipeline.generate([[1], [2]], max_new_tokens=1, **NO_STOP)
    assert [done.tokens for done in result.completions] == [greedy([1], 1), greedy([2], 1)]
    assert result.metrics["decode"]["tokens"] == 0
    assert result.metrics["decode"]["tokens_per_s"] is None


def test_stop_tokens_end_a_completion_and_are_its_last_token(pipeline: LlamaPipeline) -> None:
    expected = greedy([4], 10)
    [done] = pipeline.generate([[4]], max_new_tokens=10, stop_token_ids=[expected[3]]).completions
    assert done.tokens == expected[: expected.index(expected[3]) + 1]
    assert done.finish_reason == "stop"


def test_more_prompts_than_fit_run_as_room_is_left() -> None:
    # 12 positions a prompt, 3 blocks each: 3 fit into 9 blocks, and a fourth waits.
    pipeline, stages = fake_pipeline(num_blocks=9)
    with pipeline:
        prompts = [[n, 1, 2, 3, 4] for n in range(8)]
        result = pipeline.generate(prompts, max_new_tokens=8, **NO_STOP)
        assert [done.tokens for done in result.completions] == [greedy(p, 8) for p in prompts]
        assert result.metrics["running_max"] == 3
        assert max(decoded_rows(stages[0])) == 3
        assert footprint(pipeline) == [({}, 9)] * 3


def test_a_finished_sequence_makes_room_at_once() -> None:
    pipeline, _ = fake_pipeline(num_blocks=6)  # two at a time
    with pipeline:
        prompts = [[1, 2, 3, last] for last in (4, 8, 23)]
        stop = greedy(prompts[0], 3)[-1]
        assert [stop in greedy(prompt, 9) for prompt in prompts] == [True, False, False]
        stream = pipeline.stream(prompts, max_new_tokens=9, stop_token_ids=[stop])
        order = [event.index for event in stream]
    # The first two begin, the first ends with its third token, and the third takes its place.
    assert order[:9] == [0, 1, 0, 1, 0, 1, 2, 1, 2]


def test_max_batch_limits_how_many_run() -> None:
    pipeline, stages = fake_pipeline()
    with pipeline:
        result = pipeline.generate(
            [[n] for n in range(10)], max_new_tokens=4, max_batch=4, **NO_STOP
        )
        assert result.metrics["running_max"] == 4
        assert max(decoded_rows(stages[0])) == 4
        assert [done.tokens for done in result.completions] == [greedy([n], 4) for n in range(10)]


def test_the_default_batch_is_32() -> None:
    pipeline, _ = fake_pipeline()
    with pipeline:
        result = pipeline.generate([[1]] * 40, max_new_tokens=2, **NO_STOP)
    assert result.metrics["running_max"] == 32


@pytest.mark.parametrize("number", [1, 2])
def test_a_prompt_that_can_never_fit_is_named_before_anything_starts(number: int) -> None:
    pipeline, stages = fake_pipeline(num_blocks=4)
    with pipeline:
        prompts = [[1], [1] * 3, [1] * 3]
        prompts[number] = [1] * 9
        message = (
            f"prompt {number} has 9 tokens and asks for 9 more, which takes 17 positions; a "
            "sequence holds at most 16"
        )
        for call in (pipeline.generate, pipeline.stream):
            with pytest.raises(CapacityError, match=message):
                call(prompts, max_new_tokens=9, **NO_STOP)
        assert all(stage.calls == [] for stage in stages)
        assert len(pipeline.generate([[1] * 9], max_new_tokens=8, **NO_STOP).completions) == 1


def test_a_prompt_that_does_not_fit_beside_the_users_sequences_is_an_error() -> None:
    pipeline, _ = fake_pipeline(num_blocks=4)
    with pipeline:
        pipeline.prefill("mine", [1] * 5)
        before = footprint(pipeline)
        with pytest.raises(CapacityError, match="prompt 1 does not fit beside the sequences"):
            pipeline.generate([[1], [1] * 9], max_new_tokens=4, **NO_STOP)
        assert footprint(pipeline) == before
        result = pipeline.generate([[1], [2]], max_new_tokens=4, **NO_STOP)
        assert len(result.completions) == 2
        assert footprint(pipeline) == before


def test_a_users_sequences_are_never_touched() -> None:
    pipeline, _ = fake_pipeline()
    with pipeline:
        pipeline.prefill("generate-0", [1, 2])
        stream = pipeline.stream([[1], [2]], max_new_tokens=4, **NO_STOP)
        next(stream)
        assert pipeline.sequence_ids() == ["generate-0"]
        pipeline.decode("generate-0", 3, 2)  # between the stream's own steps
        list(stream)
        assert pipeline.cache_len("generate-0") == 3
        tokens = [done.tokens for done in stream.result().completions]
        assert tokens == [greedy([1], 4), greedy([2], 4)]


def test_two_streams_may_be_taken_in_turn(pipeline: LlamaPipeline) -> None:
    streams = [pipeline.stream([[n], [n + 1]], max_new_tokens=5, **NO_STOP) for n in (3, 7)]
    while any([next(stream, None) for stream in streams]):
        pass
    got = [done.tokens for stream in streams for done in stream.result().completions]
    assert got == [greedy([n], 5) for n in (3, 4, 7, 8)]


def leave_by_close(stream: GenerationStream) -> None:
    stream.close()
    assert list(stream) == []


def leave_by_context(stream: GenerationStream) -> None:
    with stream:
        next(stream)


def leave_by_forgetting(stream: GenerationStream) -> None:
    pass


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_context, leave_by_forgetting])
def test_a_stream_that_is_left_releases_its_sequences(
    leave: Callable[[GenerationStream], None],
) -> None:
    pipeline, _ = fake_pipeline()
    with pipeline:
        stream = pipeline.stream([[n] for n in range(5)], max_new_tokens=5, **NO_STOP)
        for _ in range(7):
            next(stream)
        leave(stream)
        del stream
        gc.collect()
        pipeline.cache_len("any")  # what was forgotten is released by the next call
        assert footprint(pipeline) == [({}, 256)] * 3


def test_a_stream_that_was_never_begun_takes_nothing(pipeline: LlamaPipeline) -> None:
    stream = pipeline.stream([[1], [2]], max_new_tokens=5, **NO_STOP)
    assert pipeline._engine.sequence_ids() == []
    stream.close()
    stream.close()


@pytest.mark.parametrize(
    ("operation", "number"),
    [
        ("append_hidden", 0),
        ("decode_hidden", 0),
        ("decode_hidden", 2),
        ("greedy", 0),
        ("greedy", 2),
    ],
)
def test_a_failure_releases_all_of_a_streams_sequences(operation: str, number: int) -> None:
    pipeline, stages = fake_pipeline()
    with pipeline:
        pipeline.prefill("mine", [1, 2])
        before = footprint(pipeline)
        stages[2].fail(operation, number)
        with pytest.raises(StageError, match=f"stage 2 failed in {operation}"):
            pipeline.generate([[n] for n in range(5)], max_new_tokens=5, **NO_STOP)
        stages[2].mend()
        assert footprint(pipeline) == before
        assert pipeline.generate([3], max_new_tokens=2, **NO_STOP).completions[0].tokens == greedy(
            [3], 2
        )


def test_a_pipeline_closed_under_a_stream_ends_it() -> None:
    pipeline, _ = fake_pipeline()
    stream = pipeline.stream([[1], [2]], max_new_tokens=5, **NO_STOP)
    next(stream)
    pipeline.close()
    with pytest.raises(LamellaError, match="the pipeline is closed"):
        list(stream)
    stream.close()


def test_reset_under_a_stream_ends_it_with_an_error() -> None:
    pipeline, _ = fake_pipeline()
    with pipeline:
        stream = pipeline.stream([[1], [2]], max_new_tokens=5, **NO_STOP)
        for _ in range(3):
            next(stream)
        pipeline.reset()
        with pytest.raises(InvalidInputError, match=r"^the pipeline was reset during generate$"):
            list(stream)
        assert footprint(pipeline) == [({}, 256)] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompts; expected at least one"),
        ({"prompts": [[1], []]}, "prompt 1 is empty; expected at least one token"),
        ({"prompts": [[1], [2, 99]]}, "token id 99 at place 1 of prompt 1 is outside the vocab"),
        ({"prompts": [[1], [2.5]]}, "token 0 of prompt 1 is 2.5; expected an integer"),
        ({"prompts": [[1], None]}, "prompt 1 is None; expected text or token ids"),
        ({"prompts": "text"}, "prompt 0 is text, but the pipeline has no tokenizer"),
        ({"prompts": [1], "max_new_tokens": 0}, "max_new_tokens is 0; expected at least 1"),
        ({"prompts": [1], "max_new_tokens": 2.0}, "max_new_tokens is 2.0; expected an integer"),
        ({"prompts": [1], "max_batch": 0}, "max_batch is 0; expected at least 1"),
        ({"prompts": [1], "stop": "x"}, "stop is 'x', but the pipeline has no tokenizer"),
        ({"prompts": [1], "stop": ""}, "stop string is ''"),
        ({"prompts": [1], "stop_token_ids": [-1]}, "stop token id is -1"),
    ],
)
def test_bad_arguments_are_named_at_once(arguments: dict[str, Any], message: str) -> None:
    pipeline, stages = fake_pipeline()
    with pipeline:
        with pytest.raises(InvalidInputError, match=message):
            pipeline.stream(**arguments)
        assert all(stage.calls == [] for stage in stages)


def test_metrics_count_tokens_and_time(pipeline: LlamaPipeline) -> None:
    result = pipeline.generate([[1, 2, 3], [4]], max_new_tokens=5, **NO_STOP)
    prefill, decode = result.metrics["prefill"], result.metrics["decode"]
    assert prefill["tokens"] == 4
    assert decode["tokens"] == 8
    for part in (prefill, decode):
        assert part["tokens_per_s"] == pytest.approx(part["tokens"] / part["seconds"])
    assert result.metrics["snapshot"]["pipeline_decode"]["rows"] == 8
    document = json.loads(json.dumps(result.json()))
    assert document["completions"][1]["tokens"] == greedy([4], 5)


def test_greedy_generation_asks_for_token_ids_only() -> None:
    pipeline, stages = fake_pipeline()
    with pipeline:
        pipeline.generate([[1], [2]], max_new_tokens=3, **NO_STOP)
    assert not [operation for operation, _ in stages[2].calls if operation == "logits"]


SAMPLED = SamplingParams(temperature=1.3, top_k=6, seed=11)


def sampled_by(pipeline: LlamaPipeline, **options: Any) -> list[list[int]]:
    with pipeline:
        prompts = [[n % 7, (n + 2) % 7] for n in range(12)]
        options = {"max_new_tokens": 6, "sampling": SAMPLED, **NO_STOP, **options}
        result = pipeline.generate(prompts, **options)
        assert all(lengths == {} for lengths, _ in footprint(pipeline))
        return [done.tokens for done in result.completions]


def test_sampled_tokens_do_not_depend_on_batch_split_or_mode() -> None:
    expected = sampled_by(parity_pipeline([3]), max_batch=1)
    assert len({tuple(tokens) for tokens in expected}) > 6
    assert sampled_by(parity_pipeline([1, 2])) == expected
    assert sampled_by(parity_pipeline([1, 1, 1], mode=LlamaPipelineMode.OVERLAPPED)) == expected
    assert sampled_by(parity_pipeline([2, 1]), max_batch=5) == expected
    other = SamplingParams(temperature=1.3, top_k=6, seed=12)
    assert sampled_by(parity_pipeline([3]), sampling=other) != expected


def test_a_repetition_penalty_sees_the_prompt_and_the_text() -> None:
    params = SamplingParams(repetition_penalty=1.8)
    with parity_pipeline() as pipeline:
        [done] = pipeline.generate([5, 6], max_new_tokens=6, sampling=params, **NO_STOP).completions
        [free] = pipeline.generate([5, 6], max_new_tokens=6, **NO_STOP).completions
        tokens = [5, 6]
        for _ in range(6):
            logits = pipeline.score(tokens)[-1:]
            tokens.append(int(repetition_penalty(logits, [tokens], 1.8).argmax()))
    assert done.tokens == tokens[2:]
    assert done.tokens != free.tokens


@pytest.mark.parametrize("sampling", [None, SAMPLED, SamplingParams(repetition_penalty=1.8)])
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_every_mode_gives_the_tokens_of_batch_mode(
    impl: str, sampling: SamplingParams | None
) -> None:
    options: dict[str, Any] = {"sampling": sampling, "prefill_chunk": 3, "max_new_tokens": 5}
    prompts = [[(n + 2 * place) % 7 for place in range(1 + n % 9)] for n in range(11)]

    def said(groups: int | None = None, **how: Any) -> list[list[int]]:
        stages = parity_stages([1, 1, 1], impl=impl)
        placement = Placement.even(3, 3, mode=how["mode"])
        with LlamaPipeline(stages, placement, threads=1, groups=groups) as pipeline:
            result = pipeline.generate(prompts, max_batch=how.get("most"), **options, **NO_STOP)
        return [done.tokens for done in result.completions]

    expected = said(mode="batch")
    assert said(mode="continuous", groups=1) == expected
    assert said(mode="continuous", groups=4) == expected
    assert said(mode="continuous", most=5) == expected
    assert said(mode="overlapped") == expected
    assert said(mode="auto") == expected


@pytest.mark.parametrize("chunk", [1, 4, 5])
def test_prompts_in_chunks_are_continued_as_if_whole(pipeline: LlamaPipeline, chunk: int) -> None:
    lengths = [1, 12, 4, 13, 1, 5, 30, 8, 2, 1]  # whole, packed, multiples and one token more
    prompts = [[(7 * n + place) % 50 for place in range(n)] for n in lengths]
    result = pipeline.generate(prompts, max_new_tokens=3, prefill_chunk=chunk, **NO_STOP)
    assert [done.tokens for done in result.completions] == [greedy(p, 3) for p in prompts]
    assert result.metrics["prefill"]["tokens"] == sum(lengths)
    sent = [
        (operation, rows)
        for operation, rows in pipeline.stages[0].calls
        if operation in ("prefill_tokens", "append_tokens")
    ]
    assert max(rows for _, rows in sent) == chunk
    assert sum(rows for _, rows in sent) == sum(lengths)
    assert ("append_tokens" in dict(sent)) == (chunk > 1)


def test_chunks_wait_for_room_like_whole_prompts() -> None:
    for mode in LlamaPipelineMode:
        pipeline, stages = fake_pipeline(mode, num_blocks=9)  # two at a time
        with pipeline:
            prompts = [[n] * 10 for n in range(6)]
            result = pipeline.generate(prompts, max_new_tokens=6, prefill_chunk=4, **NO_STOP)
            assert [done.tokens for done in result.completions] == [greedy(p, 6) for p in prompts]
            assert result.metrics["running_max"] == 2
            assert all(stage.cache.free_blocks == 9 for stage in stages)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_prompt_whose_chunk_failed_is_reported_and_others_go_on(stage: int, late: bool) -> None:
    for mode in LlamaPipelineMode:
        pipeline, stages = fake_pipeline(mode)
        with pipeline:
            stages[stage].fail("prefill_hidden" if stage else "prefill_tokens", 1, late=late)
            result = pipeline.generate(
                [[1, 2], [3] * 11, [4]],
                max_new_tokens=4,
                prefill_chunk=4,
                on_error="report",
                **NO_STOP,
            )
            good, bad, other = result.completions
            assert (good.tokens, other.tokens) == (greedy([1, 2], 4), greedy([4], 4))
            assert (bad.finish_reason, bad.tokens) == ("error", [])
            assert f"stage {stage} failed in prefill_" in bad.error
            assert footprint(pipeline) == [({}, 256)] * 3


def test_two_streams_of_mode_auto_while_the_stages_are_arranged_anew() -> None:
    pipeline, stages = fake_pipeline("auto")
    with pipeline:
        ways = [BATCH, Candidate(LlamaPipelineMode.CONTINUOUS, 3)]
        ways.append(Candidate(LlamaPipelineMode.OVERLAPPED, 3))
        turn = itertools.count()
        pipeline._steering._chosen = lambda running: ways[next(turn) // 3 % 3]  # type: ignore
        pipeline.prefill("mine", [1, 2])
        streams = [
            pipeline.stream([[n + k] * 6 for k in range(9)], max_new_tokens=7, prefill_chunk=4,
                            max_batch=6, **NO_STOP)
            for n in (3, 20)
        ]  # fmt: skip
        position = 2
        while any([next(stream, None) for stream in streams]):
            if position < 40:
                pipeline.decode("mine", 5, position)
                position += 1
            pipeline.prefill("other", [1])
            pipeline.release("other")
        for n, stream in zip((3, 20), streams, strict=True):
            got = [done.tokens for done in stream.result().completions]
            assert got == [greedy([n + k] * 6, 7) for k in range(9)]
        served = {name for name, _, _ in stages[1].threads_seen}
        assert served == {"lamella-stages", "lamella-stage-1"}
        assert [lengths for lengths, _ in footprint(pipeline)] == [{"mine": 40}] * 3


def test_real_stages_generate_what_decoding_by_hand_gives() -> None:
    with parity_pipeline() as pipeline:
        result = pipeline.generate([[1, 2], [3]], max_new_tokens=6, **NO_STOP)
        for prompt, done in zip([[1, 2], [3]], result.completions, strict=True):
            logits = pipeline.prefill("hand", prompt)
            tokens = []
            for position in range(len(prompt), len(prompt) + 6):
                tokens.append(int(logits.argmax()))
                logits = pipeline.decode("hand", tokens[-1], position)
            assert done.tokens == tokens
            pipeline.release("hand")
