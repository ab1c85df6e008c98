"""One call's transaction over all stages: what the caches were before it, and how to get back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from kernels.errors import CapacityError, InvalidInputError
from pipeline.bridge import HostBridge
from pipeline.crew import Crew
from pipeline.interfaces import Stage
from pipeline.schedule import Flight


@dataclass(frozen=True)
class _Before:
    """A stage's sequences before a call: length by id, and the ids it did not know."""

    lengths: dict[str, int]
    unknown: frozenset[str]

    def restore(self, stage: Stage) -> None:
        for seq_id, length in self.lengths.items():
            if seq_id in self.unknown:
                stage.release(seq_id)
            else:
                stage.truncate(seq_id, length)


def restore_reservation(stage: Stage, seq_id: str, blocks: int | None) -> None:
    """Undo a stage's `prepare`: reserve `blocks` as before; None forgets the sequence."""
    if blocks is None:
        stage.release(seq_id)
    else:
        stage.cache.unreserve(seq_id, blocks)


def check_append(stages: Sequence[Stage], appends: Sequence[tuple[str, int]]) -> None:
    """Check that every stage has room for (sequence, new tokens); nothing changes.

    Raises `CapacityError` that names the stage beside what it needs and has.
    """
    for index, stage in enumerate(stages):
        try:
            stage.check_append(appends)
        except CapacityError as error:
            raise CapacityError(f"stage {index}: {error}") from error


def common_lengths(stages: Sequence[Stage], ids: Sequence[str]) -> dict[str, int]:
    """Length of each sequence, 0 if unknown.

    Raises `InvalidInputError` if stages disagree, as only a change past the pipeline can do.
    """
    lengths = {seq_id: stages[0].cache_len(seq_id) for seq_id in ids}
    for index, stage in enumerate(stages[1:], start=1):
        for seq_id, expected in lengths.items():
            got = stage.cache_len(seq_id)
            if got != expected:
                raise InvalidInputError(
                    f"stage {index} holds {got} positions of sequence {seq_id!r}, stage 0 holds "
                    f"{expected}; release it, as its stages no longer agree"
                )
    return lengths


class Transaction:
    """Opened before a flight, while no stage is at work; rolled back if anything fails.

    Args:
        stages: all stages.
        crew: their workers.
        bridge: between the stages.
        lengths: committed length of every sequence that the call appends to.
        flight: the call.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        crew: Crew,
        bridge: HostBridge,
        lengths: dict[str, int],
        flight: Flight,
    ) -> None:
        self._stages = stages
        self._crew = crew
        self._bridge = bridge
        self._flight = flight
        # A sequence without tokens may be known, as `prepare` makes one, or not.
        empty = [seq_id for seq_id, length in lengths.items() if length == 0]
        self._before = [
            _Before(
                lengths, frozenset(empty).difference(stage.cache.sequence_ids() if empty else ())
            )
            for stage in stages
        ]

    def roll_back(self) -> None:
        """Stop the flight, wait for work under way, and give every stage its lengths back.

        Restoring goes through each worker's queue, so it runs after whatever that stage still
        does. Doing it twice is the same as once. Raises what a stage raises that cannot restore.
        """
        self._flight.stop()
        tickets = [
            self._crew.submit(index, partial(before.restore, self._stages[index]))
            for index, before in enumerate(self._before)
        ]
        for ticket in tickets:
            ticket.wait()
        self._bridge.reset()
        for ticket in tickets:
            ticket.result()
