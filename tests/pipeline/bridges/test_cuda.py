"""Links from and to a real GPU: two stages with a thread and a stream each, on one device."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest
import torch

from pipeline.bridges.link import BridgeTiming, Link
from pipeline.bridges.opening import open_bridge
from tests.devices import DEVICE
from tests.pipeline.bridges.sending import CPU, rows_of

pytestmark = pytest.mark.skipif(DEVICE != "cuda", reason="needs --device cuda")

GPU = torch.device("cuda", 0)
WIDTH = 512
ROWS = [1, 64, 65, 3, 1000, 2, 200] * 4
CYCLES = 2_000_000
"""About a millisecond: long enough that whoever does not wait for a stream overtakes it."""

BRIDGES = [
    ("host", GPU, GPU),
    ("host", GPU, CPU),
    ("host", CPU, GPU),
    ("cuda_device_staged", GPU, GPU),
    ("cuda_peer", GPU, GPU),
    ("auto", GPU, GPU),
]
each_bridge = pytest.mark.parametrize(
    ("name", "source", "target"), BRIDGES, ids=lambda value: str(value)
)


def _computing_on(device: torch.device) -> object:
    return nullcontext() if device == CPU else torch.cuda.stream(torch.cuda.Stream(device))


class Ends:
    """Sends `ROWS` from a thread of its own, receives them in this one, and keeps the times."""

    def __init__(
        self,
        link: Link,
        source: torch.device,
        target: torch.device,
        *,
        slow_sender: bool,
        slow_receiver: bool,
    ) -> None:
        self.link = link
        self.source, self.target = source, target
        self.slow_sender = slow_sender and source == GPU
        self.slow_receiver = slow_receiver and target == GPU
        self.sent = BridgeTiming()
        self.error: BaseException | None = None

    def send_all(self) -> None:
        try:
            with torch.inference_mode(), _computing_on(self.source):  # type: ignore[attr-defined]
                for turn, rows in enumerate(ROWS):
                    self._send(rows_of(turn, rows, WIDTH))
        except BaseException as error:
            self.error = error
            self.link.pass_note(error)

    def _send(self, expected: torch.Tensor) -> None:
        slot = self.link.acquire()
        expected = expected.to(self.source)
        if self.slow_sender:
            torch.cuda._sleep(CYCLES)
        self.sent += self.link.fill(slot, expected * 1.0)  # freed at once, so its memory may go
        torch.full((len(expected), WIDTH), torch.nan, device=self.source)  # to this one
        self.link.hand_over(slot, len(expected))

    def receive_all(self) -> list[torch.Tensor]:
        received = []
        with torch.inference_mode(), _computing_on(self.target):  # type: ignore[attr-defined]
            for _ in ROWS:
                envelope = self.link.wait()
                assert envelope.slot is not None, envelope.note
                with self.link.receive(envelope) as (hidden, _):
                    assert hidden.device == self.target
                    if self.slow_receiver:
                        torch.cuda._sleep(CYCLES)
                    received.append(hidden * 1.0)
            if self.target == GPU:
                torch.cuda.current_stream(GPU).synchronize()
        return received

    def run(self) -> list[torch.Tensor]:
        sender = threading.Thread(target=self.send_all)
        sender.start()
        received = self.receive_all()
        sender.join()
        assert self.error is None
        return received


@each_bridge
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("slow", ["nobody", "sender", "receiver"])
def test_what_is_sent_arrives(
    name: str, source: torch.device, target: torch.device, dtype: str, slow: str
) -> None:
    bridge = open_bridge(name, WIDTH, [source, target], dtype)
    bridge.probe()
    ends = Ends(
        bridge.links[0],
        source,
        target,
        slow_sender=slow == "sender",
        slow_receiver=slow == "receiver",
    )
    for turn, (rows, received) in enumerate(zip(ROWS, ends.run(), strict=True)):
        expected = rows_of(turn, rows, WIDTH)
        if dtype == "bf16":
            expected = expected.bfloat16().float()
        assert torch.equal(received.cpu(), expected), f"turn {turn}"
    if target == GPU:
        assert ends.sent.device_copy_ns > 0
    if source == GPU and name == "host":
        assert ends.sent.host_copy_ns > 0


def test_auto_takes_peer_copies_on_one_device() -> None:
    assert open_bridge("auto", WIDTH, [torch.device("cuda"), GPU]).name == "cuda_peer"


@pytest.mark.parametrize("name", ["host", "cuda_device_staged", "cuda_peer"])
def test_neither_thread_waits_for_the_device(name: str) -> None:
    bridge = open_bridge(name, WIDTH, [GPU, GPU])
    bridge.probe()
    link = bridge.links[0]
    hidden = torch.ones(8, WIDTH, device=GPU)
    hidden.sum()  # a kernel's first launch may wait for the device to load it
    torch.cuda._sleep(1)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream(GPU)), torch.inference_mode():
        done = torch.cuda.Event()
        torch.cuda._sleep(500 * CYCLES)  # about half a second
        slot = link.acquire()
        link.fill(slot, hidden)
        link.hand_over(slot, 8)
        with link.receive(link.wait()) as (received, _):
            total = received.sum()
        done.record()
        assert not done.query()
        assert total.item() == 8 * WIDTH
