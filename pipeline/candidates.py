"""The ways to run a decode step that `auto` chooses among."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pipeline.modes import LlamaPipelineMode


class Arrangement(StrEnum):
    """How a pipeline's workers share the machine; a stage's time depends on it."""

    TURNS = "turns"  # one worker, every stage with all cores: batch
    TOGETHER = "together"  # a worker per stage, with its share: overlapped and continuous


@dataclass(frozen=True)
class Candidate:
    """A mode and its groups of sequences.

    Batch has one group; in overlapped mode groups are the microbatches of one step.
    """

    mode: LlamaPipelineMode
    groups: int

    @property
    def arrangement(self) -> Arrangement:
        """What it needs the workers to be."""
        return Arrangement.TURNS if self.mode is LlamaPipelineMode.BATCH else Arrangement.TOGETHER

    def __str__(self) -> str:
        return self.mode.value if self == BATCH else f"{self.mode} {self.groups}"


BATCH = Candidate(LlamaPipelineMode.BATCH, 1)


def candidates(stage_count: int, rows: int) -> list[Candidate]:
    """What can be run with `rows` sequences, the simplest first.

    More than S + 2 groups only read the weights more often, and a group has a row at least.
    """
    if stage_count == 1 or rows == 1:
        return [BATCH]
    microbatches = -(-rows // -(-rows // stage_count))
    groups = range(2, min(rows, stage_count + 2) + 1)
    return [
        BATCH,
        Candidate(LlamaPipelineMode.OVERLAPPED, microbatches),
        *(Candidate(LlamaPipelineMode.CONTINUOUS, count) for count in groups),
    ]
