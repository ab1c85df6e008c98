"""Cuts: equal to the best of all cuts, one by one, also where stages share memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cuts import StageCosts, best_cuts, least_extra
from pipeline.splits import even_ranges

Key = tuple[int, int, list[int]]


def all_cuts(layers: int, stages: int) -> Iterator[list[range]]:
    for inner in combinations(range(1, layers), stages - 1):
        yield [range(a, b) for a, b in pairwise([0, *inner, layers])]


def spent(stage: StageCosts, layers: range) -> tuple[int, int]:
    """Time and bytes of a stage."""
    part = slice(layers.start, layers.stop)
    held = sum(stage.layer_bytes[part]) + stage.own_bytes
    return sum(stage.layer_times[part]) + stage.own_time, held


def slowest(stages: list[StageCosts], cut: list[range]) -> int:
    return max(spent(stage, layers)[0] for stage, layers in zip(stages, cut, strict=True))


def fits(stages: list[StageCosts], memory: dict[str, int], cut: list[range]) -> bool:
    held = dict.fromkeys(memory, 0)
    for stage, layers in zip(stages, cut, strict=True):
        if stage.device in held:
            held[stage.device] += spent(stage, layers)[1]
    return all(held[name] <= most for name, most in memory.items())


def brute_force(stages: list[StageCosts], memory: dict[str, int]) -> list[range] | None:
    def key(cut: list[range]) -> Key:
        largest = max(spent(stage, layers)[1] for stage, layers in zip(stages, cut, strict=True))
        return slowest(stages, cut), largest, [layers.stop for layers in cut]

    cuts = all_cuts(len(stages[0].layer_times), len(stages))
    return min((cut for cut in cuts if fits(stages, memory, cut)), key=key, default=None)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[StageCosts], dict[str, int]]:
    """Up to seven layers and five stages, on devices that differ, are shared, or have no limit."""
    layers = draw(st.integers(1, 7))
    few = st.lists(st.integers(0, 6), min_size=layers, max_size=layers)
    stages = [
        StageCosts(
            draw(st.sampled_from("abc")),
            draw(few),
            draw(few),
            draw(st.integers(0, 9)),
            draw(st.integers(0, 9)),
        )
        for _ in range(draw(st.integers(1, min(5, layers))))
    ]
    return stages, draw(st.dictionaries(st.sampled_from("abc"), st.integers(0, 40)))


@given(problems())
def test_no_cut_is_better(problem: tuple[list[StageCosts], dict[str, int]]) -> None:
    stages, memory = problem
    found = best_cuts(stages, memory)
    assert found == brute_force(stages, memory)
    even = even_ranges(len(stages[0].layer_times), len(stages))
    if fits(stages, memory, even):
        assert found is not None
        assert slowest(stages, found) <= slowest(stages, even)


@given(problems(), st.integers(0, 20))
def test_more_memory_is_never_slower(
    problem: tuple[list[StageCosts], dict[str, int]], more: int
) -> None:
    stages, memory = problem
    before = best_cuts(stages, memory)
    after = best_cuts(stages, {name: most + more for name, most in memory.items()})
    if before is not None:
        assert after is not None
        assert slowest(stages, after) <= slowest(stages, before)


@given(problems())
def test_the_least_extra_is_just_enough(
    problem: tuple[list[StageCosts], dict[str, int]],
) -> None:
    stages, memory = problem
    extra = least_extra(stages, memory)
    assert best_cuts(stages, {name: most + extra for name, most in memory.items()}) is not None
    if extra:
        less = {name: most + extra - 1 for name, most in memory.items()}
        assert best_cuts(stages, less) is None


def large(devices: list[str]) -> list[StageCosts]:
    """A stage for each device name, 200 layers and a heavy head."""
    stages = [StageCosts(name, [1000] * 200, [10] * 200) for name in devices]
    return [*stages[:-1], replace(stages[-1], own_time=2500)]


@pytest.mark.parametrize(
    ("devices", "memory"),
    [
        ([f"d{i}" for i in range(64)], 50),
        (["cpu"] * 64, 2000),
        ([f"d{i // 8}" for i in range(64)], 251),  # eight stages on each of eight devices
        ([f"d{i % 2}" for i in range(6)], 1100),
    ],
)
def test_large_models_are_cut_at_once(devices: list[str], memory: int) -> None:
    stages = large(devices)
    start = perf_counter()
    found = best_cuts(stages, dict.fromkeys(devices, memory))
    seconds = perf_counter() - start
    assert found is not None
    # As fast as the total allows, for stages hold whole layers.
    assert slowest(stages, found) == -(-(200 + 2.5) // len(devices)) * 1000
    assert seconds < 5  # it is a tenth of one, on a machine that does nothing else
