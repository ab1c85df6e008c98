"""Compile a recorded launch for an architecture that need not be here."""

from __future__ import annotations

from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from kernels.aot.limits import ARCHS
from kernels.aot.variants import Variant


class _AbsentGPU:
    """Stands in for Triton's driver: says what to compile for, and can do nothing else."""

    def __init__(self, arch: str) -> None:
        self._arch = arch

    def get_current_target(self) -> GPUTarget:
        if self._arch.startswith("sm_"):
            return GPUTarget("cuda", int(self._arch.removeprefix("sm_")), 32)
        return GPUTarget("hip", self._arch, 64)

    def get_current_device(self) -> int:
        # Triton keeps compiled kernels per device: one for each architecture.
        return list(ARCHS).index(self._arch)

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_variant(variant: Variant) -> Any:
    """Triton's compiled kernel, with `.asm` and `.metadata`; raises what the compiler raises.

    From then on this process has no GPU for Triton, even where there is one.
    """
    launch = variant.launch
    driver.set_active(_AbsentGPU(variant.arch))
    return launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.meta)
