"""The links of a whole pipeline, and the probe that they deliver what was sent."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.bridges.link import SLOTS, Link
from pipeline.errors import BridgeError
from pipeline.modes import StageBridge

_FASTEST_FIRST = (StageBridge.CUDA_PEER, StageBridge.CUDA_DEVICE_STAGED, StageBridge.HOST)


class Bridge:
    """One link for each boundary between stages; they need not be of one kind.

    Args:
        links: from stage 0 to 1, from 1 to 2, ...
        hidden_size: width of a row.
        devices: device of each stage, one more than links.
    """

    def __init__(
        self, links: Sequence[Link], hidden_size: int, devices: Sequence[torch.device]
    ) -> None:
        self.links = list(links)
        self._hidden_size = hidden_size
        self._devices = list(devices)

    @property
    def name(self) -> StageBridge:
        """The kind of the links, of the slowest one where they differ; host if there is none."""
        kinds = [link.kind for link in self.links] or [StageBridge.HOST]
        return max(kinds, key=_FASTEST_FIRST.index)

    def into(self, stage: int) -> Link | None:
        """The link that `stage` receives from; None for the first."""
        return self.links[stage - 1] if stage > 0 else None

    def out_of(self, stage: int) -> Link | None:
        """The link that `stage` sends on; None for the last."""
        return self.links[stage] if stage < len(self.links) else None

    def probe(self) -> None:
        """Send a known pattern through every slot of every link and compare checksums.

        Some machines deliver zeros or stale bytes without an error, so this runs at start-up, in
        the caller's thread and before workers use the links. Raises `BridgeError` that names the
        bridge and the two stages.
        """
        for stage, link in enumerate(self.links):
            probe_link(link, stage, self._hidden_size, self._devices[stage])


def probe_link(link: Link, stage: int, hidden_size: int, source: torch.device) -> None:
    """Probe the link from `stage`, which computes on `source`, to the next; see `Bridge.probe`."""
    for turn in range(SLOTS + 1):  # one more than slots, so that one is used again
        pattern = _pattern(turn, hidden_size)
        slot = link.acquire()
        try:
            link.fill(slot, pattern.to(source))
        except BaseException:
            link.give_back(slot)
            raise
        link.hand_over(slot, len(pattern))
        with link.receive(link.wait()) as (hidden, _):
            sent, got = checksum(pattern), checksum(hidden.cpu())
        if sent != got:
            raise BridgeError(
                f"bridge {link.kind.value!r} from stage {stage} to stage {stage + 1} "
                f"delivered checksum {got:#x}, expected {sent:#x}"
            )


def checksum(hidden: torch.Tensor) -> int:
    """A 64-bit sum of the float32 bit patterns, each weighted by its place."""
    bits = hidden.contiguous().view(torch.int32).flatten().to(torch.int64)
    return int((bits * torch.arange(1, bits.numel() + 1)).sum())


def _pattern(turn: int, hidden_size: int) -> torch.Tensor:
    values = torch.arange(3 * hidden_size, dtype=torch.float32).reshape(3, hidden_size)
    # What bfloat16 can hold, as that may be what crosses.
    return values.mul(0.37).add(turn).sin().bfloat16().float()
