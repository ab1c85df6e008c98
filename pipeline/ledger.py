"""What every stage's cache holds, as the driver knows it without asking a stage.

Stages may be at work, or in other processes, when the driver decides what to send next. Caches
change only by what the driver sends, in order, so it keeps the books itself: the length of every
sequence, tokens under way included, and the room that is left on every stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kernels.errors import CapacityError, InvalidInputError
from pipeline.interfaces import Stage


@dataclass(frozen=True)
class Room:
    """Size of one stage's cache."""

    block_size: int
    num_blocks: int
    max_seq_len: int

    @property
    def capacity(self) -> int:
        """Most positions that one sequence can hold."""
        return min(self.max_seq_len, self.num_blocks * self.block_size)


class Entry(NamedTuple):
    """One sequence: its length, and for how many positions room is reserved."""

    length: int = 0
    reserved: int = 0

    def blocks(self, block_size: int) -> int:
        """Blocks that it holds."""
        return -(-max(self.length, self.reserved) // block_size)


class _Books(NamedTuple):
    """Never changed, only replaced as a whole, so that an interrupt leaves no half of a change."""

    entries: dict[str, Entry]
    held: dict[int, int]  # blocks by block size


class Ledger:
    """Lengths and reservations of all sequences, and the room on every stage.

    Args:
        rooms: one per stage.
    """

    def __init__(self, rooms: Sequence[Room]) -> None:
        self.rooms = tuple(rooms)
        self.torn: dict[str, str] = {}  # sequences whose stages no longer agree, and why
        self.reset()

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> Ledger:
        """The books of stages that are here, with the sequences that they hold already."""
        ledger = cls([_room(stage) for stage in stages])
        first = stages[0]
        for seq_id in dict.fromkeys(i for stage in stages for i in stage.cache.sequence_ids()):
            length = first.cache_len(seq_id)
            reserved = (first.cache.reserved_blocks(seq_id) or 0) * first.layout.block_size
            ledger._change({seq_id: Entry(length, min(reserved, ledger.capacity))})
            for index, stage in enumerate(stages):
                if (got := stage.cache_len(seq_id)) != length:
                    ledger.torn[seq_id] = (
                        f"stage {index} holds {got} positions of sequence {seq_id!r}, stage 0 "
                        f"holds {length}; release it, as its stages no longer agree"
                    )
        return ledger

    def reset(self) -> None:
        """Forget every sequence."""
        self._books = _Books({}, dict.fromkeys((room.block_size for room in self.rooms), 0))
        self.torn = {}

    @property
    def capacity(self) -> int:
        """Most positions that one sequence may hold: the least over the stages."""
        return min(room.capacity for room in self.rooms)

    def ids(self) -> list[str]:
        """Known sequences, oldest first."""
        return list(self._books.entries)

    def free_blocks(self, stage: int) -> int:
        """Blocks of a stage that no sequence holds."""
        room = self.rooms[stage]
        return room.num_blocks - self._books.held[room.block_size]

    def entries(self, ids: Iterable[str]) -> dict[str, Entry | None]:
        """What is known of some sequences; None if nothing is."""
        entries = self._books.entries
        return {seq_id: entries.get(seq_id) for seq_id in ids}

    def lengths(self, ids: Iterable[str]) -> dict[str, int]:
        """Length of some sequences, 0 if unknown.

        Raises `InvalidInputError` for one whose stages no longer agree.
        """
        entries = self._books.entries
        lengths = {}
        for seq_id in ids:
            if self.torn and (why := self.torn.get(seq_id)):
                raise InvalidInputError(why)
            lengths[seq_id] = entries[seq_id].length if seq_id in entries else 0
        return lengths

    def check_append(self, appends: Sequence[tuple[str, int]]) -> None:
        """Raise `CapacityError`, naming the stage, unless every stage has room for (id, tokens)."""
        self._check(self._appended(appends))

    def append(self, appends: Sequence[tuple[str, int]]) -> None:
        """Add tokens to sequences; unknown ones begin. Raises what `check_append` raises."""
        changes = self._appended(appends)
        self._check(changes)
        self._change(changes)

    def prepare(self, seq_id: str, tokens: int) -> None:
        """Reserve room for `tokens` positions; raises `CapacityError`, naming the stage."""
        old = self._books.entries.get(seq_id, Entry())
        changes: dict[str, Entry | None] = {
            seq_id: old._replace(reserved=max(old.reserved, tokens))
        }
        self._check(changes)
        self._change(changes)

    def truncate(self, seq_id: str, length: int) -> None:
        """Shorten a sequence; never lengthens, and leaves unknown ones alone."""
        old = self._books.entries.get(seq_id)
        if old is not None and length < old.length:
            self._change({seq_id: old._replace(length=length)})

    def release(self, ids: Iterable[str]) -> None:
        """Forget sequences; leaves unknown ones alone."""
        gone = list(ids)
        self._change(dict.fromkeys(gone))
        for seq_id in gone:
            self.torn.pop(seq_id, None)

    def restore(self, before: Mapping[str, Entry | None]) -> None:
        """Give sequences what they had; see `entries`."""
        self._change(before)

    def _appended(self, appends: Sequence[tuple[str, int]]) -> dict[str, Entry | None]:
        entries, none = self._books.entries, Entry()
        changes: dict[str, Entry | None] = {}
        for seq_id, count in appends:
            old = changes.get(seq_id) or entries.get(seq_id, none)
            changes[seq_id] = Entry(old.length + count, old.reserved)
        return changes

    def _check(self, changes: Mapping[str, Entry | None]) -> None:
        longest = max((max(entry) for entry in changes.values() if entry is not None), default=0)
        more = {size: self._more_blocks(changes, size) for size in self._books.held}
        for stage, room in enumerate(self.rooms):
            if longest > room.capacity:
                seq_id = next(i for i, entry in changes.items() if entry and max(entry) == longest)
                raise CapacityError(
                    f"stage {stage}: sequence {seq_id!r} needs {longest} positions, capacity is "
                    f"{room.capacity}"
                )
            needed, free = more[room.block_size], self.free_blocks(stage)
            if needed > free:
                raise CapacityError(
                    f"stage {stage}: the KV cache needs {needed} more blocks of "
                    f"{room.block_size} tokens, {free} of {room.num_blocks} are free"
                )

    def _more_blocks(self, changes: Mapping[str, Entry | None], block_size: int) -> int:
        entries = self._books.entries
        more = 0
        for seq_id, entry in changes.items():
            old = entries.get(seq_id)
            more += 0 if entry is None else entry.blocks(block_size)
            more -= 0 if old is None else old.blocks(block_size)
        return more

    def _change(self, changes: Mapping[str, Entry | None]) -> None:
        entries = dict(self._books.entries)
        for seq_id, entry in changes.items():
            if entry is None:
                entries.pop(seq_id, None)
            else:
                entries[seq_id] = entry
        held = {
            size: blocks + self._more_blocks(changes, size)
            for size, blocks in self._books.held.items()
        }
        self._books = _Books(entries, held)


def _room(stage: Stage) -> Room:
    return Room(stage.layout.block_size, stage.cache.num_blocks, stage.cache.max_seq_len)
