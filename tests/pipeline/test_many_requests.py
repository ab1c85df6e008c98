"""Ten thousand short requests while stages fail now and then: each ends rightly or says why."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Sequence
from typing import Any

from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from pipeline.sequences import Completion
from pipeline.spans import Sample, Span
from tests.pipeline.building import footprint
from tests.pipeline.fake_stage import VOCAB, FakeStage, Fault, fake_logits, fake_stages

LAYERS = 3
REQUESTS, PER_CALL = 10_000, 500
FAULTY_STEPS = 0.01
STEPS = ("prefill_", "append_", "decode_", "greedy")


def continued(prompt: Sequence[int], count: int) -> list[int]:
    """What a whole fake model says, in closed form: a layer adds its number and the position."""
    token, said = prompt[-1], []
    for position in range(len(prompt) - 1, len(prompt) - 1 + count):
        token = (token + LAYERS * (LAYERS - 1) // 2 + LAYERS * position) % VOCAB
        said.append(token)
    return said


def break_now_and_then(stages: Sequence[FakeStage], chance: random.Random) -> None:
    """Let a step fail with probability `FAULTY_STEPS`, on any stage, before or after its work."""
    share = FAULTY_STEPS / (2 * len(stages))

    def fail(operation: str, number: int) -> None:
        if operation.startswith(STEPS) and chance.random() < share:
            raise Fault(f"injected in {operation} {number}")

    for stage in stages:
        stage.before = stage.after = fail


def check(done: Completion, new_tokens: int) -> None:
    expected = continued(done.prompt, new_tokens)
    if done.finish_reason == "error":
        assert "Fault: injected in" in done.error
        assert done.tokens == expected[: len(done.tokens)]
    else:
        assert (done.finish_reason, done.tokens, done.error) == ("length", expected, None)


def objects_alive() -> int:
    """But for the timeline's, which are kept up to a limit of their own."""
    gc.collect()
    return sum(type(one) not in (Span, Sample) for one in gc.get_objects())


def test_the_closed_form_is_what_a_fake_model_says() -> None:
    tokens = [3, 49, 7]
    expected = continued(tokens, 4)
    for token in expected:
        assert token == int(fake_logits(tokens, LAYERS).argmax())
        tokens.append(token)


def test_ten_thousand_requests_with_faults_end_rightly_or_say_why() -> None:
    chance = random.Random(4)
    stages = fake_stages([1] * LAYERS)
    threads = threading.active_count()
    failed, alive = 0, []
    placement = Placement.even(LAYERS, LAYERS, mode="continuous")
    with LlamaPipeline(stages, placement, threads=1, groups=chance.randint(2, 5)) as pipeline:
        pipeline.prefill("mine", [1, 2, 3])
        before = footprint(pipeline)
        break_now_and_then(stages, chance)
        for _ in range(REQUESTS // PER_CALL):
            prompts = [
                [chance.randrange(VOCAB) for _ in range(chance.randint(1, 12))]
                for _ in range(PER_CALL)
            ]
            options: dict[str, Any] = {
                "max_new_tokens": chance.randint(1, 6),
                "prefill_chunk": chance.choice([5, 16, 64, 256]),
            }
            result = pipeline.generate(
                prompts, max_batch=64, on_error="report", stop_token_ids=(), **options
            )
            assert [done.prompt for done in result.completions] == prompts
            for done in result.completions:
                check(done, options["max_new_tokens"])
                failed += done.finish_reason == "error"
            assert footprint(pipeline) == before
            assert pipeline._engine.ledger.ids() == ["mine"]
            for stage in stages:
                stage.calls.clear()
            alive.append(objects_alive())
        assert REQUESTS / 1000 < failed < REQUESTS / 2
        for stage in stages:
            stage.mend()
        assert int(pipeline.decode_greedy([("mine", 4, 3)])) == continued([1, 2, 3, 4], 1)[0]
    assert alive[-1] < alive[len(alive) // 2] + 200  # what ran is not kept
    assert threading.active_count() == threads
