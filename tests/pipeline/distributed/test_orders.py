"""Orders, failures and messages survive being bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.errors import CapacityError, InvalidInputError
from model.sampling import SamplingParams
from model.stage import DecodeRow
from pipeline.bridges.link import BridgeTiming
from pipeline.chores import Prepare, Release, Reset, Restore, Truncate, Unprepare
from pipeline.distributed.failures import TEXT_ROOM, failure_text, rebuilt
from pipeline.distributed.frames import Flag, Frame, add_trace, pack_trace, unpack_spans
from pipeline.distributed.names import Handles, Texts
from pipeline.distributed.orders import FIRST_WORDS, Order, OrderReader, OrderWriter
from pipeline.errors import BridgeError, StageError
from pipeline.spans import Span, Track
from pipeline.trace import StageTrace
from pipeline.work import Answer, Decode, Piece, Prefill, Sample

ids = st.text(st.characters(), max_size=12)  # lone surrogates, too
counts = st.integers(0, 1 << 40)
tokens = st.lists(st.integers(0, 1 << 20), min_size=1, max_size=60)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0, 10),
    top_k=st.integers(0, 1 << 20),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.001, 1000),
    seed=st.integers(0, (1 << 64) - 1),
)
samples = st.builds(
    Sample,
    params,
    st.lists(counts, max_size=5),
    st.lists(counts, max_size=5),
    st.none() | st.lists(tokens, max_size=3),
)
answers = st.sampled_from(Answer) | samples
tasks = st.one_of(
    st.builds(
        Prefill,
        st.lists(st.builds(Piece, ids, tokens, counts, st.booleans()), min_size=1, max_size=4),
        answers,
        st.booleans(),
    ),
    st.builds(Decode, st.lists(st.builds(DecodeRow, ids, counts, counts), max_size=70), answers),
    st.builds(Prepare, ids, counts),
    st.builds(Truncate, ids, counts),
    st.builds(Release, st.lists(ids, max_size=4)),
    st.just(Reset()),
    st.builds(Restore, st.dictionaries(ids, st.none() | counts, max_size=4)),
    st.builds(Unprepare, ids, st.none() | counts),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(tasks, max_size=8))
def test_tasks_arrive_as_they_were_sent(sent: list) -> None:
    writer, reader = OrderWriter(3), OrderReader(3)
    for number, task in enumerate(sent, 1):
        first, second = writer.write(Order(number, 1, task))
        assert first.shape == (FIRST_WORDS,)
        assert len(second) == reader.left(first)
        assert reader.read(first, second) == Order(number, 1, task)
    first, second = writer.write(Order(len(sent) + 1, 0, None))
    assert reader.read(first, second).task is None


def test_ids_cross_once_until_they_are_forgotten() -> None:
    writer = OrderWriter(1)
    words = [
        int(writer.write(Order(number, 1, task))[0][4])
        for number, task in enumerate(
            [
                Truncate("a" * 80, 1),
                Truncate("a" * 80, 1),
                Release(["a" * 80]),
                Truncate("a" * 80, 1),
            ]
        )
    ]
    assert words[0] == words[3] > words[1]


def test_numbers_beyond_64_bits() -> None:
    writer, reader = OrderWriter(1), OrderReader(1)
    with pytest.raises(InvalidInputError, match="Prefill cannot be put into 64-bit words"):
        writer.write(Order(1, 1, Prefill([Piece("a", [1 << 70], 0)], Answer.GREEDY)))
    most = (1 << 63) - 1
    # The id is new again; what only has to be large is as large as can be.
    order = reader.read(*writer.write(Order(2, 2, Truncate("a", 1 << 70))))
    assert order.task == Truncate("a", most)
    sample = Sample(SamplingParams(top_k=1 << 70), [0], [0], None)
    order = reader.read(*writer.write(Order(3, 3, Decode([DecodeRow("a", 1, 0)], sample))))
    assert isinstance(order.task, Decode)
    assert isinstance(order.task.answer, Sample)
    assert order.task.answer.params.top_k == most


@pytest.mark.parametrize(
    "task", [Release(["a"]), Reset(), Restore({"a": None}), Unprepare("a", None)]
)
def test_what_is_released_is_not_remembered(task: Release | Reset | Restore | Unprepare) -> None:
    handles, texts = Handles(), Texts()
    for number, seq_id in handles.introduce(["a"]):
        texts.learn(number, seq_id)
    handles.forget(task)
    texts.forget(task)
    with pytest.raises(KeyError):
        handles.number("a")
    with pytest.raises(KeyError):
        texts.id(0)


@pytest.mark.parametrize(("epoch", "number"), [(2, 6), (1, 5), (1, 4)])
def test_orders_out_of_turn_are_refused(epoch: int, number: int) -> None:
    reader = OrderReader(1)
    reader.read(*OrderWriter(1).write(Order(5, 5, Reset())))
    with pytest.raises(
        BridgeError, match=f"order {number} of start {epoch} came after 5 of start 1"
    ):
        reader.read(*OrderWriter(epoch).write(Order(number, 5, Reset())))


@pytest.mark.parametrize(
    ("cause", "name"),
    [
        (CapacityError("full\0er"), "CapacityError"),
        (KeyError("x"), "KeyError"),
        (type("OwnError", (ValueError,), {})("é" * 5000), "OwnError"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "odd"), "UnicodeDecodeError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_failures_keep_type_message_and_place(cause: BaseException, name: str) -> None:
    try:
        raise cause
    except BaseException as error:
        text = failure_text(StageError(2, "decode_hidden", error, 1))
    assert len(text) <= TEXT_ROOM
    operation, again = rebuilt(text, 2)
    assert operation == "decode_hidden"
    assert type(again).__name__ == name
    assert isinstance(again, Exception), "an interrupt elsewhere interrupts nobody here"
    assert str(again)[:200] == str(cause).replace("\0", " ")[:200]
    assert "test_failures_keep_type" in again.__notes__[0]


def test_messages_bring_rows_measurements_and_failures() -> None:
    frame = Frame(2, 4000, torch.device("cpu"))
    trace = StageTrace(10, 20, 30, BridgeTiming(4, 5, 6), [(100, 110), (120, 130)])
    spans = [
        Span(1, Track.COMPUTE, 100, 110, 7, "decode", 3),
        Span(1, Track.SEND, 120, 130, 7, "x", 3),
    ]
    pack_trace(frame.traces[1], trace, spans, answer="x")
    frame.write(1, 7, 3, Flag.ROWS)
    assert (frame.turn, frame.rows, frame.flag) == ((1, 7), 3, Flag.ROWS)
    total = StageTrace(busy=[(1, 2)])
    add_trace(frame.traces[1], total, 50)
    assert total == StageTrace(10, 20, 30, BridgeTiming(4, 5, 6), [(1, 2), (50, 60), (70, 80)])
    shifted = [
        span._replace(start_ns=span.start_ns - 50, end_ns=span.end_ns - 50) for span in spans
    ]
    assert unpack_spans(frame.traces[1], 1, 7, ("decode", "x"), 50) == shifted
    frame.write(1, 8, 0, Flag.FAILURE)
    frame.write_failure(1, b"text")
    assert frame.failure == (1, b"text")
    assert frame.message(0).numel() < frame.message(4000).numel()
