"""The driver's orders to the other ranks: a header of fixed size, and words of the size it says.

Everything is decided by the driver and told in order; a rank that gets an order out of turn
stops there and then, as what followed would be computed on other sequences than meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kernels.errors import InvalidInputError
from pipeline.chores import Chore
from pipeline.distributed.names import Handles, Texts, ids_of
from pipeline.distributed.words import Reader, Writer, kind_of
from pipeline.errors import BridgeError
from pipeline.work import Work

FIRST_WORDS = 256
"""Words of the first message: the header, and as much of the rest as fits."""

_HEADER = 5  # epoch, number, call, kind, words after the header
_END = -1


class Order(NamedTuple):
    """What a rank is to do: a task of a job, or, without one, to end.

    `call` is the number of the first job of the call that the job belongs to.
    """

    number: int
    call: int
    task: Work | Chore | None


class OrderWriter:
    """The driver's side of all links for orders."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._handles = Handles()

    def write(self, order: Order) -> tuple[torch.Tensor, torch.Tensor]:
        """The first message, int64 [FIRST_WORDS], and the second, int64 [what is left, maybe 0].

        Raises `InvalidInputError` for what no int64 can be; all is then as before.
        """
        writer = Writer(self._handles)
        kind, new = _END, []
        try:
            if order.task is not None:
                kind = kind_of(order.task)
                new = self._handles.introduce(ids_of(order.task))
                writer.names(new)
                writer.task(order.task)
            head = [self._epoch, order.number, order.call, kind, len(writer.words)]
            words = torch.tensor(head + writer.words, dtype=torch.int64)
        except Exception as error:  # torch and struct each raise their own
            self._handles.withdraw(new)
            name = type(order.task).__name__
            raise InvalidInputError(f"{name} cannot be put into 64-bit words: {error}") from error
        if order.task is not None:
            self._handles.forget(order.task)
        first = torch.zeros(FIRST_WORDS, dtype=torch.int64)
        first[: len(words)] = words[:FIRST_WORDS]
        return first, words[FIRST_WORDS:]


class OrderReader:
    """Another rank's side of its link for orders."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._last = 0
        self._texts = Texts()

    def left(self, first: torch.Tensor) -> int:
        """Words of the second message that follows a first one."""
        return max(0, _HEADER + int(first[_HEADER - 1]) - FIRST_WORDS)

    def read(self, first: torch.Tensor, second: torch.Tensor) -> Order:
        """The order. Raises `BridgeError` for one of another start, or out of turn."""
        words: Sequence[int] = [*first.tolist(), *second.tolist()]
        epoch, number, call, kind, count = words[:_HEADER]
        if epoch != self._epoch or number <= self._last:
            raise BridgeError(
                f"order {number} of start {epoch} came after {self._last} of start {self._epoch}"
            )
        self._last = number
        if kind == _END:
            return Order(number, call, None)
        reader = Reader(words[_HEADER : _HEADER + count], self._texts)
        reader.names()
        task = reader.task(kind)
        self._texts.forget(task)
        return Order(number, call, task)
