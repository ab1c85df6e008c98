"""Tuning: every configuration is timed, only right ones count, the best is kept for this device."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import get_op, tuning
from kernels.benchmarking import tune as module
from kernels.benchmarking.timing import Timing
from kernels.case_inputs import Inputs
from kernels.rope_append.kernel import ROPE_APPEND
from kernels.target import target_of
from kernels.tuning import Config, Tunable
from tests.devices import DEVICE


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_CACHE", str(tmp_path))


def test_the_best_of_the_right_ones_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(torch.device(DEVICE))
    space = [Config({"BLOCK_HEADS": heads}, 1, 1) for heads in (1, 2, 4, 8)]
    tunable = type(ROPE_APPEND)(ROPE_APPEND.name, lambda key, t: space[0], lambda key, t: space)
    monkeypatch.setattr("kernels.rope_append.kernel.ROPE_APPEND", tunable)
    times = iter([50.0, 20.0, 10.0, 5.0, 50.0, 5.0])  # the last two: the finalists again
    monkeypatch.setattr(module, "time_call", lambda *a: Timing(next(times), 0.0, 1))
    # Of the two that are faster than what came before, the third is wrong.
    verdicts = iter([True, True, False, True])
    monkeypatch.setattr(module, "_right", lambda *a: next(verdicts))
    op = get_op("rope_append")
    (found,) = module.tune(op, [op.cases[0]], DEVICE, 60.0)
    assert (found.tried, found.of) == (4, 4)
    assert (found.default_us, found.best_us) == pytest.approx((50.0, 5.0))
    assert found.red == 1
    assert found.config["BLOCK_HEADS"] == 8
    kept = json.loads(tuning.local_store(target).read_text())
    assert kept[found.name] == found.config


def test_the_best_is_right_in_every_case_that_shares_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = [Config({"BLOCK_HEADS": heads}, 1, 1) for heads in (1, 2, 4)]
    tunable = type(ROPE_APPEND)(ROPE_APPEND.name, lambda key, t: space[0], lambda key, t: space)
    monkeypatch.setattr("kernels.rope_append.kernel.ROPE_APPEND", tunable)
    op = get_op("rope_append")
    cases = [case for case in op.cases if case.params["heads"][2] == 64]
    first, second = cases[:2]
    times = iter([50.0, 50.0, 20.0, 20.0, 5.0, 5.0, 50.0, 50.0, 20.0, 20.0])
    monkeypatch.setattr(module, "time_call", lambda *a: Timing(next(times), 0.0, 1))
    asked = []

    def right(op, subject, device) -> bool:
        asked.append(subject.case.name)
        return len(asked) != 6  # the fastest, in the second case

    monkeypatch.setattr(module, "_right", right)
    (found,) = module.tune(op, [first, second], DEVICE, 60.0)
    assert asked == [first.name, second.name] * 3
    assert found.red == 1
    assert found.config["BLOCK_HEADS"] == 2


def swept(
    monkeypatch: pytest.MonkeyPatch, times: list[float], configs: int, cases: int
) -> tuple[module.Tuned, list[float]]:
    """rope_append's sweep where each time that is taken is the next of `times`, all right; and the
    times that were left."""
    space = [Config({"BLOCK_HEADS": 2**index}, 1, 1) for index in range(configs)]
    tunable = type(ROPE_APPEND)(ROPE_APPEND.name, lambda key, t: space[0], lambda key, t: space)
    monkeypatch.setattr("kernels.rope_append.kernel.ROPE_APPEND", tunable)
    left = list(times)
    monkeypatch.setattr(module, "time_call", lambda *a: Timing(left.pop(0), 0.0, 1))
    monkeypatch.setattr(module, "_right", lambda *a: True)
    op = get_op("rope_append")
    chosen = [case for case in op.cases if case.params["heads"][2] == 64][:cases]
    (found,) = module.tune(op, chosen, DEVICE, 60.0)
    return found, left


def test_cases_of_unequal_size_are_compared_each_with_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The first case takes a hundred times as long as the second; the third configuration is given
    # up after its first.
    times = [1000.0, 10.0, 800.0, 8.0, 2000.0, 1000.0, 10.0, 800.0, 8.0]
    found, left = swept(monkeypatch, times, configs=3, cases=2)
    assert left == []
    assert found.config["BLOCK_HEADS"] == 2
    assert (found.default_us, found.best_us) == pytest.approx((100.0, 80.0))


@pytest.mark.parametrize(
    ("again", "kept"), [([100.0, 99.0], 1), ([100.0, 97.0], 2)], ids=["noise", "a gain"]
)
def test_less_than_two_percent_leaves_the_default(
    again: list[float], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, left = swept(monkeypatch, [100.0, 90.0, *again], configs=2, cases=1)
    assert left == []
    assert found.config["BLOCK_HEADS"] == kept
    assert found.best_us == pytest.approx(again[kept - 1])


def test_what_launches_nothing_is_not_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time_call", lambda *a: Timing(1.0, 0.0, 1))
    monkeypatch.setattr(module, "_right", lambda *a: True)
    op = get_op("rope_append")
    asked = Tunable("only_asked", lambda key, target: Config({}, 1, 1))

    def bind(inputs: Inputs, impl: str) -> Callable[[], Any]:
        call = op.bind(inputs, impl)
        return lambda: (asked.config((), torch.device(DEVICE)), call())

    (found,) = module.tune(replace(op, bind=bind), [op.cases[0]], DEVICE, 0.0)
    assert found.name.startswith(ROPE_APPEND.name)


def test_a_sweep_for_real() -> None:
    op = get_op("rope_append")
    (found,) = module.tune(op, [op.cases[0]], DEVICE, 0.0)
    assert (found.tried, found.red) == (1, 0)  # the default, if time is up at once
    assert 0 < found.best_us == found.default_us
