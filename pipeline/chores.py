"""What a stage does for its cache's bookkeeping alone, in the same order as its work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.cache import blocks_for
from pipeline.interfaces import Stage


@dataclass(frozen=True)
class Prepare:
    """Reserve room for `tokens` positions of a sequence."""

    id: str
    tokens: int

    name = "prepare"

    def run(self, stage: Stage) -> None:
        """Do it on one stage."""
        stage.prepare(self.id, self.tokens)


@dataclass(frozen=True)
class Truncate:
    """Shorten a sequence."""

    id: str
    length: int

    name = "truncate"

    def run(self, stage: Stage) -> None:
        """Do it on one stage."""
        stage.truncate(self.id, self.length)


@dataclass(frozen=True)
class Release:
    """Forget sequences."""

    ids: Sequence[str]

    name = "release"

    def run(self, stage: Stage) -> None:
        """Do it on one stage."""
        for seq_id in self.ids:
            stage.release(seq_id)


@dataclass(frozen=True)
class Reset:
    """Forget every sequence."""

    name = "reset"

    def run(self, stage: Stage) -> None:
        """Do it on one stage."""
        stage.reset()


@dataclass(frozen=True)
class Restore:
    """Give sequences the length that they had; None forgets those that were not known.

    Twice is the same as once. Caches are append-only, so shortening undoes whatever was appended.
    """

    lengths: Mapping[str, int | None]

    name = "restore"

    def run(self, stage: Stage) -> None:
        """Do it on one stage."""
        for seq_id, length in self.lengths.items():
            if length is None:
                stage.release(seq_id)
            else:
                stage.truncate(seq_id, length)


@dataclass(frozen=True)
class Unprepare:
    """Lower a reservation to `tokens` positions again; None forgets the sequence."""

    id: str
    tokens: int | None

    name = "unprepare"

    def run(self, stage: Stage) -> None:
        """Do it on one stage."""
        if self.tokens is None:
            stage.release(self.id)
        else:
            stage.cache.unreserve(self.id, blocks_for(self.tokens, stage.layout.block_size))


Chore = Prepare | Truncate | Release | Reset | Restore | Unprepare
