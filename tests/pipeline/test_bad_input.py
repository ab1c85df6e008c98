"""Bad input at the pipeline's border: a message that names it, and nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from kernels.errors import CapacityError, InvalidInputError, LamellaError
from pipeline.errors import StageError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from tests.pipeline.building import footprint, parity_pipeline, parity_stages

Call = Callable[[LlamaPipeline], Any]


@pytest.fixture(params=["batch", "overlapped", "continuous", "auto"])
def pipeline(request: pytest.FixtureRequest) -> Iterator[LlamaPipeline]:
    """Holds "a" with 3 positions and "b" with 1, one block each; 6 blocks of 4 tokens in all."""
    with parity_pipeline(mode=request.param, block_size=4, kv_tokens=24) as pipeline:
        pipeline.prefill("a", [0, 1, 2])
        pipeline.prefill("b", [3])
        yield pipeline


def wide(rows: int) -> list[tuple[str, int, int]]:
    """A good batch of new sequences, enough to be cut in overlapped mode."""
    return [(f"w{row}", 1, 0) for row in range(rows)]


BAD: dict[str, tuple[Call, type[LamellaError], str]] = {
    "token too high in prefill": (
        lambda p: p.prefill("a", [1, 7]),
        InvalidInputError,
        "token id 7 at place 1 of sequence 'a' is outside the vocabulary of 7",
    ),
    "negative token in prefill": (
        lambda p: p.prefill("new", [-1]),
        InvalidInputError,
        "token id -1 at place 0 of sequence 'new' is outside the vocabulary of 7",
    ),
    "token too high in a batch": (
        lambda p: p.decode_batch([("a", 1, 3), ("b", 9, 1)]),
        InvalidInputError,
        r"token id 9 of row 1 \(sequence 'b'\) is outside the vocabulary of 7",
    ),
    "token too high in the last microbatch": (
        lambda p: p.decode_batch([*wide(16), ("b", 7, 1)]),
        InvalidInputError,
        r"token id 7 of row 16 \(sequence 'b'\)",
    ),
    "position too far": (
        lambda p: p.decode("a", 1, 5),
        InvalidInputError,
        "sequence 'a' of row 0 is 3 long, so its position must be 3; got 5",
    ),
    "position too early": (
        lambda p: p.decode_batch([("b", 1, 1), ("a", 1, 0)]),
        InvalidInputError,
        "sequence 'a' of row 1 is 3 long, so its position must be 3; got 0",
    ),
    "negative position": (
        lambda p: p.decode("a", 1, -1),
        InvalidInputError,
        "position must be 3; got -1",
    ),
    "unknown id past position 0": (
        lambda p: p.decode("nobody", 1, 4),
        InvalidInputError,
        "sequence 'nobody' of row 0 holds no tokens, so its position must be 0; got 4",
    ),
    "unknown id past position 0, greedy": (
        lambda p: p.decode_greedy([("a", 1, 3), ("nobody", 1, 1)]),
        InvalidInputError,
        "sequence 'nobody' of row 1 holds no tokens",
    ),
    "duplicate id": (
        lambda p: p.decode_batch([("a", 1, 3), ("b", 1, 1), ("a", 1, 4)]),
        InvalidInputError,
        "sequence 'a' appears twice in one batch, in rows 0 and 2",
    ),
    "empty prefill": (
        lambda p: p.prefill("a", []),
        InvalidInputError,
        "prefill of sequence 'a' called with no tokens",
    ),
    "float token": (
        lambda p: p.prefill("a", [1, 2.0]),
        InvalidInputError,
        "token 1 of sequence 'a' is 2.0; expected an integer",
    ),
    "boolean token": (
        lambda p: p.decode("a", True, 3),
        InvalidInputError,
        r"token of row 0 \(sequence 'a'\) is True; expected an integer",
    ),
    "text as tokens": (
        lambda p: p.prefill("a", "text"),
        InvalidInputError,
        "tokens of sequence 'a' are text 'text'; expected token ids",
    ),
    "None as token": (
        lambda p: p.decode_batch([("a", None, 3), ("b", 1, 1)]),
        InvalidInputError,
        r"token of row 0 \(sequence 'a'\) is None; expected an integer",
    ),
    "float position": (
        lambda p: p.decode("a", 1, 3.0),
        InvalidInputError,
        r"position of row 0 \(sequence 'a'\) is 3.0; expected an integer",
    ),
    "two-dimensional tokens": (
        lambda p: p.prefill("a", torch.tensor([[1, 2]])),
        InvalidInputError,
        r"token 0 of sequence 'a' is \[1, 2\]; expected an integer",
    ),
    "a lone token": (
        lambda p: p.prefill("a", torch.tensor(3)),
        InvalidInputError,
        "tokens of sequence 'a' are 3; expected a list",
    ),
    "a row of two": (
        lambda p: p.decode_batch([("a", 1)]),
        InvalidInputError,
        r"row 0 of the batch is \('a', 1\); expected \(id, token, position\)",
    ),
    "an id that is no text": (
        lambda p: p.prefill(5, [1]),
        InvalidInputError,
        "sequence id is 5; expected a string",
    ),
    "an id that is no text, in a batch": (
        lambda p: p.decode_batch([(5, 1, 0)]),
        InvalidInputError,
        "sequence id of row 0 is 5; expected a string",
    ),
    "a reserved id": (
        lambda p: p.prefill("\0generate-0", [1]),
        InvalidInputError,
        "begins with .*marks the pipeline's own",
    ),
    "a reserved id in a batch": (
        lambda p: p.decode_batch([("\0x", 1, 0), ("a", 1, 3)]),
        InvalidInputError,
        "marks the pipeline's own",
    ),
    "longer than a sequence may be": (
        lambda p: p.prefill("a", [1] * 14),
        CapacityError,
        r"stage 0: .*'a'.*17.*16",
    ),
    "more blocks than are free": (
        lambda p: p.decode_batch([("a", 1, 3), *wide(17)]),
        CapacityError,
        r"stage 0: .*17.*4",
    ),
    "reserving too much": (
        lambda p: p.prepare("new", 17),
        CapacityError,
        r"stage 0: .*'new'.*17.*16",
    ),
    "reserving less than nothing": (
        lambda p: p.prepare("new", -1),
        InvalidInputError,
        "max_tokens is -1; expected at least 0",
    ),
    "truncating below nothing": (
        lambda p: p.truncate_kv("a", -1),
        InvalidInputError,
        "new_len is -1; expected at least 0",
    ),
    "scoring nothing": (lambda p: p.score([]), InvalidInputError, "called with no tokens"),
    "scoring wrong tokens": (
        lambda p: p.score([8]),
        InvalidInputError,
        "token id 8 at place 0 of the sequence to score",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_changes_nothing(name: str, pipeline: LlamaPipeline) -> None:
    call, error, message = BAD[name]
    before = footprint(pipeline)
    with pytest.raises(error, match=message):
        call(pipeline)
    assert footprint(pipeline) == before
    assert pipeline.decode("b", 4, 1).shape == (7,)  # and it goes on
    assert pipeline.cache_metrics_snapshot()["pipeline_decode"]["calls"] == 1


@pytest.mark.parametrize("emptied", [False, True])
def test_a_known_sequence_without_tokens_is_not_called_unknown(
    emptied: bool, pipeline: LlamaPipeline
) -> None:
    pipeline.truncate_kv("b", 0) if emptied else pipeline.prepare("new", 2)
    seq_id = "b" if emptied else "new"
    with pytest.raises(InvalidInputError) as caught:
        pipeline.decode(seq_id, 1, 1)
    assert str(caught.value) == (
        f"sequence {seq_id!r} of row 0 holds no tokens, so its position must be 0; got 1"
    )


def test_a_prompt_that_needs_more_blocks_than_are_free(pipeline: LlamaPipeline) -> None:
    pipeline.prefill("c", [1] * 12)
    before = footprint(pipeline)
    with pytest.raises(CapacityError, match=r"stage 0: .*2 .*1 "):
        pipeline.prefill("d", [1] * 8)
    assert footprint(pipeline) == before


def test_integers_of_other_kinds_are_welcome(pipeline: LlamaPipeline) -> None:
    expected = pipeline.prefill("x", [1, 2, 3])
    assert torch.equal(pipeline.prefill("y", torch.tensor([1, 2, 3])), expected)
    assert torch.equal(pipeline.prefill("z", np.array([1, 2, 3])), expected)
    assert torch.equal(pipeline.prefill("t", iter((1, 2, 3))), expected)
    following = pipeline.decode("x", 4, 3)
    assert torch.equal(pipeline.decode("y", np.int64(4), torch.tensor(3)), following)


def test_unknown_ids_are_left_alone(pipeline: LlamaPipeline) -> None:
    before = footprint(pipeline)
    pipeline.truncate_kv("nobody", 3)
    pipeline.release("nobody")
    pipeline.truncate_kv("a", 3)
    pipeline.truncate_kv("a", 100)  # never lengthens
    assert footprint(pipeline) == before
    assert pipeline.cache_len("nobody") == 0


def test_decoding_an_unknown_id_at_position_0_begins_it(pipeline: LlamaPipeline) -> None:
    logits = pipeline.decode("new", 4, 0)
    assert torch.equal(logits, pipeline.prefill("other", [4]))
    assert pipeline.cache_len("new") == 1


def test_stages_that_no_longer_agree_are_named(pipeline: LlamaPipeline) -> None:
    pipeline.stages[1].truncate("a", 2)  # past the pipeline
    for call in (lambda: pipeline.prefill("a", [1]), lambda: pipeline.decode("a", 1, 3)):
        with pytest.raises(StageError, match=r"stage 1 failed in .*'a' is at length 2, got .* 3"):
            call()
    pipeline.release("a")
    assert pipeline.cache_len("a") == 0
    assert pipeline.prefill("a", [1]).shape == (7,)


def test_a_pipeline_begins_with_what_its_stages_hold(pipeline: LlamaPipeline) -> None:
    pipeline.prepare("b", 5)
    stages, expected = pipeline.stages, pipeline.decode("a", 1, 3)
    with LlamaPipeline(stages, pipeline.placement, threads=1) as other:
        assert other.cache_len("a") == 4
        other.truncate_kv("a", 3)
        assert torch.equal(other.decode("a", 1, 3), expected)
        other.truncate_kv("b", 0)
        assert footprint(other) == footprint(pipeline)
    stages[1].truncate("a", 2)
    with LlamaPipeline(stages, pipeline.placement, threads=1) as other:
        message = "stage 1 holds 2 positions of sequence 'a', stage 0 holds 4; release it"
        for call in (lambda: other.prefill("a", [1]), lambda: other.cache_len("a")):
            with pytest.raises(InvalidInputError, match=message):
                call()
        other.release("a")
        assert other.cache_len("a") == 0


def test_capacity_is_the_least_over_the_stages() -> None:
    from pipeline.placement import Placement
    from tests.pipeline.fake_stage import fake_stages

    stages = fake_stages([1, 1, 1])
    stages[1].cache = type(stages[1].cache)(stages[1].layout, 0, 3, 64)
    with LlamaPipeline(stages, Placement.even(3, 3), threads=1) as pipeline:
        assert pipeline.kv_capacity() == 12
        with pytest.raises(CapacityError, match="stage 1: "):
            pipeline.prefill("a", [1] * 13)
        assert footprint(pipeline) == [({}, 256), ({}, 3), ({}, 256)]


CLOSED: dict[str, Call] = {
    "prefill": lambda p: p.prefill("a", [1]),
    "score": lambda p: p.score([1]),
    "decode": lambda p: p.decode("a", 1, 3),
    "decode_batch": lambda p: p.decode_batch([("a", 1, 3), ("b", 1, 1)]),
    "decode_greedy": lambda p: p.decode_greedy([("a", 1, 3)]),
    "prepare": lambda p: p.prepare("a", 4),
    "cache_len": lambda p: p.cache_len("a"),
    "kv_capacity": lambda p: p.kv_capacity(),
    "truncate_kv": lambda p: p.truncate_kv("a", 1),
    "release": lambda p: p.release("a"),
    "reset": lambda p: p.reset(),
    "generate": lambda p: p.generate([1]),
    "stream": lambda p: p.stream([1]),
}


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_pipeline_says_so(name: str, pipeline: LlamaPipeline) -> None:
    pipeline.close()
    with pytest.raises(LamellaError, match="the pipeline is closed"):
        CLOSED[name](pipeline)


@pytest.mark.parametrize("mode", ["batch", "overlapped", "auto"])
def test_groups_are_for_continuous_mode_alone(mode: str) -> None:
    what = f"groups is 3, but mode is '{mode}'; expected mode 'continuous'"
    placement = Placement.even(3, 2, mode=mode)
    with pytest.raises(InvalidInputError, match=what):
        LlamaPipeline(parity_stages([2, 1]), placement, groups=3)
    with pytest.raises(InvalidInputError, match=what):
        LlamaPipeline.from_pretrained("/no/such/folder", stages=2, mode=mode, groups=3)


@pytest.mark.parametrize("last_s", [0, -1, float("nan")])
def test_a_timeline_of_no_time_is_refused(last_s: float, pipeline: LlamaPipeline) -> None:
    with pytest.raises(InvalidInputError, match=f"last_s is {last_s}; expected seconds above 0"):
        pipeline.timeline(last_s)
    assert pipeline.timeline(1e-9).seconds == pytest.approx(1e-9)
