"""How much longer calls now and then take, as the system gives a core to somebody else."""

from __future__ import annotations

import math

WORST_STALL = 10.0
"""A stall counts as at most so many times what was expected: laptops are closed."""
STALL_MEMORY = 4096
"""Calls after which stalls are forgotten."""


class Stalls:
    """Keeps what calls took above what they usually do, where it was more than twice that."""

    def __init__(self) -> None:
        self._calls = self._over = self._squares = 0.0

    def add(self, usual: float | None, seconds: float) -> None:
        """One call took `seconds`; None for `usual` if that is not known yet."""
        if usual is None:
            return
        over = min(seconds / usual, WORST_STALL) - 1
        over = over if over > 1 else 0.0
        keep = 1 - 1 / STALL_MEMORY
        self._calls = self._calls * keep + 1
        self._over = self._over * keep + over
        self._squares = self._squares * keep + over * over

    @property
    def share(self) -> float:
        """Seconds lost for each second of work."""
        return self._over / self._calls if self._calls else 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation of a call's relative loss."""
        return math.sqrt(self._squares / self._calls) if self._calls else 0.0
