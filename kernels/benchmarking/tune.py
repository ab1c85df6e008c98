"""Time every launch configuration of an operator's kernels and keep the best for this GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kernels import tuning
from kernels.benchmarking.timing import time_call
from kernels.case_inputs import Case
from kernels.launch import recording
from kernels.op import Op, Yardstick
from kernels.target import target_of
from kernels.tuning import Key, Tunable

_SECONDS, _FINAL_SECONDS = 0.03, 0.2  # for a case
_LEAST_GAIN = 1.02  # less is no reason to leave the default


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
    """Sweep the spaces of the tunables that `op` uses in `cases`, for about `budget_s` seconds.

    A configuration counts only if its results stay within the error budget in every case that
    shares the key. The best by the geometric mean over these cases is kept in this machine's store,
    after each key; the default stays where nothing gains more than 2 %.
    """
    with torch.inference_mode():
        subjects = [_Subject(c, op.bind(op.make_inputs(c, device, 0), "triton")) for c in cases]
        groups: dict[tuple[str, Key], tuple[Tunable, list[_Subject]]] = {}
        for subject in subjects:
            with tuning.seen() as seen:
                subject.call()
            for tunable, key in dict.fromkeys(seen):
                if _launched(subject, tunable, key, device):
                    groups.setdefault((tunable.name, key), (tunable, []))[1].append(subject)
        found = []
        for index, ((_, key), (tunable, sharing)) in enumerate(groups.items()):
            share = budget_s / (len(groups) - index)
            start = time.perf_counter()
            found.append(_sweep(op, tunable, key, sharing, device, share))
            budget_s -= time.perf_counter() - start
        return found


def _launched(subject: _Subject, tunable: Tunable, key: Key, device: str) -> bool:
    """Whether a kernel is launched with the tunable's configuration: one that is only asked for
    makes no difference to the call's time."""
    config = tunable.default(key, target_of(torch.device(device)))
    with recording() as launches:
        for warps in (config.num_warps, 2 * config.num_warps):
            with tuning.forced(tunable, key, replace(config, num_warps=warps)):
                subject.call()
    half = len(launches) // 2
    return any(
        one.meta.get("num_warps") != other.meta.get("num_warps")
        for one, other in zip(launches[:half], launches[half:], strict=True)
    )


def _sweep(
    op: Op, tunable: Tunable, key: Key, subjects: list[_Subject], device: str, budget_s: float
) -> Tuned:
    target = target_of(torch.device(device))
    default = tunable.default(key, target)
    space = [default, *(config for config in tunable.space(key, target) if config != default)]
    end = time.perf_counter() + budget_s
    times: dict[int, list[float]] = {}  # of configurations that finished, in each case
    best: int | None = None
    red = tried = 0
    for index, config in enumerate(space):
        if index and time.perf_counter() > end:
            break
        tried += 1
        try:
            with tuning.forced(tunable, key, config):
                found = _times(subjects, device, None if best is None else times[best])
                if found is None or (best is not None and _mean(found) >= _mean(times[best])):
                    continue
                # Slow as it is, the check is for what would be kept: whatever is best at last was
                # best when its turn came.
                if all(_right(op, s, device) for s in subjects):
                    times[index], best = found, index
                else:
                    red += 1
        except Exception:  # a configuration that does not fit the GPU raises what it likes
            red += 1
    name = tuning.entry_name(tunable.name, key)
    if best is None:
        return Tuned(name, {}, math.nan, math.nan, tried, len(space), red)
    means = {index: _mean(times[index]) for index in (0, best) if index in times}
    if 0 in times and best != 0:
        # The best of many is lucky, too: both once more, for longer.
        for index in (0, best):
            with tuning.forced(tunable, key, space[index]):
                means[index] = _mean([_time(s, device, _FINAL_SECONDS) for s in subjects])
        if means[0] < _LEAST_GAIN * means[best]:
            best = 0
    tuning.keep(target, {name: space[best]})
    chosen = space[best].meta
    return Tuned(name, chosen, means.get(0, math.nan), means[best], tried, len(space), red)


def _times(subjects: list[_Subject], device: str, best: list[float] | None) -> list[float] | None:
    """The cases' medians in microseconds; None if one is far behind what `best` has for it."""
    times = []
    for index, subject in enumerate(subjects):
        times.append(_time(subject, device, _SECONDS))
        if best is not None and times[index] > 2 * best[index]:
            return None
    return times


def _time(subject: _Subject, device: str, seconds: float) -> float:
    return time_call(subject.call, device, seconds).median_us


def _mean(times: list[float]) -> float:
    return math.exp(sum(map(math.log, times)) / len(times))


def _right(op: Op, subject: _Subject, device: str) -> bool:
    if subject.yardstick is None:
        subject.yardstick = Yardstick(op, subject.case.stand_in or subject.case, device)
    return all(verdict.ok for verdict in subject.yardstick.measure("triton"))
