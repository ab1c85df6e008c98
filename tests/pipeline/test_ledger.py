"""The ledger keeps the same books as real caches, and an interrupt leaves no half of a change."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.errors import CapacityError, InvalidInputError
from kernels.layout import KVLayout
from model.cache import PagedKVCache, blocks_for
from pipeline.ledger import Entry, Ledger, Room
from tests.pipeline.fake_stage import fake_stages

IDS = ["a", "b", "c"]
ROOMS = st.builds(Room, st.integers(1, 5), st.integers(4, 20), st.integers(8, 24))
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "prepare", "truncate", "release", "undo", "reset"]),
        st.sets(st.sampled_from(IDS), min_size=1, max_size=2).map(sorted),
        st.integers(0, 9),
    ),
    min_size=5,
    max_size=40,
)


def caches(rooms: list[Room]) -> list[PagedKVCache]:
    return [
        PagedKVCache(KVLayout("fp32", room.block_size, 1, 2), 0, room.num_blocks, room.max_seq_len)
        for room in rooms
    ]


def append(cache: PagedKVCache, appends: list[tuple[str, int]]) -> None:
    with cache.append(appends):
        pass


def refused(call: Callable[..., object], *arguments: object) -> bool:
    try:
        call(*arguments)
    except CapacityError:
        return True
    return False


def check_equal(ledger: Ledger, stages: list[PagedKVCache]) -> None:
    for index, cache in enumerate(stages):
        assert ledger.free_blocks(index) == cache.free_blocks
        assert ledger.ids() == cache.sequence_ids()
        assert ledger.lengths(IDS) == {seq_id: cache.cache_len(seq_id) for seq_id in IDS}
    assert ledger.capacity == min(cache.kv_capacity for cache in stages)


@given(st.lists(ROOMS, min_size=1, max_size=3), CHANGES)
@settings(deadline=None, max_examples=300)
def test_a_ledger_and_the_caches_agree(
    rooms: list[Room], changes: list[tuple[str, list[str], int]]
) -> None:
    ledger, stages = Ledger(rooms), caches(rooms)
    for what, ids, number in changes:
        if what in ("append", "undo"):
            appends = [(seq_id, number + 1) for seq_id in ids]
            before = ledger.entries(ids)
            expected = any(refused(cache.check_append, appends) for cache in stages)
            assert refused(ledger.check_append, appends) == expected
            assert refused(ledger.append, appends) == expected
            if what == "undo":
                ledger.restore(before)
            elif not expected:
                for cache in stages:
                    append(cache, appends)
        elif what == "prepare":
            before = ledger.entries(ids[:1])
            if not refused(ledger.prepare, ids[0], number):
                for cache in stages:
                    cache.prepare(ids[0], number)
            else:
                assert ledger.entries(ids[:1]) == before
                assert any(refused(c.prepare, ids[0], number) for c in caches_of(stages))
        elif what == "truncate":
            ledger.truncate(ids[0], number)
            for cache in stages:
                cache.truncate(ids[0], number)
        elif what == "release":
            ledger.release(ids)
            for cache in stages:
                for seq_id in ids:
                    cache.release(seq_id)
        else:
            ledger.reset()
            for cache in stages:
                cache.reset()
        check_equal(ledger, stages)


def caches_of(stages: list[PagedKVCache]) -> list[PagedKVCache]:
    """Caches that hold the same, to try things on."""
    copies = []
    for cache in stages:
        room = Room(cache.layout.block_size, cache.num_blocks, cache.max_seq_len)
        [copy] = caches([room])
        for seq_id in cache.sequence_ids():
            copy.prepare(seq_id, 0)
            if cache.cache_len(seq_id):
                append(copy, [(seq_id, cache.cache_len(seq_id))])
            reserved = (cache.reserved_blocks(seq_id) or 0) * room.block_size
            copy.prepare(seq_id, min(reserved, cache.kv_capacity))
        copies.append(copy)
    return copies


def test_chunks_of_one_sequence_in_one_call_add_up() -> None:
    ledger = Ledger([Room(4, 3, 64)])
    ledger.append([("a", 4), ("a", 4), ("b", 1)])
    assert ledger.lengths(["a", "b"]) == {"a": 8, "b": 1}
    assert ledger.free_blocks(0) == 0
    ledger.release(["b"])
    with pytest.raises(CapacityError, match="stage 0: sequence 'a' needs 13 positions"):
        ledger.append([("a", 4), ("a", 1)])
    assert ledger.lengths(["a"]) == {"a": 8}


class Interrupted(BaseException):
    """Comes between two instructions, as Ctrl-C does."""


def interrupted_at(step: int, call: Callable[[], object]) -> bool:
    """Run `call`, but raise before its `step`-th instruction in the ledger; False if none is."""
    left = step

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != Ledger.append.__code__.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise Interrupted
        return trace

    sys.settrace(trace)
    try:
        call()
    except Interrupted:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize(
    "change",
    [
        lambda ledger: ledger.append([("a", 3), ("new", 5)]),
        lambda ledger: ledger.prepare("b", 19),
        lambda ledger: ledger.truncate("a", 1),
        lambda ledger: ledger.release(["a", "b"]),
        lambda ledger: ledger.restore({"a": Entry(2, 12), "b": None, "c": Entry(1, 0)}),
        lambda ledger: ledger.reset(),
    ],
    ids=["append", "prepare", "truncate", "release", "restore", "reset"],
)
def test_an_interrupt_leaves_all_of_a_change_or_nothing(
    change: Callable[[Ledger], object],
) -> None:
    rooms = [Room(2, 40, 64), Room(3, 40, 64)]

    def fresh() -> Ledger:
        ledger = Ledger(rooms)
        ledger.append([("a", 7), ("b", 2)])
        ledger.prepare("c", 9)
        return ledger

    def books(ledger: Ledger) -> tuple[dict[str, Entry | None], list[int]]:
        entries = ledger.entries(ledger.ids())
        free = [ledger.free_blocks(stage) for stage in range(2)]
        held = [
            sum(blocks_for(max(entry), room.block_size) for entry in entries.values() if entry)
            for room in rooms
        ]
        assert [room.num_blocks - used for room, used in zip(rooms, held, strict=True)] == free
        return entries, free

    before, changed = books(fresh()), fresh()
    change(changed)
    after, step = books(changed), 1
    assert after != before
    while interrupted_at(step, lambda: change(ledger)) if (ledger := fresh()) else False:
        assert books(ledger) in (before, after)
        step += 1
    assert step > 9
    assert books(ledger) == after


def test_it_begins_with_what_stages_hold_and_names_those_that_disagree() -> None:
    stages = fake_stages([1, 1])
    for stage in stages:
        append(stage.cache, [("a", 5)])
        stage.cache.prepare("b", 9)
    ledger = Ledger.of(stages)
    check_equal(ledger, [stage.cache for stage in stages])
    stages[1].cache.truncate("a", 4)
    with pytest.raises(InvalidInputError, match="stage 1 holds 4 positions of sequence 'a'"):
        Ledger.of(stages).lengths(["a"])
