"""CUDA devices, Triton and the tools it compiles with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import torch

from pipeline.cli.health.finding import Finding
from pipeline.cli.health.packages import installed

SUBJECT = "GPU"
GIB = 1 << 30


def accelerator() -> Iterator[Finding]:
    """Devices, Triton, its interpreter switch, compilers."""
    has_cuda = torch.cuda.is_available()
    yield from cuda_devices(has_cuda)
    yield triton(has_cuda)
    yield interpreter()
    yield c_compiler(has_cuda)
    yield ptxas()


def cuda_devices(has_cuda: bool) -> Iterator[Finding]:
    """One finding per device with its memory, or one that says why there is none."""
    if not has_cuda:
        why = "no device visible" if torch.version.cuda else "this torch is built without CUDA"
        yield Finding(SUBJECT, "CUDA", "ok", f"none ({why}); everything runs on the CPU")
        return
    for ordinal in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(ordinal)
        free, total = torch.cuda.mem_get_info(ordinal)
        found = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, "
            f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        )
        if free < total / 10:
            fix = "another process holds its memory: choose another with --devices"
            yield Finding(SUBJECT, f"cuda:{ordinal}", "warn", found, fix)
        else:
            yield Finding(SUBJECT, f"cuda:{ordinal}", "ok", found)


def triton(has_cuda: bool) -> Finding:
    """Whether Triton is there, which CUDA devices need."""
    found = installed("triton")
    if found:
        return Finding(SUBJECT, "triton", "ok", found)
    if has_cuda:
        return Finding(SUBJECT, "triton", "fail", "missing", "pip install triton")
    return Finding(SUBJECT, "triton", "ok", "missing (CPUs do without)")


def interpreter() -> Finding:
    """Whether Triton kernels would be interpreted."""
    value = os.environ.get("TRITON_INTERPRET")
    if value == "1":
        fix = "good for debugging on a CPU, slow; unset TRITON_INTERPRET to compile kernels"
        return Finding(SUBJECT, "TRITON_INTERPRET", "warn", "1: kernels are interpreted", fix)
    return Finding(SUBJECT, "TRITON_INTERPRET", "ok", "not set" if value is None else value)


def c_compiler(has_cuda: bool) -> Finding:
    """A C compiler, with which Triton builds its launchers."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    path = next((path for path in map(shutil.which, names) if path), None)
    if path:
        return Finding(SUBJECT, "C compiler", "ok", path)
    if not installed("triton"):
        return Finding(SUBJECT, "C compiler", "ok", "missing (only Triton needs one)")
    fix = f"install gcc or clang, or set CC: Triton builds launchers with it ({names[0]} not found)"
    return Finding(SUBJECT, "C compiler", "fail" if has_cuda else "warn", "missing", fix)


def ptxas() -> Finding:
    """The PTX assembler: a given one, one on the path, or the one in Triton's package."""
    given = os.environ.get("TRITON_PTXAS_PATH")
    if given and not os.access(given, os.X_OK):
        fix = "set TRITON_PTXAS_PATH to an executable ptxas, or unset it"
        return Finding(SUBJECT, "ptxas", "warn", f"{given} cannot be executed", fix)
    path = given or shutil.which("ptxas")
    return Finding(SUBJECT, "ptxas", "ok", path or "none on the path (Triton brings its own)")
