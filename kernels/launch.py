"""The one place where Triton kernels are launched, so that launches can also be recorded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import interpreter, workspace
from kernels.errors import InvalidInputError, UnsupportedError
from kernels.primitives import INTERPRETED


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments, constants and options (num_warps, num_stages, ...) by name."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    meta: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__).lstrip("_")


class _Recorders(threading.local):
    def __init__(self) -> None:
        self.active: list[list[Launch]] = []


_recorders = _Recorders()
# Triton's interpreter patches its language and keeps the running program's index for the whole
# process: one kernel at a time.
_interpreter = threading.Lock()
if INTERPRETED.value:
    interpreter.mend()


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect this thread's launches instead of running them; outputs stay uninitialised."""
    launches: list[Launch] = []
    _recorders.active.append(launches)
    try:
        yield launches
    finally:
        _recorders.active.remove(launches)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Run `kernel` on `grid` programs, on the device of its first tensor.

    Raises `InvalidInputError` for tensors of several devices, `UnsupportedError` for CPU tensors
    outside Triton's interpreter.
    """
    device = _device_of(kernel, args)
    meta.setdefault("enable_fp_fusion", True)  # Triton's own default is about to change
    if _recorders.active:
        _recorders.active[-1].append(Launch(kernel, grid, args, meta))
        return
    if device.type != "cuda" and not INTERPRETED.value:
        raise UnsupportedError(
            f"Triton kernels take {device.type} tensors only in Triton's interpreter; "
            "set TRITON_INTERPRET=1 before Python starts"
        )
    if 0 in grid:
        return
    try:
        with _interpreter if INTERPRETED.value else _on(device):
            kernel[grid](*args, **meta)
    except BaseException:
        workspace.clear()  # counters may be left above zero
        raise


def _device_of(kernel: Any, args: tuple[Any, ...]) -> torch.device:
    devices = [arg.device for arg in args if isinstance(arg, Tensor)]
    for device in devices:
        if device != devices[0]:
            name = Launch(kernel, (), (), {}).name
            raise InvalidInputError(
                f"kernel {name}: tensors are on {devices[0]} and {device}; expected one device"
            )
    return devices[0]


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
