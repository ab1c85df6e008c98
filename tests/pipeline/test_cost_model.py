"""Fitted times of stages and hops, and the cycles that follow from them."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from kernels.errors import InvalidInputError
from pipeline.candidates import BATCH, Arrangement, Candidate, candidates
from pipeline.cost_model import CostModel
from pipeline.explanation import predict_all
from pipeline.fitting import LineFit
from pipeline.modes import LlamaPipelineMode
from pipeline.stage_cost import StageCost
from tests.pipeline.simulated_pipeline import Simulated

TURNS, TOGETHER = Arrangement.TURNS, Arrangement.TOGETHER
TRUE = StageCost(3e-3, 1e-4, 2e-8)


def continuous(groups: int) -> Candidate:
    return Candidate(LlamaPipelineMode.CONTINUOUS, groups)


def overlapped(microbatches: int) -> Candidate:
    return Candidate(LlamaPipelineMode.OVERLAPPED, microbatches)


def quiet(stages: list[StageCost], hop: float, candidate: Candidate, rows: int) -> float:
    """Seconds of a cycle in the steady state, simulated."""
    pipeline = Simulated(stages, hop=hop, noise=0.0, stalled=0.0)
    return [pipeline.cycle(candidate, rows, 100) for _ in range(30)][-1]


@pytest.mark.parametrize("stalled", [0.0, 0.02])
def test_a_line_is_found_through_noise_and_stalls(stalled: float) -> None:
    luck = random.Random(1)
    model = CostModel(1)
    for cached in (100, 1000, 4000):
        for rows in (2, 8, 32) * 20:
            slow = 10 if luck.random() < stalled else 1
            seconds = TRUE.at(rows, cached) * luck.lognormvariate(0, 0.03) * slow
            model.observe_stage(TURNS, 0, rows, cached, seconds)
    costs = model.stage_costs(TURNS)
    assert costs is not None
    for rows, cached in [(2, 100), (8, 1000), (16, 2000), (32, 4000), (48, 3000)]:
        assert costs[0].at(rows, cached) == pytest.approx(TRUE.at(rows, cached), rel=0.05)
    assert min(costs[0].per_call, costs[0].per_row, costs[0].per_cached) >= 0


def test_one_size_is_split_as_guessed_and_two_sizes_as_measured() -> None:
    guess = StageCost(8.0, 0.1)  # four fifths of it weights at 20 rows; its size is wrong
    model = CostModel(1, guesses={TURNS: [guess]})
    for _ in range(20):
        model.observe_stage(TURNS, 0, 20, 0, 5e-3)
    (cost,) = model.stage_costs(TURNS) or []
    assert cost.at(20, 0) == pytest.approx(5e-3, rel=0.01)
    assert cost.per_call == pytest.approx(4e-3, rel=0.02)
    predicted = model.predict(BATCH, 5, 0)
    assert predicted is not None
    assert predicted.low < 0.8 * predicted.seconds  # nobody knows what 5 rows take
    for _ in range(20):
        model.observe_stage(TURNS, 0, 5, 0, 2e-3)
    (cost,) = model.stage_costs(TURNS) or []
    assert cost.at(5, 0) == pytest.approx(2e-3, rel=0.03)
    assert cost.per_call == pytest.approx(1e-3, rel=0.15)


def test_no_term_is_negative_where_times_fall_with_size() -> None:
    model = CostModel(1)
    for rows, seconds in [(2, 4e-3), (8, 3e-3), (32, 2e-3)] * 5:
        model.observe_stage(TURNS, 0, rows, 50.0 * rows, seconds)
    (cost,) = model.stage_costs(TURNS) or []
    assert min(cost.per_call, cost.per_row, cost.per_cached) >= 0


def test_what_is_slower_now_is_soon_believed() -> None:
    model = CostModel(1)
    for seconds in [1e-3] * 100 + [1.4e-3] * 12:
        model.observe_stage(TURNS, 0, 8, 100, seconds)
    (cost,) = model.stage_costs(TURNS) or []
    assert cost.at(8, 100) == pytest.approx(1.4e-3, rel=0.02)


def test_a_hop_is_a_start_and_bytes() -> None:
    model = CostModel(2, row_bytes=1000)
    for nbytes in (1000, 8000, 64000) * 8:
        model.observe_hop(TOGETHER, 0, nbytes, 1e-4 + 1e-9 * nbytes)
    (start, per_byte), unseen = model.hop_costs(TOGETHER)
    for nbytes, rel in [(64000, 0.01), (8000, 0.1), (1000, 0.12)]:  # best at the newest size
        assert start + per_byte * nbytes == pytest.approx(1e-4 + 1e-9 * nbytes, rel=rel)
    assert unseen == (0.0, 0.0)
    assert model.hop_costs(TURNS)[0] == (start, per_byte)  # better than nothing


@pytest.mark.parametrize("stage_count", [2, 3, 4, 8])
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("hop", [0.0, 5e-4, 3e-3])
@pytest.mark.parametrize("rows", [2, 7, 32])
def test_cycles_are_what_a_pipeline_takes(
    stage_count: int, equal: bool, hop: float, rows: int
) -> None:
    factors = [1.0 if equal else 1.0 + (3 * stage) % 4 / 4 for stage in range(stage_count)]
    stages = [StageCost(1e-3 * f, 5e-5 * f, 1e-7 * f) for f in factors]
    hops = [(hop, 0.0)] * stage_count
    model = CostModel(stage_count, guesses={TURNS: stages}, hops=hops)
    for candidate in candidates(stage_count, rows):
        predicted = model.predict(candidate, rows, 100)
        assert predicted is not None
        seconds = quiet(stages, hop, candidate, rows)
        # Groups that differ by a row wait for each other a little, which no formula counts.
        even = rows % candidate.groups == 0
        assert seconds == pytest.approx(predicted.seconds, rel=1e-9 if even else 0.05)


def test_the_table_of_the_arithmetic() -> None:
    """Gains over batch with two equal stages, as X/w grows."""
    for ratio, per_call, steady in [
        (0.1, 0.70, 1.05),
        (1, 0.89, 1.33),
        (2, 1, 1.5),
        (4, 1.11, 1.67),
    ]:
        model = CostModel(2, guesses={TURNS: [StageCost(1.0, ratio / 16)] * 2})
        times = [model.predict(one, 16, 0) for one in (BATCH, overlapped(2), continuous(2))]
        batch, overlap, groups = (one.seconds for one in times if one is not None)
        assert batch / overlap == pytest.approx(per_call, abs=0.01)
        assert batch / groups == pytest.approx(steady, abs=0.01)


def test_stalls_are_counted_once_for_each_second_of_work() -> None:
    stages = [StageCost(1e-3, 5e-5)] * 3
    for candidate in (BATCH, continuous(3)):
        model = CostModel(3)
        pipeline = Simulated(stages, stalled=0.01, seed=3)
        started = pipeline.now
        for cycle in range(600):
            if cycle % 50 == 0:  # as choosing does
                model.predict(candidate, 24, 0)
            pipeline.cycle(candidate, 24, 0, model)
        predicted = model.predict(candidate, 24, 0)
        assert predicted is not None
        assert (pipeline.now - started) / 600 == pytest.approx(predicted.seconds, rel=0.06)


def test_the_other_arrangement_serves_until_one_has_run() -> None:
    model = CostModel(2, guesses={TURNS: [StageCost(1, 1)] * 2, TOGETHER: [StageCost(2, 2)] * 2})
    for stage in range(2):
        for _ in range(4):
            model.observe_stage(TURNS, stage, 8, 0, 9e-3)
    unseen = model.predict(continuous(2), 16, 0)
    assert unseen is not None
    assert unseen.seconds == pytest.approx(4 * 9e-3, rel=0.01)
    for stage in range(2):
        for _ in range(4):
            model.observe_stage(TOGETHER, stage, 8, 0, 12e-3)
    seen = model.predict(continuous(2), 16, 0)
    assert seen is not None
    assert seen.seconds == pytest.approx(24e-3, rel=0.01)
    assert seen.doubt < unseen.doubt
    assert CostModel(2).predict(BATCH, 4, 0) is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_absurd_times_change_nothing(seconds: float) -> None:
    model = CostModel(2)
    with pytest.raises(InvalidInputError, match=r"stage 1 took .* expected a finite time above 0"):
        model.observe_stage(TURNS, 1, 4, 10, seconds)
    with pytest.raises(InvalidInputError, match="hop 0 took"):
        model.observe_hop(TURNS, 0, 4, seconds)
    assert model.stage_costs(TURNS) is None
    assert model.hop_costs(TURNS) == [(0.0, 0.0)] * 2


def test_other_absurdities() -> None:
    model = CostModel(2)
    for stage, rows, cached, name in [
        (2, 4, 1.0, "stage"),
        (0, 0, 1.0, "rows"),
        (0, 4, -1.0, "cached"),
    ]:
        with pytest.raises(InvalidInputError, match=name):
            model.observe_stage(TURNS, stage, rows, cached, 1.0)
    with pytest.raises(InvalidInputError, match="-1 bytes"):
        model.observe_hop(TURNS, 0, -1, 1.0)
    with pytest.raises(InvalidInputError, match="stage_count is 0"):
        CostModel(0)
    with pytest.raises(InvalidInputError, match="each of 2 stages"):
        CostModel(2, guesses={TURNS: [TRUE]})
    with pytest.raises(InvalidInputError, match=r"StageCost\.per_row is nan"):
        StageCost(1.0, float("nan"))


def test_a_prediction_without_running_explains_itself() -> None:
    slow = StageCost(2e-3, 1e-3)
    found = predict_all(16, 256, {TURNS: [TRUE, slow]}, hops=[(1e-5, 1e-9)] * 2, row_bytes=8192)
    assert found.chosen.mode is LlamaPipelineMode.CONTINUOUS
    document = found.json()
    assert [one["mode"] for one in document["candidates"]][:2] == ["batch", "overlapped"]
    assert document["stages"]["together"][1]["per_row"] == pytest.approx(1e-3)
    headings, lines = found.table()
    assert all(len(line) == len(headings) for line in lines)
    assert sum(line[-1].startswith("chosen") for line in lines) == 1
    with pytest.raises(InvalidInputError, match="rows is 0"):
        predict_all(0, 256, {TURNS: [TRUE]})


def test_observing_is_cheap() -> None:
    fit = LineFit()
    start = time.perf_counter()
    for call in range(2000):
        fit.observe(call % 7 + 1, call / 3, 1e-3)
    assert (time.perf_counter() - start) / 2000 < 200e-6  # about 2 us on a quiet machine
    assert fit.lines(np.ones(3)).shape == (3, 3)
