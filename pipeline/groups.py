"""Running sequences in groups, each of which has at most one decode step under way."""

from __future__ import annotations

from pipeline.sequences import Running


class Group:
    """Sequences that step together, and whether their step is under way."""

    def __init__(self) -> None:
        self.members: list[Running] = []
        self.aloft = False


class Groups:
    """All running sequences, spread evenly over the groups."""

    def __init__(self) -> None:
        self._groups = [Group()]

    def __len__(self) -> int:
        """Running sequences."""
        return sum(len(group.members) for group in self._groups)

    @property
    def members(self) -> list[Running]:
        """All running sequences."""
        return [member for group in self._groups for member in group.members]

    @property
    def aloft(self) -> int:
        """Groups whose step is under way."""
        return sum(group.aloft for group in self._groups)

    def add(self, sequence: Running) -> None:
        """Let a sequence join the smallest group, for its next step."""
        self._smallest().members.append(sequence)

    def remove(self, sequence: Running) -> None:
        """Let a sequence leave its group; one that is in none is left alone."""
        for group in self._groups:
            if sequence in group.members:
                group.members.remove(sequence)

    def resize(self, count: int) -> None:
        """Make it `count` groups, as far as groups that are under way allow."""
        while len(self._groups) < count:
            self._groups.append(Group())
        for group in [group for group in self._groups if not group.aloft]:
            if len(self._groups) <= count:
                break
            self._groups.remove(group)
            for member in group.members:
                self.add(member)

    def next_idle(self) -> Group | None:
        """The group to launch next, or None: with members, evened out, and not under way."""
        self._even_out()
        for group in self._groups:
            if group.members and not group.aloft:
                return group
        return None

    def _even_out(self) -> None:
        """Move sequences from groups that are not under way to smaller ones, also such as are."""
        idle = [group for group in self._groups if not group.aloft]
        if not idle:
            return
        while True:
            largest, smallest = max(idle, key=_size), self._smallest()
            if _size(largest) - _size(smallest) <= 1:
                return
            smallest.members.append(largest.members.pop())

    def _smallest(self) -> Group:
        return min(self._groups, key=_size)


def _size(group: Group) -> int:
    return len(group.members)
