"""Time every launch configuration of an operator's kernels and keep the best for this GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kernels import tuning
from kernels.benchmarking.timing import time_call
from kernels.case_inputs import Case
from kernels.op import Op, Yardstick
from kernels.target import target_of
from kernels.tuning import Key, Tunable


@dataclass(frozen=True)
class Tuned:
    """What was found for one tunable and key; times in microseconds, over all cases that share the
    key as a geometric mean."""

    name: str
    config: dict[str, Any]
    default_us: float
    best_us: float
    tried: int
    of: int
    red: int  # configurations that raised or missed the error budget


@dataclass
class _Subject:
    """A case, ready to be timed, with what its results are measured against."""

    case: Case
    call: Any
    yardstick: Yardstick | None = None


def tune(op: Op, cases: Sequence[Case], device: str, budget_s: float) -> list[Tuned]:
    """Sweep the spaces of the tunables that `op` asks for in `cases`, for about `budget_s` seconds.

    A configuration counts only if its results stay within the error budget in every case that
    shares the key. The best by the geometric mean over these cases is kept in this machine's store,
    after each key.
    """
    with torch.inference_mode():
        subjects = [_Subject(c, op.bind(op.make_inputs(c, device, 0), "triton")) for c in cases]
        groups: dict[tuple[str, Key], tuple[Tunable, list[_Subject]]] = {}
        for subject in subjects:
            with tuning.seen() as seen:
                subject.call()
            for tunable, key in dict.fromkeys(seen):
                groups.setdefault((tunable.name, key), (tunable, []))[1].append(subject)
        found = []
        for index, ((_, key), (tunable, sharing)) in enumerate(groups.items()):
            share = budget_s / (len(groups) - index)
            start = time.perf_counter()
            found.append(_sweep(op, tunable, key, sharing, device, share))
            budget_s -= time.perf_counter() - start
        return found


def _sweep(
    op: Op, tunable: Tunable, key: Key, subjects: list[_Subject], device: str, budget_s: float
) -> Tuned:
    target = target_of(torch.device(device))
    default = tunable.default(key, target)
    space = [default, *(config for config in tunable.space(key, target) if config != default)]
    end = time.perf_counter() + budget_s
    times: dict[int, float] = {}
    red = tried = 0
    for index, config in enumerate(space):
        if index and time.perf_counter() > end:
            break
        tried += 1
        best = min(times.values(), default=math.inf)
        try:
            with tuning.forced(tunable, key, config):
                times[index] = _mean_us(subjects, device, best)
                # Slow as it is, the check is for what would be kept: whatever is best at last was
                # best when its turn came.
                if times[index] < best and not all(_right(op, s, device) for s in subjects):
                    del times[index]
                    red += 1
        except Exception:  # a configuration that does not fit the GPU raises what it likes
            times.pop(index, None)
            red += 1
    name = tuning.entry_name(tunable.name, key)
    if not times:
        return Tuned(name, {}, math.nan, math.nan, tried, len(space), red)
    winner = min(times, key=times.__getitem__)
    tuning.keep(target, {name: space[winner]})
    chosen = space[winner].to_json()
    return Tuned(name, chosen, times.get(0, math.nan), times[winner], tried, len(space), red)


def _mean_us(subjects: list[_Subject], device: str, best: float) -> float:
    """Geometric mean of the cases' medians; the first one far behind `best` ends it."""
    logs = []
    for subject in subjects:
        logs.append(math.log(time_call(subject.call, device, 0.03).median_us))
        if math.exp(logs[0]) > 2 * best:
            break
    return math.exp(sum(logs) / len(logs))


def _right(op: Op, subject: _Subject, device: str) -> bool:
    if subject.yardstick is None:
        subject.yardstick = Yardstick(op, subject.case.stand_in or subject.case, device)
    return all(verdict.ok for verdict in subject.yardstick.measure("triton"))
