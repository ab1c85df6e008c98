"""Integers in place of sequence ids, so that an id's text crosses a link only once."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.chores import Chore, Release, Reset, Restore, Unprepare
from pipeline.work import Decode, Prefill, Work


class Handles:
    """The driver's side: a number for each id that stages may know."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._next = 0

    def introduce(self, ids: Iterable[str]) -> list[tuple[int, str]]:
        """Give every id that has none a number; those that are new."""
        new = []
        for seq_id in ids:
            if seq_id not in self._numbers:
                self._numbers[seq_id] = self._next
                new.append((self._next, seq_id))
                self._next += 1
        return new

    def withdraw(self, new: Iterable[tuple[int, str]]) -> None:
        """Take back what `introduce` gave; nobody heard of it."""
        for _, seq_id in new:
            self._numbers.pop(seq_id)

    def number(self, seq_id: str) -> int:
        """The number of an id that was introduced."""
        return self._numbers[seq_id]

    def forget(self, task: Work | Chore) -> None:
        """Drop the ids that no stage knows after a task; a new number will be theirs."""
        if isinstance(task, Reset):
            self._numbers.clear()
        for seq_id in _forgotten(task):
            self._numbers.pop(seq_id, None)


class Texts:
    """The other ranks' side: the id of each number."""

    def __init__(self) -> None:
        self._ids: dict[int, str] = {}

    def learn(self, number: int, seq_id: str) -> None:
        """Take note of a new one."""
        self._ids[number] = seq_id

    def id(self, number: int) -> str:
        """The id of a number."""
        return self._ids[number]

    def forget(self, task: Work | Chore) -> None:
        """As `Handles.forget`."""
        gone = {*self._ids.values()} if isinstance(task, Reset) else {*_forgotten(task)}
        if gone:
            self._ids = {number: i for number, i in self._ids.items() if i not in gone}


def ids_of(task: Work | Chore) -> list[str]:
    """The ids that a task is about."""
    if isinstance(task, Prefill | Decode):
        return [seq_id for seq_id, _ in task.appends]
    if isinstance(task, Release):
        return list(task.ids)
    if isinstance(task, Restore):
        return list(task.lengths)
    if isinstance(task, Reset):
        return []
    return [task.id]


def _forgotten(task: Work | Chore) -> list[str]:
    if isinstance(task, Release):
        return list(task.ids)
    if isinstance(task, Restore):
        return [seq_id for seq_id, length in task.lengths.items() if length is None]
    if isinstance(task, Unprepare) and task.tokens is None:
        return [task.id]
    return []
