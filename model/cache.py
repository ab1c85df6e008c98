"""The paged, transactional KV cache of one stage: which blocks belong to which sequence.

The pools hold numbers; this file holds the bookkeeping, on the host, in numpy arrays with one row
per sequence, so that a step over many sequences does no Python work per token. A sequence is
append-only with a committed length: `append` hands out slots, and only a clean exit from its
context commits them. One block table per sequence serves all layers of the stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.errors import CapacityError, InvalidInputError
from kernels.layout import KVLayout, KVPool
from model.paged_batch import PagedBatch


def blocks_for(tokens: int, block_size: int) -> int:
    """How many blocks of `block_size` slots hold `tokens` tokens."""
    return -(-tokens // block_size)


class PagedKVCache:
    """KV pools of a stage's layers, and the sequences that live in them.

    Args:
        layout: dtype and geometry of the pools.
        num_layers: local layers; one `KVPool` each.
        num_blocks: blocks per pool, shared by all sequences.
        max_seq_len: most positions that one sequence may hold.
        device: where the pools live.
    """

    def __init__(
        self,
        layout: KVLayout,
        num_layers: int,
        num_blocks: int,
        max_seq_len: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_blocks < 1:
            raise InvalidInputError(f"num_blocks is {num_blocks}, expected at least 1")
        if max_seq_len < 1:
            raise InvalidInputError(f"max_seq_len is {max_seq_len}, expected at least 1")
        self.layout = layout
        self.max_seq_len = max_seq_len
        self.num_blocks = num_blocks
        self.device = torch.device(device)
        self.pools: list[KVPool] = [layout.allocate(num_blocks, device) for _ in range(num_layers)]
        # Of one sequence: the width of the block table.
        self.max_blocks = min(blocks_for(max_seq_len, layout.block_size), num_blocks)
        self.reset()

    def reset(self) -> None:
        """Forget every sequence and take all blocks back."""
        self._rows: dict[str, int] = {}
        self._free_blocks = list(range(self.num_blocks - 1, -1, -1))
        self._free_rows: list[int] = []
        self._table = np.zeros((0, self.max_blocks), np.int32)
        self._length = np.zeros(0, np.int64)
        self._owned = np.zeros(0, np.int64)  # blocks that the row holds
        self._reserved = np.zeros(0, np.int64)  # blocks that `prepare` promised it

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free_blocks)

    @property
    def kv_capacity(self) -> int:
        """Most positions that one sequence can hold here."""
        return min(self.max_seq_len, self.num_blocks * self.layout.block_size)

    @property
    def nbytes(self) -> int:
        """Bytes of all pools."""
        return sum(pool.nbytes for pool in self.pools)

    def sequence_ids(self) -> list[str]:
        """Known sequences, oldest first."""
        return list(self._rows)

    def cache_len(self, seq_id: str) -> int:
        """Committed tokens of a sequence; 0 if it is unknown."""
        row = self._rows.get(seq_id)
        return 0 if row is None else int(self._length[row])

    def check_append(self, requests: Sequence[tuple[str, int]]) -> None:
        """Raise what `append` would raise, and change nothing.

        Args:
            requests: (sequence, number of new tokens), each sequence once.

        Raises:
            InvalidInputError: a sequence named twice, or a count below 1.
            CapacityError: a sequence would outgrow `kv_capacity`, or too few blocks are free.
        """
        self._plan(requests)

    @contextmanager
    def append(self, requests: Sequence[tuple[str, int]]) -> Iterator[PagedBatch]:
        """Slots, on the host, for new tokens; committed when the context ends without error.

        Unknown sequences are created. If the body raises, lengths, blocks and the set of sequences
        are as before. Raises what `check_append` raises, before anything changes.
        """
        known, counts, needed = self._plan(requests)
        fresh = [
            seq_id
            for seq_id, present in zip([r[0] for r in requests], known, strict=True)
            if not present
        ]
        for seq_id in fresh:
            self._create(seq_id)
        rows = np.fromiter((self._rows[r[0]] for r in requests), np.int64, len(requests))
        owned_before = self._owned[rows].copy()
        for index in np.flatnonzero(needed):
            self._grow(rows[index], int(needed[index]))
        try:
            yield self._batch(rows, counts)
        except BaseException:
            for row, owned in zip(rows, owned_before, strict=True):
                self._shrink(row, int(owned))
            for seq_id in fresh:
                self.release(seq_id)
            raise
        self._length[rows] += counts

    def prepare(self, seq_id: str, max_tokens: int) -> None:
        """Create a sequence if need be and reserve blocks for `max_tokens` positions of it.

        Raises:
            InvalidInputError: `max_tokens` is negative.
            CapacityError: more than one sequence can hold, or than is free; nothing changes.
        """
        if max_tokens < 0:
            raise InvalidInputError(f"max_tokens is {max_tokens}, expected at least 0")
        self._check_length(seq_id, max_tokens)
        row = self._rows.get(seq_id)
        blocks = blocks_for(max_tokens, self.layout.block_size)
        needed = max(0, blocks - (0 if row is None else int(self._owned[row])))
        self._check_free(needed)
        if row is None:
            row = self._create(seq_id)
        self._grow(row, needed)
        self._reserved[row] = max(self._reserved[row], blocks)

    def reserved_blocks(self, seq_id: str) -> int | None:
        """Blocks that `prepare` promised a sequence; None if it is unknown."""
        row = self._rows.get(seq_id)
        return None if row is None else int(self._reserved[row])

    def unreserve(self, seq_id: str, blocks: int) -> None:
        """Lower a reservation to `blocks`; those past it and past the length go back.

        An unknown sequence is left alone, and so is a reservation that is no larger.
        """
        row = self._rows.get(seq_id)
        if row is None or blocks >= self._reserved[row]:
            return
        self._reserved[row] = blocks
        keep = blocks_for(int(self._length[row]), self.layout.block_size)
        self._shrink(row, max(keep, blocks))

    def truncate(self, seq_id: str, new_len: int) -> None:
        """Shorten a sequence; blocks past its reservation go back. Never lengthens.

        An unknown sequence is left alone. Raises `InvalidInputError` if `new_len` is negative.
        """
        if new_len < 0:
            raise InvalidInputError(f"new_len is {new_len}, expected at least 0")
        row = self._rows.get(seq_id)
        if row is None or new_len >= self._length[row]:
            return
        self._length[row] = new_len
        keep = blocks_for(new_len, self.layout.block_size)
        self._shrink(row, max(keep, int(self._reserved[row])))

    def release(self, seq_id: str) -> None:
        """Forget a sequence and take its blocks back; an unknown one is left alone."""
        row = self._rows.pop(seq_id, None)
        if row is None:
            return
        self._shrink(row, 0)
        self._length[row] = self._reserved[row] = 0
        self._free_rows.append(row)

    def _plan(
        self, requests: Sequence[tuple[str, int]]
    ) -> tuple[list[bool], NDArray[np.int64], NDArray[np.int64]]:
        """Check a call; returns (known, token counts, blocks to add) per request."""
        counts = np.fromiter((count for _, count in requests), np.int64, len(requests))
        rows = [self._rows.get(seq_id) for seq_id, _ in requests]
        if len({seq_id for seq_id, _ in requests}) != len(requests):
            seen: set[str] = set()
            for seq_id, _ in requests:
                if seq_id in seen:
                    raise InvalidInputError(f"sequence {seq_id!r} appears twice in one batch")
                seen.add(seq_id)
        if len(counts) and counts.min() < 1:
            seq_id, count = next(r for r in requests if r[1] < 1)
            raise InvalidInputError(f"sequence {seq_id!r} brings {count} tokens, expected >= 1")
        known = [row is not None for row in rows]
        index = np.fromiter((0 if row is None else row for row in rows), np.int64, len(rows))
        lengths, owned = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        mask = np.asarray(known, bool)
        lengths[mask], owned[mask] = self._length[index[mask]], self._owned[index[mask]]
        total = lengths + counts
        if len(total) and total.max() > self.kv_capacity:
            worst = int(total.argmax())
            self._check_length(requests[worst][0], int(total[worst]))
        needed = np.maximum(0, -(-total // self.layout.block_size) - owned)
        self._check_free(int(needed.sum()))
        return known, counts, needed

    def _check_length(self, seq_id: str, length: int) -> None:
        if length > self.kv_capacity:
            raise CapacityError(
                f"sequence {seq_id!r} needs {length} positions, capacity is {self.kv_capacity}"
            )

    def _check_free(self, needed: int) -> None:
        if needed > self.free_blocks:
            raise CapacityError(
                f"the KV cache needs {needed} more blocks of {self.layout.block_size} tokens, "
                f"{self.free_blocks} of {self.num_blocks} are free"
            )

    def _create(self, seq_id: str) -> int:
        if not self._free_rows:
            self._add_rows()
        row = self._free_rows.pop()
        self._rows[seq_id] = row
        return row

    def _add_rows(self) -> None:
        old = len(self._length)
        new = max(16, 2 * old)
        grow = ((0, new - old),)
        self._table = np.pad(self._table, (*grow, (0, 0)))
        self._length = np.pad(self._length, grow)
        self._owned = np.pad(self._owned, grow)
        self._reserved = np.pad(self._reserved, grow)
        self._free_rows.extend(range(new - 1, old - 1, -1))

    def _grow(self, row: int, count: int) -> None:
        """Give `count` free blocks to a row; the caller has checked that they are there."""
        owned = int(self._owned[row])
        for slot in range(owned, owned + count):
            self._table[row, slot] = self._free_blocks.pop()
        self._owned[row] = owned + count

    def _shrink(self, row: int, keep: int) -> None:
        """Take back all but the first `keep` blocks of a row."""
        owned = int(self._owned[row])
        if keep < owned:
            self._free_blocks.extend(self._table[row, keep:owned][::-1].tolist())
            self._owned[row] = keep

    def _batch(self, rows: NDArray[np.int64], counts: NDArray[np.int64]) -> PagedBatch:
        size = self.layout.block_size
        query_start = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(counts, out=query_start[1:])
        kv_len = self._length[rows] + counts
        # Position of a token: its index in the call, minus where its sequence starts in the call,
        # plus what its sequence has already.
        offset = np.repeat(self._length[rows] - query_start[:-1], counts)
        positions = np.arange(query_start[-1], dtype=np.int64) + offset
        token_rows = np.repeat(rows, counts)
        slots = self._table[token_rows, positions // size].astype(np.int64) * size
        slots += positions % size
        width = int(-(-kv_len.max() // size)) if len(rows) else 0

        return PagedBatch(
            query_start=torch.from_numpy(query_start),
            kv_len=torch.from_numpy(kv_len.astype(np.int32)),
            block_table=torch.from_numpy(np.ascontiguousarray(self._table[rows, :width])),
            positions=torch.from_numpy(positions),
            token_kv_len=torch.from_numpy(np.repeat(kv_len, counts)),
            slot_mapping=torch.from_numpy(slots),
            max_queries=int(counts.max(initial=0)),
        )
