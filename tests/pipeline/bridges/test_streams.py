"""Copies on streams, on fake ones: whatever runs when, what arrives is what was sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bridges.link import BridgeTiming
from pipeline.bridges.ring import RingLink
from pipeline.bridges.streams import StreamCopier
from pipeline.modes import StageBridge
from tests.pipeline.bridges.fake_cuda import FakeCuda
from tests.pipeline.bridges.sending import CPU, idle, rows_of

GPU, OTHER_GPU = torch.device("cuda", 0), torch.device("cuda", 1)


@dataclass(frozen=True)
class Route:
    """Where a link goes and how; copies are those that events time."""

    kind: StageBridge
    source: torch.device
    target: torch.device
    to_host: int
    to_device: int

    def copier(self, cuda: FakeCuda, dtype: torch.dtype) -> StreamCopier:
        """As `open_bridge` makes it."""
        return StreamCopier(
            8,
            dtype,
            self.source,
            self.target,
            peer=self.kind is StageBridge.CUDA_PEER,
            ahead=self.kind is StageBridge.CUDA_DEVICE_STAGED,
            cuda=cuda,
        )


ROUTES = [
    Route(StageBridge.HOST, CPU, GPU, 0, 1),
    Route(StageBridge.HOST, GPU, CPU, 1, 0),
    Route(StageBridge.HOST, GPU, OTHER_GPU, 1, 1),
    Route(StageBridge.CUDA_DEVICE_STAGED, GPU, OTHER_GPU, 1, 1),
    Route(StageBridge.CUDA_DEVICE_STAGED, GPU, GPU, 1, 1),
    Route(StageBridge.CUDA_PEER, GPU, OTHER_GPU, 0, 1),
    Route(StageBridge.CUDA_PEER, GPU, GPU, 0, 1),
]
each_route = pytest.mark.parametrize(
    "route", ROUTES, ids=lambda route: f"{route.kind.value}-{route.source}-{route.target}"
)


class Exercise:
    """Two stages at the ends of a link, whose computing is queued like everything else."""

    def __init__(self, route: Route, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self.cuda = FakeCuda(seed)
        self.copier = route.copier(self.cuda, dtype)
        self.link = RingLink(route.kind, self.copier, 8, dtype)
        self.sender = self.cuda.stream(GPU) if route.source != CPU else None
        self.receiver = self.cuda.stream(route.target) if route.target != CPU else None
        self.timing = BridgeTiming()
        self.dtype = dtype
        self.sent: list[torch.Tensor] = []
        self.received: list[torch.Tensor] = []

    def step(self, action: int) -> None:
        """Receive, run something, or send so many rows; nothing where that would wait for ever."""
        if action == 0:
            if not self.link._passed.empty():
                self.receive()
        elif action < 0:
            self.cuda.run_some(-action)
        elif not self.link._free.empty():
            self.send(action)

    def send(self, rows: int) -> None:
        expected = rows_of(len(self.sent), rows)
        self.sent.append(expected.to(self.dtype).float())
        hidden = torch.full_like(expected, torch.nan)
        with self.cuda.computing_on(self.sender):
            slot = self.link.acquire()
            _queue(self.sender, lambda: hidden.copy_(expected))
            self.timing += self.link.fill(slot, hidden)
            self.link.hand_over(slot, rows)
            if self.sender is None:
                hidden.zero_()

    def receive(self) -> None:
        with (
            self.cuda.computing_on(self.receiver),
            self.link.receive(self.link.wait()) as (hidden, timing),
        ):
            self.timing += timing
            seen = torch.full(hidden.shape, torch.nan)
            _queue(self.receiver, lambda: seen.copy_(hidden))
            self.received.append(seen)

    def finish(self) -> None:
        while not self.link._passed.empty():
            self.receive()
        self.cuda.run_all()
        assert idle(self.link)

    @property
    def is_right(self) -> bool:
        return len(self.sent) == len(self.received) and all(
            torch.equal(sent, received)
            for sent, received in zip(self.sent, self.received, strict=True)
        )


def _queue(stream: object, work: Callable[[], object]) -> None:
    if stream is None:
        work()
    else:
        stream.add(work)  # type: ignore[attr-defined]


ACTIONS = st.lists(st.integers(-4, 4) | st.sampled_from([0, 0, 65, 80]), min_size=4, max_size=30)


@each_route
@settings(max_examples=150, deadline=None)
@given(actions=ACTIONS, seed=st.integers(0, 2**16), half=st.booleans())
def test_what_is_sent_arrives(route: Route, actions: list[int], seed: int, half: bool) -> None:
    exercise = Exercise(route, seed, torch.bfloat16 if half else torch.float32)
    for action in actions:
        exercise.step(action)
    exercise.finish()
    assert exercise.is_right


BUSY = [3, 3, 0, 3, 0, 3, 0, 3, 0, 3]


def _is_right(route: Route, seed: int, spoil: Callable[[Exercise], None]) -> bool:
    exercise = Exercise(route, seed)
    spoil(exercise)
    try:
        for action in BUSY:
            exercise.step(action)
        exercise.finish()
    except AssertionError:  # a time was read too early
        return False
    return exercise.is_right


def _settles_at_once(exercise: Exercise) -> None:
    exercise.copier.settle = lambda slot: BridgeTiming()  # type: ignore[method-assign]


def _forgets_the_read(exercise: Exercise) -> None:
    exercise.copier.release = lambda slot: None  # type: ignore[method-assign]


@each_route
@pytest.mark.parametrize("spoil", [_settles_at_once, _forgets_the_read])
def test_a_slot_that_is_used_again_too_early_would_be_seen(
    route: Route, spoil: Callable[[Exercise], None]
) -> None:
    if route.target == CPU:
        pytest.skip("a CPU's thread has read when it frees the slot")
    assert all(_is_right(route, seed, lambda exercise: None) for seed in range(30))
    assert not all(_is_right(route, seed, spoil) for seed in range(30))


@each_route
def test_copies_are_timed_when_their_slot_is_used_again(route: Route) -> None:
    exercise = Exercise(route, 0)
    for number in range(5):
        exercise.send(3)
        settled = max(0, number - 1)  # of those before, the last is still in the other slot
        assert exercise.timing.device_copy_ns == settled * route.to_device * 1_000_000
        if route.source != CPU:
            assert exercise.timing.host_copy_ns == settled * route.to_host * 1_000_000
        exercise.receive()
    assert exercise.timing.bridge_ns > exercise.timing.device_copy_ns
    assert (exercise.timing.host_copy_ns > 0) == (route.kind is not StageBridge.CUDA_PEER)


def test_neither_a_cuda_sender_nor_a_cuda_receiver_waits_for_a_copy() -> None:
    for route in ROUTES:
        if CPU not in (route.source, route.target):
            exercise = Exercise(route, 0)
            exercise.cuda.run_until = None  # type: ignore[assignment]
            for _ in range(2):
                exercise.send(3)
                exercise.receive()


def test_staged_copies_need_no_receiver_to_reach_its_device() -> None:
    for kind in (StageBridge.CUDA_DEVICE_STAGED, StageBridge.CUDA_PEER):
        exercise = Exercise(Route(kind, GPU, OTHER_GPU, 1, 1), 0)
        exercise.send(3)
        exercise.cuda.run_all()
        device = exercise.copier._slots[0].device
        assert device is not None
        assert torch.equal(device[:3], exercise.sent[0])


@each_route
def test_slots_come_back_from_receivers_that_fail(route: Route) -> None:
    exercise = Exercise(route, 1)
    for _ in range(5):
        exercise.send(3)
        with (
            pytest.raises(KeyError),
            exercise.cuda.computing_on(exercise.receiver),
            exercise.link.receive(exercise.link.wait()),
        ):
            raise KeyError
    exercise.sent.clear()
    exercise.send(4)
    exercise.finish()
    assert exercise.is_right


@each_route
def test_a_slot_given_back_after_it_was_filled_can_be_used_again(route: Route) -> None:
    exercise = Exercise(route, 2)
    with exercise.cuda.computing_on(exercise.sender):
        for rows in (3, 70, 3):
            slot = exercise.link.acquire()
            exercise.link.fill(slot, torch.full((rows, 8), -1.0))
            exercise.link.give_back(slot)
    for _ in range(3):
        exercise.send(3)
        exercise.receive()
    exercise.finish()
    assert exercise.is_right
