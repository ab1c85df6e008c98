"""The distinct kernels that operators launch: recorded on tensors without memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.case_inputs import Case
from kernels.launch import Launch, recording
from kernels.op import Op
from kernels.override import override
from kernels.processes import in_words
from kernels.target import assume, for_arch

# One more whenever what is read from a compiled kernel changes: what was kept is not read then.
_EXTRACTION = 1


@dataclass(frozen=True)
class Variant:
    """A launch to compile for `arch`; `case` is the first that makes it, `key` tells it from all
    others, of other kernels, sources and Triton versions too."""

    op: str
    case: str
    arch: str
    key: str
    launch: Launch


@dataclass(frozen=True)
class Failure:
    """A call that raised before it launched anything, or an `own` that never launches."""

    op: str
    case: str
    arch: str
    error: str


def record(
    op: Op, archs: Iterable[str], own: Callable[..., Any] | None = None, like: str = "triton"
) -> Iterator[Variant | Failure]:
    """What `op`, or `own` in its place with weights packed for `like`, launches in its `aot` cases.

    A variant comes once, however many cases make it. An `own` that launches nothing in any of them
    is a failure: nothing of it would be compiled.
    """
    for arch in archs:
        seen: set[str] = set()
        silent = own is not None
        for case in op.aot:
            try:
                with assume(for_arch(arch)), torch.inference_mode(), recording() as launches:
                    _call(op, case, own, like)
            except (Exception, SystemExit) as error:  # whatever a launcher under work may raise
                silent = False
                yield Failure(op.name, case.name, arch, in_words(error))
                continue
            silent = silent and not launches
            for launch in launches:
                key = key_of(launch, arch)
                if key not in seen:
                    seen.add(key)
                    yield Variant(op.name, case.name, arch, key, launch)
        if silent:
            why = "launched nothing through kernels.launch"
            yield Failure(op.name, "every case", arch, why)


def _call(op: Op, case: Case, own: Callable[..., Any] | None, like: str) -> None:
    call = op.bind(op.make_inputs(case, "meta", 0), like)
    with override(op.name, own) if own is not None else nullcontext():
        call()


def key_of(launch: Launch, arch: str) -> str:
    """Hash of all that decides the compiled code: source with what it calls, types and properties
    of the arguments, constants, options, architecture and Triton version; and how it is read."""
    kernel = launch.kernel
    names = [parameter.name for parameter in kernel.params]
    given = dict(zip(names, launch.args, strict=False)) | launch.meta
    parts = [str(_EXTRACTION), triton.__version__, arch, kernel.cache_key]
    for parameter in kernel.params:
        value = given.pop(parameter.name, None)
        plain = parameter.is_constexpr or parameter.do_not_specialize
        parts.append(f"{parameter.name}={_kind(value, parameter.is_constexpr, not plain)}")
    parts += [f"{name}={value!r}" for name, value in sorted(given.items())]  # options
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _kind(value: Any, constant: bool, specialise: bool) -> str:
    """What Triton sees of an argument. Storage is taken to be aligned, as torch's is."""
    if constant:
        return repr(value)
    if isinstance(value, Tensor):
        aligned = value.storage_offset() * value.element_size() % 16 == 0
        return f"*{value.dtype}{':16' if aligned and specialise else ''}"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        width = "i32" if -(2**31) <= value < 2**31 else "i64"
        if not specialise:
            return width
        return "1" if value == 1 else f"{width}{':16' if value % 16 == 0 else ''}"
    return type(value).__name__
