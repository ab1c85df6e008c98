"""A pipeline that only keeps time: discrete events with noise, stalls and contention."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.auto import AutoMode
from pipeline.candidates import BATCH, Arrangement, Candidate
from pipeline.cost_model import CostModel
from pipeline.modes import LlamaPipelineMode
from pipeline.stage_cost import StageCost

ROW_BYTES = 4096

Heard = AutoMode | CostModel | None


@dataclass
class Simulated:
    """True times of stages (taking turns) and of hops, and what goes wrong with them.

    `contention` multiplies a stage's time while all work together. A share `stalled` of the calls
    takes ten times as long, and all have lognormal noise. `handover` is lost by the driver for
    each group's step in continuous mode. Whoever listens hears of hops only to stages that waited
    for them, as on a real pipeline.
    """

    stages: Sequence[StageCost]
    hop: float = 0.0
    contention: float = 1.0
    noise: float = 0.03
    stalled: float = 0.01
    handover: float = 0.0
    seed: int = 0
    now: float = 0.0
    cycles: int = 0
    _running: Candidate = BATCH
    _free: list[float] = field(default_factory=list)
    _ready: list[float] = field(default_factory=list)
    _returned: list[float | None] = field(default_factory=list)  # when tokens left the last stage

    def __post_init__(self) -> None:
        self._random = random.Random()
        self._free = [0.0] * len(self.stages)

    def cycle(
        self,
        candidate: Candidate,
        rows: int,
        cached: float,
        heard: Heard = None,
        *,
        clean: bool = True,
    ) -> float:
        """One step of all sequences; seconds since the step before ended. Tells whoever listens.

        Of a cycle that is not clean only the stages' and hops' times are told.
        """
        # Each cycle has a luck of its own: runs that do the same in it have the same luck.
        self._random.seed(self.seed * 1_000_003 + self.cycles)
        self.cycles += 1
        start = self.now
        sizes = _sizes(rows, candidate.groups)
        if candidate != self._running or len(sizes) != len(self._ready):
            self._drain(len(sizes))  # all groups come home before anything else starts
        self._running = candidate
        if candidate.mode is LlamaPipelineMode.OVERLAPPED:
            self._drain(len(sizes))
        for group, size in enumerate(sizes):
            self._step(candidate.arrangement, group, size, cached, heard)
            if candidate.mode is LlamaPipelineMode.CONTINUOUS:
                self._ready[group] += self.handover
        self.now = max(self._ready)
        if isinstance(heard, AutoMode):
            heard.observe_cycle(candidate, rows, cached, self.now - start if clean else None)
        return self.now - start

    def _drain(self, groups: int) -> None:
        self._free = [self.now] * len(self.stages)
        self._ready = [self.now] * groups
        self._returned = [None] * groups

    def _step(
        self, arrangement: Arrangement, group: int, rows: int, cached: float, heard: Heard
    ) -> None:
        together = arrangement is Arrangement.TOGETHER
        at, came = self._ready[group], self._returned[group]
        for index, stage in enumerate(self.stages):
            free = self._free[index]
            begun = max(at, free)
            if heard is not None and came is not None and free <= came < begun:
                hop = (index - 1) % len(self.stages)
                heard.observe_hop(arrangement, hop, rows * ROW_BYTES, begun - came)
            took = self._noisy(stage.at(rows, cached) * (self.contention if together else 1.0))
            at = came = self._free[index] = begun + took
            if heard is not None:
                heard.observe_stage(arrangement, index, rows, cached, took)
            if self.hop:
                at += self._noisy(self.hop)
        self._ready[group], self._returned[group] = at, came

    def _noisy(self, seconds: float) -> float:
        if self.noise:
            seconds *= self._random.lognormvariate(0.0, self.noise)
        return seconds * 10 if self._random.random() < self.stalled else seconds


def _sizes(rows: int, groups: int) -> list[int]:
    """Rows of each group, as even as they can be."""
    return [rows // groups + (group < rows % groups) for group in range(groups)]
