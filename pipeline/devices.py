"""Which device a stage runs on: CUDA ordinals, or the machine's default for an implementation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.dispatch import implementations
from kernels.errors import InvalidInputError, UnsupportedError


def default_device(impl: str) -> torch.device:
    """Where a stage without an ordinal runs.

    "triton" means the first CUDA device, "cpu" and "reference" the CPU, and "auto" CUDA where
    there is a device and attention has a Triton kernel, else the CPU.
    """
    if impl == "auto":
        has_kernels = "triton" in implementations("attention")
        return torch.device("cuda" if has_kernels and torch.cuda.is_available() else "cpu")
    return torch.device("cuda" if impl == "triton" and torch.cuda.is_available() else "cpu")


def check_ordinals(ordinals: Sequence[int | None], impl: str = "auto") -> None:
    """Check that every explicit ordinal names a CUDA device of this machine.

    Raises `UnsupportedError` where device-scoped execution is not to be had (no CUDA, or the
    "cpu" implementation), `InvalidInputError` for an ordinal that is not there.
    """
    explicit = [(stage, o) for stage, o in enumerate(ordinals) if o is not None]
    if not explicit:
        return
    if impl == "cpu" or not torch.cuda.is_available():
        why = "it is the cpu implementation" if impl == "cpu" else "PyTorch sees no CUDA device"
        raise UnsupportedError(
            "Llama layer-split pipeline requested explicit backend device ordinals "
            f"{list(ordinals)}, but the selected backend does not support device-scoped "
            f"execution: {why}"
        )
    have = list(range(torch.cuda.device_count()))
    for stage, ordinal in explicit:
        if ordinal not in have:
            raise InvalidInputError(
                f"stage {stage} asks for device ordinal {ordinal}, which is not there; "
                f"this machine has {have}"
            )


def resolve_devices(ordinals: Sequence[int | None], impl: str = "auto") -> list[torch.device]:
    """The device of each stage; None means the default device of `impl`.

    Raises what `check_ordinals` raises.
    """
    check_ordinals(ordinals, impl)
    default = default_device(impl)
    return [default if o is None else torch.device("cuda", o) for o in ordinals]


def parse_ordinals(text: str) -> list[int | None]:
    """Read "0,1", "cuda:0,cuda:1" or "cpu,cpu"; "cpu" means no ordinal.

    Raises `InvalidInputError` that names the part that is none of these.
    """
    ordinals: list[int | None] = []
    for part in text.split(","):
        word = part.strip().lower()
        number = word.removeprefix("cuda:")
        if word == "cpu":
            ordinals.append(None)
        elif number.isdecimal():
            ordinals.append(int(number))
        else:
            raise InvalidInputError(
                f"device {part.strip()!r} in {text!r} is not an ordinal; "
                "expected a number, cuda:<number> or cpu"
            )
    return ordinals
