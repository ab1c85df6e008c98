"""The start-up probe of links between processes: what was sent must arrive, through every slot."""

from __future__ import annotations

import torch

from pipeline.bridges.bridge import checksum
from pipeline.bridges.link import SLOTS
from pipeline.distributed.links import ReceiveLink, SendLink
from pipeline.distributed.trips import Trip
from pipeline.errors import BridgeError
from pipeline.job import Call
from pipeline.work import Answer, Piece, Prefill

_TURNS = SLOTS + 1  # one more than slots, so that one is used again
_ROWS = 3


def probe_links(
    link_in: ReceiveLink | None,
    link_out: SendLink | None,
    rank: int,
    size: int,
    hidden_size: int,
    device: torch.device,
) -> None:
    """Send known rows to the next rank, and compare what comes from the one before.

    All ranks call this. Raises `BridgeError` that names the two ranks.
    """
    trips = [_trip(turn - _TURNS, size) for turn in range(_TURNS)]
    if link_in is not None:
        for trip in trips:
            link_in.expect(trip)
    if link_out is not None:
        for turn, trip in enumerate(trips):
            link_out.turn_to(trip)
            slot = link_out.acquire()
            link_out.fill(slot, _pattern(rank, turn, hidden_size).to(device))
            link_out.hand_over(slot, _ROWS)
    if link_in is not None:
        for turn, trip in enumerate(trips):
            link_in.turn_to(trip)
            with link_in.receive(link_in.wait()) as (hidden, _):
                got = checksum(hidden.cpu())
            sent = checksum(_pattern(rank - 1, turn, hidden_size))
            if sent != got:
                raise BridgeError(
                    f"bridge 'distributed' from rank {rank - 1} to rank {rank} delivered checksum "
                    f"{got:#x}, expected {sent:#x}"
                )


def _trip(number: int, size: int) -> Trip:
    work = Prefill([Piece("probe", [0] * _ROWS, 0)], Answer.GREEDY)
    return Trip(Call(size).job(number, work), number, size)


def _pattern(rank: int, turn: int, hidden_size: int) -> torch.Tensor:
    values = torch.arange(_ROWS * hidden_size, dtype=torch.float32).reshape(_ROWS, hidden_size)
    # What bfloat16 can hold, as that may be what crosses.
    return values.mul(0.37).add(_TURNS * rank + turn).sin().bfloat16().float()
