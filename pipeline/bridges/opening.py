"""From a bridge's name and the stages' devices to links."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from kernels.errors import InvalidInputError, UnsupportedError
from pipeline.bridges.bridge import Bridge, probe_link
from pipeline.bridges.cuda import CudaStreams
from pipeline.bridges.host import HostCopier
from pipeline.bridges.link import Link
from pipeline.bridges.ring import Copier, RingLink
from pipeline.bridges.streams import StreamCopier
from pipeline.errors import BridgeError
from pipeline.modes import StageBridge, parse_bridge, parse_local_bridge

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_COPIES = {
    StageBridge.CUDA_PEER: "copies between CUDA devices",
    StageBridge.CUDA_DEVICE_STAGED: "stages copies between CUDA devices",
}


def open_bridge(
    name: str,
    hidden_size: int,
    devices: Sequence[torch.device],
    dtype: str = "fp32",
    *,
    cuda: CudaStreams | None = None,
) -> Bridge:
    """Links between stages; call the bridge's `probe` before they are used.

    * "host": a ring in host memory, page-locked where one side is CUDA. A CUDA sender copies into
      it, and a CUDA receiver out of it, each when its turn comes.
    * "cuda_device_staged": for CUDA devices that cannot write to each other's memory. The sender
      queues both copies, to page-locked host memory and from there into a ring on the receiving
      device, so that the rows are there when the receiver comes for them.
    * "cuda_peer": one copy into a ring on the receiving device, which may be the sender's own.
    * "auto": for each boundary the last of these that its devices can do and that passes its
      probe; a warning says which did not and why.

    Args:
        name: of the bridge.
        hidden_size: width of a row.
        devices: where each stage computes.
        dtype: of the rows that cross: fp32, which loses nothing, or bf16, which halves the bytes
            and pays where they have far to go; between CPUs it only costs time.

    Raises `InvalidInputError` for an unknown name or dtype, and `UnsupportedError` that names the
    stages whose devices cannot have the bridge asked for.
    """
    check_bridge(name, devices, dtype, cuda=cuda)
    asked = parse_bridge(name)
    ends = [_with_index(device) for device in devices]
    links = []
    for boundary in _boundaries(ends, hidden_size, _DTYPES[dtype], cuda or CudaStreams()):
        links.append(boundary.best() if asked is None else boundary.link(asked))
    return Bridge(links, hidden_size, ends)


def check_bridge(
    name: str,
    devices: Sequence[torch.device],
    dtype: str = "fp32",
    *,
    cuda: CudaStreams | None = None,
) -> None:
    """Raise what `open_bridge` would, without opening anything; a single stage is checked too."""
    if dtype not in _DTYPES:
        raise InvalidInputError(f"bridge dtype is {dtype!r}; expected one of {list(_DTYPES)}")
    asked = parse_local_bridge(name)
    if asked is None:
        return
    ends = [_with_index(device) for device in devices]
    if len(ends) == 1:
        ends *= 2  # as if it handed over to itself
    for boundary in _boundaries(ends, 0, torch.float32, cuda or CudaStreams()):
        boundary.check(asked)


def _boundaries(
    devices: Sequence[torch.device], hidden_size: int, dtype: torch.dtype, cuda: CudaStreams
) -> list[_Boundary]:
    return [
        _Boundary(stage, source, target, hidden_size, dtype, cuda)
        for stage, (source, target) in enumerate(pairwise(devices))
    ]


@dataclass(frozen=True)
class _Boundary:
    """Where stage `stage`, on `source`, hands over to the next one, on `target`."""

    stage: int
    source: torch.device
    target: torch.device
    hidden_size: int
    dtype: torch.dtype
    cuda: CudaStreams

    def best(self) -> Link:
        """The fastest link that can be had and passes its probe; else one over the host."""
        for kind in (StageBridge.CUDA_PEER, StageBridge.CUDA_DEVICE_STAGED):
            try:
                self.check(kind)
            except UnsupportedError:
                continue
            try:
                link = self.link(kind)
                probe_link(link, self.stage, self.hidden_size, self.source)
                return link
            except (BridgeError, RuntimeError) as error:  # torch's errors are RuntimeErrors
                warnings.warn(
                    f"bridge auto does not take {kind.value!r} from stage {self.stage} to stage "
                    f"{self.stage + 1}: {error}",
                    RuntimeWarning,
                    stacklevel=3,
                )
        return self.link(StageBridge.HOST)

    def check(self, kind: StageBridge) -> None:
        """Raise `UnsupportedError` that says why the devices cannot have a link of that kind."""
        if kind is StageBridge.HOST:
            return
        for stage, device in enumerate((self.source, self.target), self.stage):
            if device.type != "cuda":
                raise UnsupportedError(
                    f"bridge {kind.value!r} {_COPIES[kind]}, and stage {stage} is on {device}; "
                    "use 'host' or 'auto'"
                )
        if kind is StageBridge.CUDA_PEER and not self.cuda.are_peers(self.source, self.target):
            raise UnsupportedError(
                f"bridge 'cuda_peer' needs peer access, and {self.source} of stage {self.stage} "
                f"has none to {self.target} of stage {self.stage + 1}; use 'cuda_device_staged' "
                "or 'auto'"
            )

    def link(self, kind: StageBridge) -> Link:
        """A new link."""
        return RingLink(kind, self._copier(kind), self.hidden_size, self.dtype)

    def _copier(self, kind: StageBridge) -> Copier:
        if self.source.type == self.target.type == "cpu":
            return HostCopier(self.hidden_size, self.dtype)
        return StreamCopier(
            self.hidden_size,
            self.dtype,
            self.source,
            self.target,
            peer=kind is StageBridge.CUDA_PEER,
            ahead=kind is StageBridge.CUDA_DEVICE_STAGED,
            cuda=self.cuda,
        )


def _with_index(device: torch.device) -> torch.device:
    """The device that "cuda" without a number means."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
