"""What a call of a stage costs, and what measurements of it must look like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kernels.errors import InvalidInputError
from pipeline.candidates import Arrangement


@dataclass(frozen=True)
class StageCost:
    """Seconds of a stage: per call, per row, and per cached token of each row."""

    per_call: float
    per_row: float
    per_cached: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInputError(f"StageCost.{name} is {value!r}; expected seconds >= 0")

    def at(self, rows: float, cached: float) -> float:
        """Seconds of one call of `rows` rows with `cached` tokens each."""
        return self.per_call + self.per_row * rows + self.per_cached * rows * cached


Guesses = Mapping[Arrangement, Sequence[StageCost]]
"""Costs of each stage, for both arrangements or for taking turns alone."""


def check_measured(what: str, seconds: float) -> None:
    """Raise `InvalidInputError` unless `seconds` is a finite time above 0."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidInputError(f"{what} took {seconds!r} seconds; expected a finite time above 0")


def check_sizes(rows: float, cached: float) -> None:
    """Raise `InvalidInputError` unless rows >= 1 and cached >= 0, both finite."""
    if not (math.isfinite(rows) and rows >= 1):
        raise InvalidInputError(f"rows is {rows!r}; expected at least 1")
    if not (math.isfinite(cached) and cached >= 0):
        raise InvalidInputError(f"cached is {cached!r}; expected mean tokens per row, at least 0")
