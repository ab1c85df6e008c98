"""What a Triton kernel is launched on: decides defaults, grid sizes and what tuned values count."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

# Streaming multiprocessors of the SXM parts, for kernels compiled without a GPU.
_SMS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}
# Shared memory that one program can have, in KB; parts not named have the least.
_SHARED_KB = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "sm_103": 227, "gfx942": 64}


@dataclass(frozen=True)
class Target:
    """One kind of GPU. `arch` is "interpreter" for CPU tensors."""

    name: str  # as the driver gives it
    arch: str  # "sm_90", "gfx942", ...
    sms: int  # multiprocessors

    @property
    def warp_size(self) -> int:
        """Threads of a warp."""
        return 64 if self.arch.startswith("gfx") else 32

    @property
    def nvidia(self) -> bool:
        """Whether PTX runs on it."""
        return self.arch.startswith("sm_")

    @property
    def mma_sync(self) -> bool:
        """Whether matrix instructions take their operands from registers (before sm_90, and on
        consumer parts after it)."""
        return self.nvidia and self.shared_bytes < 200 * 1024

    @property
    def shared_bytes(self) -> int:
        """Shared memory that one program can have."""
        return 1024 * _SHARED_KB.get(self.arch, 64 if self.arch.startswith("gfx") else 99)


# Few programs: the interpreter runs them one after another.
INTERPRETER = Target("interpreter", "interpreter", 4)
_assumed: list[Target] = []


def target_of(device: torch.device) -> Target:
    """The target of tensors on `device`, or what `assume` says."""
    if _assumed:
        return _assumed[-1]
    return _of_gpu(device.index or 0) if device.type == "cuda" else INTERPRETER


def for_arch(arch: str) -> Target:
    """The target to assume when compiling for `arch` without a GPU."""
    return Target(arch, arch, _SMS.get(arch, 128))


@contextmanager
def assume(target: Target) -> Iterator[None]:
    """Take every device for `target`, in the whole process: for ahead-of-time compilation."""
    _assumed.append(target)
    try:
        yield
    finally:
        _assumed.pop()


@functools.cache
def _of_gpu(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    arch = f"sm_{properties.major}{properties.minor}"
    if torch.version.hip is not None:
        arch = properties.gcnArchName.split(":")[0]
    return Target(properties.name, arch, properties.multi_processor_count)
