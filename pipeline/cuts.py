"""Cut a row of layers into stages so that the slowest is as fast as it can be, and all fit.

Exact, also where stages differ in their devices or share one. Numbers only: whole ones, of any
unit, so that ties are ties.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NEVER = np.iinfo(np.int64).max // 4


@dataclass(frozen=True)
class StageCosts:
    """What each layer would take in a stage, and what the stage takes besides.

    `layer_times` and `layer_bytes` have a number >= 0 for each layer of the model; `device` is the
    name under which stages share memory.
    """

    device: str
    layer_times: Sequence[int]
    layer_bytes: Sequence[int]
    own_time: int = 0
    own_bytes: int = 0


def best_cuts(stages: Sequence[StageCosts], memory: Mapping[str, int]) -> list[range] | None:
    """The layer range of each stage; None if no cut fits.

    The slowest stage is as fast as possible; of such cuts the largest stage is as small as
    possible; of these the first stages have the fewest layers. Every stage has a layer, so there
    must be at least as many layers as stages.

    Args:
        stages: in order.
        memory: bytes per device that its stages may take together; a device that is not named
            has enough.
    """
    return _Cuts(stages, memory).best()


def least_extra(stages: Sequence[StageCosts], memory: Mapping[str, int]) -> int:
    """The fewest bytes that, given to every device in `memory`, let some cut fit."""
    enough = sum(max(s.layer_bytes) * len(s.layer_bytes) + s.own_bytes for s in stages)

    def fits(extra: int) -> bool:
        more = {name: most + extra for name, most in memory.items()}
        return _Cuts(stages, more).fits()

    return bisect_left(range(enough), True, key=fits)


class _Cuts:
    """Search by stage and first layer; element [a, b] of a table is a stage of layers a to b-1."""

    def __init__(self, stages: Sequence[StageCosts], memory: Mapping[str, int]) -> None:
        self._layers = len(stages[0].layer_times)
        self._devices = [stage.device for stage in stages]
        self._memory = memory
        self._times = [_spans(stage.layer_times, stage.own_time) for stage in stages]
        self._bytes = [_spans(stage.layer_bytes, stage.own_bytes) for stage in stages]
        self._last_use = {stage.device: index for index, stage in enumerate(stages)}
        shared = {name for name in memory if self._devices.count(name) > 1}
        self._shared = sorted(shared)
        some = np.triu(np.ones((self._layers + 1,) * 2, dtype=bool), 1)  # a stage has a layer
        self._allowed = [
            some & (held <= memory.get(name, _NEVER))
            for held, name in zip(self._bytes, self._devices, strict=True)
        ]

    def fits(self) -> bool:
        """Whether any cut does."""
        return self._first(self._allowed) is not None

    def best(self) -> list[range] | None:
        allowed = self._allowed
        for costs in (self._times, self._bytes):
            most = self._least(costs, allowed)
            if most is None:
                return None
            allowed = _at_most(most, costs, allowed)
        stops = self._first(allowed)
        assert stops is not None
        return [range(a, b) for a, b in zip([0, *stops], stops, strict=False)]

    def _least(self, costs: list[NDArray], allowed: list[NDArray]) -> int | None:
        """The least that the most expensive stage of a cut can cost; None if no cut fits."""

        def fits(most: int) -> bool:
            return self._first(_at_most(most, costs, allowed)) is not None

        # Each stage by itself first: that is enough unless stages crowd a device that they share.
        bound = self._least_alone(costs, allowed)
        if bound is None or fits(bound):
            return bound
        pairs = zip(costs, allowed, strict=True)
        values = np.unique(np.concatenate([cost[ok] for cost, ok in pairs]))
        values = values[values > bound]
        place = bisect_left(values, True, key=fits)
        return int(values[place]) if place < len(values) else None

    def _least_alone(self, costs: list[NDArray], allowed: list[NDArray]) -> int | None:
        """As `_least`, where no memory is shared: by dynamic programming from the last stage."""
        best = np.full(self._layers + 1, _NEVER)  # of the stages from here on, by first layer
        best[-1] = 0
        for cost, ok in zip(reversed(costs), reversed(allowed), strict=True):
            best = np.maximum(np.where(ok, cost, _NEVER), best).min(axis=1)
        return None if best[0] >= _NEVER else int(best[0])

    def _first(self, allowed: list[NDArray]) -> list[int] | None:
        """Where each stage stops in the first cut that is allowed and fits; None if none does."""
        ways = self._ways(allowed)
        needs = [self._needs({name}, allowed) for name in self._shared]
        together = self._needs(set(self._shared), allowed)
        dead: set[tuple[int, int, tuple[int, ...]]] = set()

        def go(stage: int, start: int, used: tuple[int, ...]) -> list[int] | None:
            if stage == len(allowed):
                return []
            if (stage, start, used) in dead:
                return None
            for stop in np.flatnonzero(allowed[stage][start] & ways[stage + 1]).tolist():
                then = self._used(stage, start, stop, used, needs, together)
                rest = None if then is None else go(stage + 1, stop, then)
                if rest is not None:
                    return [stop, *rest]
            dead.add((stage, start, used))
            return None

        return go(0, 0, (0,) * len(self._shared)) if ways[0][0] else None

    def _used(
        self,
        stage: int,
        start: int,
        stop: int,
        used: tuple[int, ...],
        needs: list[list[NDArray]],
        together: list[NDArray],
    ) -> tuple[int, ...] | None:
        """Bytes taken of each shared device after a stage; None if the rest cannot fit any more."""
        then, left = [], 0
        for name, taken, need in zip(self._shared, used, needs, strict=True):
            if name == self._devices[stage]:
                taken += int(self._bytes[stage][start, stop])
            if taken + need[stage + 1][stop] > self._memory[name]:
                return None
            if stage < self._last_use[name]:
                then.append(taken)
                left += self._memory[name] - taken
            else:  # what a device holds makes no difference once all its stages have been
                then.append(0)
        return None if together[stage + 1][stop] > left else tuple(then)

    def _ways(self, allowed: list[NDArray]) -> list[NDArray]:
        """[stage][a]: whether allowed stages lead from layer a to the end."""
        ways = [np.arange(self._layers + 1) == self._layers]
        for ok in reversed(allowed):
            ways.append((ok & ways[-1]).any(axis=1))
        return ways[::-1]

    def _needs(self, names: set[str], allowed: list[NDArray]) -> list[NDArray]:
        """[stage][a]: the least that the stages from layer a on take of some devices together."""
        needs = [np.where(np.arange(self._layers + 1) == self._layers, 0, _NEVER)]
        for stage in range(len(allowed) - 1, -1, -1):
            held = self._bytes[stage] if self._devices[stage] in names else 0
            least = np.where(allowed[stage], held + needs[-1], _NEVER).min(axis=1)
            needs.append(np.minimum(least, _NEVER))
        return needs[::-1]


def _spans(layers: Sequence[int], own: int) -> NDArray:
    ends = np.concatenate([[0], np.cumsum(np.asarray(layers, dtype=np.int64))])
    return ends[None, :] - ends[:, None] + own


def _at_most(most: int, costs: list[NDArray], allowed: list[NDArray]) -> list[NDArray]:
    return [ok & (cost <= most) for cost, ok in zip(costs, allowed, strict=True)]
