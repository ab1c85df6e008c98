"""What one program may take of an architecture's multiprocessor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Registers a thread, and bytes of shared memory a program."""

    registers: int
    shared_bytes: int


# NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability";
# AMD: CDNA 3 ISA guide (vector and accumulation registers together).
ARCHS = {
    "sm_80": Limits(255, 163 * 1024),
    "sm_90": Limits(255, 227 * 1024),
    "sm_100": Limits(255, 227 * 1024),
    "gfx942": Limits(512, 64 * 1024),
}


def has_backend(arch: str) -> bool:
    """Whether Triton can compile for `arch` here."""
    from triton.backends import backends

    return ("amd" if arch.startswith("gfx") else "nvidia") in backends


def default_archs() -> tuple[str, ...]:
    """All of `ARCHS` that Triton can compile for here."""
    return tuple(arch for arch in ARCHS if has_backend(arch))
