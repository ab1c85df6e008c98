"""From a bridge's name and the stages' devices to links."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.errors import InvalidInputError
from pipeline.bridges.bridge import Bridge
from pipeline.bridges.host import HostCopier
from pipeline.bridges.link import Link
from pipeline.bridges.ring import RingLink
from pipeline.modes import StageBridge, resolve_bridge

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def open_bridge(
    name: str, hidden_size: int, devices: Sequence[torch.device], dtype: str = "fp32"
) -> Bridge:
    """The links between stages on `devices`; they are not probed yet.

    Args:
        name: auto, host, cuda_peer or cuda_device_staged.
        hidden_size: width of a row.
        devices: where each stage computes.
        dtype: of the rows that cross: fp32, which loses nothing, or bf16, which halves the bytes.

    Raises `InvalidInputError` for an unknown name or dtype.
    """
    if dtype not in _DTYPES:
        raise InvalidInputError(f"bridge dtype is {dtype!r}; expected one of {list(_DTYPES)}")
    resolve_bridge(name)
    links = [_host_link(hidden_size, _DTYPES[dtype]) for _ in devices[1:]]
    return Bridge(links, hidden_size, devices)


def _host_link(hidden_size: int, dtype: torch.dtype) -> Link:
    return RingLink(StageBridge.HOST, HostCopier(hidden_size, dtype), hidden_size, dtype)
