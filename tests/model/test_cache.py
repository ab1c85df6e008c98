"""The paged cache's bookkeeping: slots, transactions, capacity, and no block lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.errors import CapacityError, InvalidInputError
from kernels.layout import KVLayout
from model.cache import PagedKVCache

LAYOUT = KVLayout("fp32", block_size=4, num_kv_heads=1, head_dim=8)


def make_cache(num_blocks: int = 8, max_seq_len: int = 20) -> PagedKVCache:
    return PagedKVCache(LAYOUT, num_layers=2, num_blocks=num_blocks, max_seq_len=max_seq_len)


def append(cache: PagedKVCache, *requests: tuple[str, int]) -> list[int]:
    with cache.append(requests) as batch:
        return batch.slot_mapping.tolist()


def test_slots_positions_and_tables_of_a_ragged_batch() -> None:
    cache = make_cache()
    append(cache, ("a", 3))
    with cache.append([("b", 5), ("a", 2)]) as batch:
        assert batch.query_start.tolist() == [0, 5, 7]
        assert batch.kv_len.tolist() == [5, 5]
        assert batch.positions.tolist() == [0, 1, 2, 3, 4, 3, 4]
        assert batch.token_kv_len.tolist() == [5] * 7
        for row, start, stop in ((0, 0, 5), (1, 5, 7)):
            for token in range(start, stop):
                position = int(batch.positions[token])
                block = int(batch.block_table[row, position // 4])
                assert int(batch.slot_mapping[token]) == block * 4 + position % 4
    assert cache.cache_len("a") == cache.cache_len("b") == 5


def test_no_two_tokens_share_a_slot() -> None:
    cache = make_cache()
    slots = append(cache, ("a", 7)) + append(cache, ("b", 4), ("a", 3)) + append(cache, ("c", 9))
    assert len(set(slots)) == len(slots)


def test_a_failing_body_leaves_everything_as_it_was() -> None:
    cache = make_cache()
    append(cache, ("a", 3))
    free = cache.free_blocks

    def fail() -> None:
        with cache.append([("a", 6), ("new", 2)]):
            assert cache.free_blocks < free
            raise RuntimeError("body")

    with pytest.raises(RuntimeError, match="body"):
        fail()
    assert cache.free_blocks == free
    assert cache.sequence_ids() == ["a"]
    assert cache.cache_len("a") == 3


@pytest.mark.parametrize(
    ("requests", "error", "message"),
    [
        ([("a", 21)], CapacityError, "'a' needs 21 positions, capacity is 20"),
        ([("a", 20), ("b", 16)], CapacityError, "needs 9 more blocks of 4 tokens, 8 of 8 are free"),
        ([("a", 1), ("a", 1)], InvalidInputError, "'a' appears twice"),
        ([("a", 0)], InvalidInputError, "'a' brings 0 tokens"),
    ],
)
def test_bad_appends_change_nothing(requests, error, message) -> None:
    cache = make_cache()
    with pytest.raises(error, match=message):
        append(cache, *requests)
    with pytest.raises(error, match=message):
        cache.check_append(requests)
    assert cache.free_blocks == 8
    assert cache.sequence_ids() == []


def test_truncate_only_shrinks_and_gives_blocks_back() -> None:
    cache = make_cache()
    append(cache, ("a", 10))
    cache.truncate("a", 99)
    assert cache.cache_len("a") == 10
    cache.truncate("a", 4)
    assert (cache.cache_len("a"), cache.free_blocks) == (4, 7)
    cache.truncate("nobody", 0)
    with pytest.raises(InvalidInputError, match="new_len is -1"):
        cache.truncate("a", -1)


def test_prepare_reserves_and_truncate_keeps_the_reservation() -> None:
    cache = make_cache()
    cache.prepare("a", 9)
    assert (cache.cache_len("a"), cache.free_blocks) == (0, 5)
    append(cache, ("a", 9))
    assert cache.free_blocks == 5
    cache.truncate("a", 1)
    assert cache.free_blocks == 5
    with pytest.raises(CapacityError, match="'b' needs 21 positions"):
        cache.prepare("b", 21)
    assert cache.sequence_ids() == ["a"]
    cache.release("a")
    assert cache.free_blocks == 8


def test_unreserve_gives_back_what_neither_reservation_nor_length_needs() -> None:
    cache = make_cache()
    assert cache.reserved_blocks("a") is None
    append(cache, ("a", 5))
    cache.prepare("a", 20)
    assert (cache.reserved_blocks("a"), cache.free_blocks) == (5, 3)
    cache.unreserve("a", 9)  # never raises
    assert (cache.reserved_blocks("a"), cache.free_blocks) == (5, 3)
    cache.unreserve("a", 3)
    assert (cache.reserved_blocks("a"), cache.free_blocks) == (3, 5)
    cache.unreserve("a", 0)
    assert (cache.reserved_blocks("a"), cache.free_blocks) == (0, 6)
    assert cache.cache_len("a") == 5
    cache.unreserve("nobody", 0)
    assert cache.sequence_ids() == ["a"]


def test_release_of_an_unknown_sequence_and_reset() -> None:
    cache = make_cache()
    cache.release("nobody")
    append(cache, ("a", 8), ("b", 8))
    cache.reset()
    assert (cache.free_blocks, cache.sequence_ids()) == (8, [])


def test_capacity_is_what_the_pool_or_the_model_allows() -> None:
    assert make_cache(num_blocks=2).kv_capacity == 8
    assert make_cache(num_blocks=99).kv_capacity == 20


def test_many_sequences_grow_the_tables() -> None:
    cache = PagedKVCache(LAYOUT, 1, num_blocks=100, max_seq_len=4)
    slots = append(cache, *((f"s{i}", 2) for i in range(50)))
    assert len(set(slots)) == 100
    assert [cache.cache_len(f"s{i}") for i in range(50)] == [2] * 50


OPERATION = st.one_of(
    st.tuples(st.just("append"), st.sampled_from("abcd"), st.integers(1, 9), st.booleans()),
    st.tuples(st.just("truncate"), st.sampled_from("abcd"), st.integers(0, 9)),
    st.tuples(st.just("release"), st.sampled_from("abcd")),
    st.tuples(st.just("prepare"), st.sampled_from("abcd"), st.integers(0, 24)),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(OPERATION, max_size=30))
def test_blocks_are_neither_lost_nor_shared(operations) -> None:
    cache = make_cache()
    lengths: dict[str, int] = {}
    for name, seq_id, *rest in operations:
        try:
            if name == "append":
                count, fails = rest
                with cache.append([(seq_id, count)]):
                    if fails:
                        raise ZeroDivisionError
                lengths[seq_id] = lengths.get(seq_id, 0) + count
            elif name == "prepare":
                cache.prepare(seq_id, rest[0])
                lengths.setdefault(seq_id, 0)
            elif name == "truncate":
                cache.truncate(seq_id, rest[0])
                if seq_id in lengths:
                    lengths[seq_id] = min(lengths[seq_id], rest[0])
            else:
                cache.release(seq_id)
                lengths.pop(seq_id, None)
        except (CapacityError, ZeroDivisionError):
            pass
        assert {seq_id: cache.cache_len(seq_id) for seq_id in cache.sequence_ids()} == lengths
        held = [
            block
            for row in cache._rows.values()
            for block in cache._table[row, : cache._owned[row]].tolist()
        ]
        assert sorted(held + cache._free_blocks) == list(range(8))
        for seq_id, length in lengths.items():
            assert cache._owned[cache._rows[seq_id]] * 4 >= length
