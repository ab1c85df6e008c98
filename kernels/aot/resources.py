"""What a compiled kernel takes, read from its binary, and its code as text."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

from kernels.errors import UnsupportedError

CODE_KINDS = ("ttgir", "ptx", "sass")


@dataclass(frozen=True)
class Resources:
    """Registers a thread, bytes of them that a thread spills, bytes of shared memory a program."""

    registers: int
    spills: int
    shared_bytes: int


def resources_of(compiled: Any) -> Resources:
    """Read them from a kernel that Triton compiled."""
    shared = int(compiled.metadata.shared)
    if "cubin" in compiled.asm:
        text = _cuobjdump(compiled.asm["cubin"], "--dump-resource-usage")
        registers, stack, local = (_number(rf"\b{name}:(\d+)", text) for name in _USAGE)
        return Resources(registers, stack + local, shared)
    text = compiled.asm["amdgcn"]
    spilled = _number(r"\.vgpr_spill_count:\s*(\d+)", text)
    return Resources(_number(r"\.vgpr_count:\s*(\d+)", text), 4 * spilled, shared)


_USAGE = ("REG", "STACK", "LOCAL")


def code_of(compiled: Any, kind: str) -> str:
    """The kernel as `kind`: "ttgir", "ptx" or "sass" (of AMD: its assembly for the latter two)."""
    if kind in compiled.asm:
        return str(compiled.asm[kind])
    if "amdgcn" in compiled.asm:
        return str(compiled.asm["amdgcn"])
    return _cuobjdump(compiled.asm["cubin"], "-sass")


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise UnsupportedError(f"no {pattern!r} in what the compiler's tools say: {text[:200]!r}")
    return int(found[1])


def _cuobjdump(cubin: bytes, option: str) -> str:
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run(
            [folder / "cuobjdump", option, path], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise UnsupportedError(f"cuobjdump {option} failed: {done.stderr.strip()}")
    return done.stdout
