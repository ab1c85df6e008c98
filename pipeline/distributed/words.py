"""Tasks as int64 words and back: what a job's order consists of after its header."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from model.sampling import SamplingParams
from model.stage import DecodeRow
from pipeline.chores import Chore, Prepare, Release, Reset, Restore, Truncate, Unprepare
from pipeline.distributed.names import Handles, Texts
from pipeline.work import Answer, Asked, Decode, Piece, Prefill, Sample, Work

_KINDS: list[type] = [Prefill, Decode, Prepare, Truncate, Release, Reset, Restore, Unprepare]
_LOGITS, _GREEDY, _SAMPLE = range(3)
_MOST = (1 << 63) - 1  # more than any cache or vocabulary has, so as good as what is above
_NONE = -1  # where None may be; all numbers there are 0 or more


def kind_of(task: Work | Chore) -> int:
    """The number of a task's kind, from 0."""
    return _KINDS.index(type(task))


class Writer:
    """Collects words; a list is preceded by its length."""

    def __init__(self, handles: Handles) -> None:
        self.words: list[int] = []
        self._handles = handles

    def names(self, new: Sequence[tuple[int, str]]) -> None:
        """Numbers and texts of ids that the reader does not know."""
        self.words.append(len(new))
        for number, seq_id in new:
            text = seq_id.encode("utf-8", "surrogatepass")
            padded = text + bytes(-len(text) % 8)
            self.words += [number, len(text), *struct.unpack(f"<{len(padded) // 8}q", padded)]

    def task(self, task: Work | Chore) -> None:
        """All fields of a task whose ids are known."""
        number = self._handles.number
        match task:
            case Prefill():
                self.words += [task.all_rows, len(task.pieces)]
                for piece in task.pieces:
                    self.words += [number(piece.id), piece.pos, piece.ends]
                    self._list(piece.tokens)
                self._asked(task.answer)
            case Decode():
                self.words.append(len(task.rows))
                for row in task.rows:
                    self.words += [number(row.id), row.token, row.pos]
                self._asked(task.answer)
            case Prepare():
                self.words += [number(task.id), task.tokens]
            case Truncate():
                self.words += [number(task.id), min(task.length, _MOST)]
            case Release():
                self._list([number(seq_id) for seq_id in task.ids])
            case Restore():
                self.words.append(len(task.lengths))
                for seq_id, length in task.lengths.items():
                    self.words += [number(seq_id), _NONE if length is None else length]
            case Unprepare():
                self.words += [number(task.id), _NONE if task.tokens is None else task.tokens]

    def _list(self, numbers: Sequence[int]) -> None:
        self.words.append(len(numbers))
        self.words += numbers

    def _asked(self, asked: Asked) -> None:
        if not isinstance(asked, Sample):
            self.words.append(_LOGITS if asked is Answer.LOGITS else _GREEDY)
            return
        p = asked.params
        fields = struct.pack(
            "<ddddqQ",
            p.temperature,
            p.top_p,
            p.min_p,
            p.repetition_penalty,
            min(p.top_k, _MOST),
            p.seed,
        )
        self.words += [_SAMPLE, *struct.unpack("<6q", fields)]
        self._list(asked.streams)
        self._list(asked.steps)
        history = asked.history
        self.words.append(_NONE if history is None else len(history))
        for row in history or ():
            self._list(row)


class Reader:
    """Reads what a `Writer` wrote."""

    def __init__(self, words: Sequence[int], texts: Texts) -> None:
        self._words = words
        self._at = 0
        self._texts = texts

    def names(self) -> None:
        """Learn new ids."""
        for _ in range(self._next()):
            number, length = self._next(), self._next()
            padded = self._several(-(-length // 8))
            text = struct.pack(f"<{len(padded)}q", *padded)[:length]
            self._texts.learn(number, text.decode("utf-8", "surrogatepass"))

    def task(self, kind: int) -> Work | Chore:
        """The task, of that kind."""
        what = _KINDS[kind]
        if what is Prefill:
            all_rows = bool(self._next())
            pieces = [self._piece() for _ in range(self._next())]
            return Prefill(pieces, self._asked(), all_rows)
        if what is Decode:
            rows = [DecodeRow(self._id(), self._next(), self._next()) for _ in range(self._next())]
            return Decode(rows, self._asked())
        if what is Prepare:
            return Prepare(self._id(), self._next())
        if what is Truncate:
            return Truncate(self._id(), self._next())
        if what is Release:
            return Release([self._texts.id(number) for number in self._list()])
        if what is Restore:
            return Restore({self._id(): self._perhaps() for _ in range(self._next())})
        if what is Unprepare:
            return Unprepare(self._id(), self._perhaps())
        return Reset()

    def _piece(self) -> Piece:
        seq_id, pos, ends = self._id(), self._next(), bool(self._next())
        return Piece(seq_id, self._list(), pos, ends)

    def _asked(self) -> Asked:
        code = self._next()
        if code != _SAMPLE:
            return Answer.LOGITS if code == _LOGITS else Answer.GREEDY
        fields = struct.unpack("<ddddqQ", struct.pack("<6q", *self._several(6)))
        temperature, top_p, min_p, penalty, top_k, seed = fields
        params = SamplingParams(temperature, top_k, top_p, min_p, penalty, seed)
        streams, steps = self._list(), self._list()
        count = self._next()
        history = None if count == _NONE else [self._list() for _ in range(count)]
        return Sample(params, streams, steps, history)

    def _id(self) -> str:
        return self._texts.id(self._next())

    def _perhaps(self) -> int | None:
        value = self._next()
        return None if value == _NONE else value

    def _list(self) -> list[int]:
        return self._several(self._next())

    def _several(self, count: int) -> list[int]:
        start, self._at = self._at, self._at + count
        return list(self._words[start : self._at])

    def _next(self) -> int:
        self._at += 1
        return self._words[self._at - 1]
