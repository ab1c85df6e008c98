"""Which tokens of the cache a CPU attention call reads, worked out once for all layers of a step.

Rows with one query are grouped by length, so that a group is one batched call; a row is padded to
a length that depends on its own alone, so that its result does not depend on the other rows.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

# Padded lengths: steps of 16 up to 128, then four a power of two, at most a quarter too long.
_LENGTHS = torch.tensor(
    [*range(16, 128, 16), *(part << (power - 2) for power in range(7, 31) for part in range(4, 8))]
)


@dataclass(frozen=True, eq=False)
class DecodeGroup:
    """R sequences with one query each and tokens padded to the same number L."""

    rows: Tensor | None  # int64 [R]: rows of q; None: all of them, in order
    slots: Tensor  # int64 [R, L]: tokens in the pool; padding repeats the row's last token
    length: int  # L
    mask: Tensor | None  # float32 [R, 1, 1, L]: -inf where padded, else 0; None: no padding


@dataclass(frozen=True, eq=False)
class PrefillRow:
    """One sequence with several queries: rows `start` to `stop` of q are its last positions."""

    start: int
    stop: int
    first: int  # position of the first token that any of its queries sees
    length: int  # position after the last
    slots: Tensor  # int64 [length - first]


@dataclass(frozen=True, eq=False)
class Plan:
    """All of a call; rows of q in no group and no prefill see nothing."""

    groups: tuple[DecodeGroup, ...]
    prefill: tuple[PrefillRow, ...]
    total: int  # rows of q
    covers_all: bool  # every row of q is written


class _Cache(threading.local):
    """This thread's last metadata and the plans made for it: layers of a step share them."""

    def __init__(self) -> None:
        self.metadata: tuple[Tensor, ...] = ()
        self.plans: dict[tuple[int, int | None], Plan] = {}


_cache = _Cache()


def plan(
    query_start: Tensor, kv_len: Tensor, block_table: Tensor, block_size: int, window: int | None
) -> Plan:
    """The plan of a call, taken from the thread's cache if the metadata's contents are the same."""
    metadata = (query_start, kv_len, block_table)
    kept = _cache.metadata
    if not kept or not all(torch.equal(a, b) for a, b in zip(kept, metadata, strict=True)):
        _cache.metadata = tuple(tensor.clone() for tensor in metadata)
        _cache.plans = {}
    key = (block_size, window)
    found = _cache.plans.get(key)
    if found is None:
        found = _cache.plans[key] = _make_plan(*metadata, block_size, window)
    return found


def _make_plan(
    query_start: Tensor, kv_len: Tensor, block_table: Tensor, block_size: int, window: int | None
) -> Plan:
    starts, lengths = query_start.long(), kv_len.long()
    counts = starts.diff()
    single = (counts == 1) & (lengths > 0)
    total = int(starts[-1])
    groups = _decode_groups(
        single.nonzero().squeeze(1), starts, lengths, block_table, block_size, window, total
    )
    prefill = tuple(
        row
        for b in (counts > 1).nonzero().squeeze(1).tolist()
        if (row := _prefill_row(b, starts, lengths, block_table, block_size, window))
    )
    covered = int(single.sum()) + sum(row.stop - row.start for row in prefill)
    return Plan(groups, prefill, total, covered == total)


def _decode_groups(
    sequences: Tensor,
    starts: Tensor,
    lengths: Tensor,
    block_table: Tensor,
    block_size: int,
    window: int | None,
    total: int,
) -> tuple[DecodeGroup, ...]:
    visible = lengths[sequences]
    if window is not None:
        visible = visible.clamp(max=window)
    bucket = torch.bucketize(visible, _LENGTHS)
    groups = []
    for index in bucket.unique().tolist():
        chosen = (bucket == index).nonzero().squeeze(1)
        members, seen = sequences[chosen], visible[chosen].unsqueeze(1)  # [R], [R, 1]
        length = int(_LENGTHS[index])
        column = torch.arange(length)
        position = (lengths[members].unsqueeze(1) - seen) + torch.minimum(column, seen - 1)
        blocks = block_table[members].gather(1, position // block_size)
        slots = blocks.long() * block_size + position % block_size  # [R, L]
        padding = column >= seen  # [R, L]
        rows = starts[members]
        everything = len(members) == total and torch.equal(rows, torch.arange(total))
        groups.append(
            DecodeGroup(
                None if everything else rows,
                slots,
                length,
                _mask(padding) if bool(padding.any()) else None,
            )
        )
    return tuple(groups)


def _mask(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None, None, :]


def _prefill_row(
    b: int,
    starts: Tensor,
    lengths: Tensor,
    block_table: Tensor,
    block_size: int,
    window: int | None,
) -> PrefillRow | None:
    start, stop, length = int(starts[b]), int(starts[b + 1]), int(lengths[b])
    start = max(start, stop - length)  # queries before the first position see nothing
    if start >= stop:
        return None
    first = 0 if window is None else max(0, length - (stop - start) - window + 1)
    position = torch.arange(first, length)
    slots = block_table[b].long()[position // block_size] * block_size + position % block_size
    return PrefillRow(start, stop, first, length, slots)
