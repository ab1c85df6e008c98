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
        for group in self._groups:
            if not group.aloft:
                self._even_out(group)
                if group.members:
                    return group
        return None

    def _even_out(self, group: Group) -> None:
        """Move sequences between a group and others that are not under way, or join later."""
        while len(group.members) - len((other := self._smallest()).members) > 1:
            other.members.append(group.members.pop())
        idle = [other for other in self._groups if other is not group and not other.aloft]
        for other in idle:
            while len(other.members) - len(group.members) > 1:
                group.members.append(other.members.pop())

    def _smallest(self) -> Group:
        return min(self._groups, key=lambda group: len(group.members))
