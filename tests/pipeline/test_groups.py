"""Groups of running sequences: evened out as they are launched, nobody lost or doubled."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from pipeline.groups import Group, Groups
from pipeline.sequences import Running

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "remove", "resize", "launch", "land"]),
        st.integers(0, 30),
    ),
    max_size=60,
)


class Member:
    """Stands in for a running sequence: groups ask nothing of one."""


def sizes(groups: Groups) -> list[tuple[int, bool]]:
    return [(len(group.members), group.aloft) for group in groups._groups]


def check_launch(groups: Groups, group: Group | None) -> None:
    idle = [size for size, aloft in sizes(groups) if not aloft]
    if group is None:
        assert not any(idle)
        return
    assert group.members
    assert not group.aloft
    assert max(idle) - min(size for size, _ in sizes(groups)) <= 1


@given(ACTIONS)
def test_nobody_is_lost_or_doubled_and_launches_are_even(actions: list[tuple[str, int]]) -> None:
    groups = Groups()
    present: list[Any] = []
    aloft: list[Group] = []
    count = 1
    for action, number in actions:
        if action == "add":
            present.append(cast(Running, Member()))
            groups.add(present[-1])
        elif action == "remove" and present:
            gone = present.pop(number % len(present))
            groups.remove(gone)
            groups.remove(gone)  # one that is in none is left alone
        elif action == "resize":
            count = 1 + number % 6
            groups.resize(count)
            assert len(groups._groups) >= count
            assert len(groups._groups) == count or len(aloft) == len(groups._groups)
        elif action == "launch":
            group = groups.next_idle()
            check_launch(groups, group)
            if group is not None:
                group.aloft = True
                aloft.append(group)
        elif action == "land" and aloft:
            aloft.pop(number % len(aloft)).aloft = False
        members = groups.members
        assert len(members) == len(groups) == len(present)
        assert {id(member) for member in members} == {id(member) for member in present}
        assert groups.aloft == len(aloft)


@given(st.integers(1, 6), st.integers(0, 20))
def test_all_groups_together_launch_everybody_once(count: int, rows: int) -> None:
    groups = Groups()
    groups.resize(count)
    for _ in range(rows):
        groups.add(cast(Running, Member()))
    launched = []
    while (group := groups.next_idle()) is not None:
        group.aloft = True
        launched.append(len(group.members))
    assert sum(launched) == rows
    assert len(launched) == min(count, rows)
