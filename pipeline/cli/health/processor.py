"""The CPU: cores this process may use, threads, and the instructions that make bf16 fast."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from kernels.linear import onednn
from pipeline.cli.health.finding import Finding
from pipeline.cli.sizes import plural
from pipeline.threads import usable_cores

SUBJECT = "CPU"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
FEATURES = ("avx2", "avx512", "avx512_bf16", "vnni", "amx_tile", "amx_fp16")
BF16_FEATURES = frozenset({"avx512_bf16", "amx_tile"})


def processor() -> Iterator[Finding]:
    """Model, cores and threads, instructions, packed linears."""
    cores = usable_cores()
    yield Finding(SUBJECT, "processor", "ok", f"{processor_name()}, {plural(cores, 'usable core')}")
    yield threads(cores)
    yield instructions()
    yield packed_linears()


def processor_name() -> str:
    """The name the system gives its processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def threads(cores: int) -> Finding:
    """Threads of torch against cores, with the variables that set them."""
    count = torch.get_num_threads()
    set_variables = [
        f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ
    ]
    found = ", ".join([f"torch uses {count}", *set_variables])
    if count > cores:
        fix = f"set OMP_NUM_THREADS to at most {cores}: more threads than cores wait for each other"
        return Finding(SUBJECT, "threads", "warn", found, fix)
    return Finding(SUBJECT, "threads", "ok", found)


def instructions() -> Finding:
    """Instruction sets that torch can use; bf16 products without them are emulated."""
    present = [name for name in FEATURES if _supports(name)]
    found = f"{torch.backends.cpu.get_cpu_capability()}, with {' '.join(present) or 'none of note'}"
    if BF16_FEATURES.isdisjoint(present):
        fix = "bf16 products are emulated here; compare with --dtype fp32"
        return Finding(SUBJECT, "instructions", "warn", found, fix)
    return Finding(SUBJECT, "instructions", "ok", found)


def _supports(feature: str) -> bool:
    # These tests are private to torch, and differ from version to version and on other machines.
    test = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return bool(test is not None and test())


def packed_linears() -> Finding:
    """Whether oneDNN packs weights once, which the `cpu` implementation is fast by."""
    names = {"fp32": torch.float32, "bf16": torch.bfloat16}
    packed = [name for name, dtype in names.items() if onednn.available(dtype)]
    found = f"oneDNN for {' and '.join(packed)}" if packed else "none"
    if len(packed) == len(names):
        return Finding(SUBJECT, "packed linears", "ok", found)
    fix = "install a build of torch with oneDNN: without it the cpu implementation is slower"
    return Finding(SUBJECT, "packed linears", "warn", found, fix)
