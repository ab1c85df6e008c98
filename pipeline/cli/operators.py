"""What the commands about operators share: which operators, which implementations, which device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from pipeline.cli.errors import blaming, usage_error
from pipeline.cli.values import choice, number, text

WHAT, HOW = "What to run", "How to run it"
IMPLS = ("triton", "cpu", "reference")

OperatorArguments = Annotated[list[str] | None, typer.Argument(metavar="OPERATOR", hidden=True)]
CaseOption = Annotated[
    str | None,
    text("--case", help="Only cases with this in their name.", rich_help_panel=WHAT),
]


@dataclass(frozen=True)
class ImplOptions:
    """Whose code."""

    impl: Annotated[
        list[str] | None,
        text(
            "--impl",
            metavar="IMPL",
            help="triton, cpu, reference, or your own function: module:function or "
            "file.py:function, with the operator's arguments except impl. Several times for "
            "several. [dim]Default: all there are.[/]",
            rich_help_panel=WHAT,
        ),
    ] = None
    like: Annotated[
        str,
        choice(
            "--like",
            among=IMPLS,
            help="Whose packed weights your own function gets. [dim]Default: reference.[/]",
            show_default=False,
            rich_help_panel=WHAT,
        ),
    ] = "reference"


@dataclass(frozen=True)
class DeviceOptions:
    """Where operators run."""

    device: Annotated[
        str,
        choice(
            "--device",
            among=("auto", "cpu", "cuda"),
            help="cpu (Triton kernels in its interpreter), cuda, or auto for cuda where there is "
            "a GPU. [dim]Default: auto.[/]",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = "auto"


@dataclass(frozen=True)
class TimeoutOptions:
    """How long one process may be about one thing."""

    timeout: Annotated[
        float,
        number(
            "--timeout",
            allowed="above 0",
            test=lambda x: x > 0,
            metavar="SECONDS",
            help="For each case or kernel; what takes longer is red. [dim]Default: 600.[/]",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = 600.0


def chosen_operators(names: Sequence[str] | None) -> list[str]:
    """The operators named, or all; an unknown one is wrong usage."""
    from kernels.override import OPERATORS

    for name in names or ():
        if name not in OPERATORS:
            raise usage_error("OPERATOR", name, f"expected some of {', '.join(OPERATORS)}")
    return list(dict.fromkeys(names or OPERATORS))


def chosen_impls(
    options: ImplOptions, operators: Sequence[str], named: bool, device: str
) -> list[str]:
    """The implementations asked for, none if all; `named`: whether the user named `operators`.

    Wrong usage: an unknown one, one that a named operator lacks or `device` does not take, and a
    function of one's own without a single operator that it stands for.
    """
    from kernels.dispatch import implementations
    from kernels.own import is_own, load_own

    impls = list(dict.fromkeys(options.impl or ()))
    for impl in impls:
        if is_own(impl):
            if len(operators) != 1:
                raise usage_error("--impl", impl, "name the one operator that it stands for")
            with blaming("--impl", impl):
                load_own(impl)
            continue
        if impl not in IMPLS:
            allowed = f"expected one of {', '.join(IMPLS)}, module:function, file.py:function"
            raise usage_error("--impl", impl, allowed)
        if impl == "cpu" and device != "cpu":
            raise usage_error("--impl", impl, f"takes CPU tensors; the device is {device}")
        lacking = [op for op in operators if impl not in implementations(op)]
        if lacking and (named or len(lacking) == len(operators)):
            raise usage_error("--impl", impl, f"{lacking[0]} has no such implementation")
    return impls


def chosen_device(device: str) -> str:
    """What "auto" means here; "cuda" where there is none is wrong usage."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise usage_error("--device", device, "there is no CUDA device here")
    return device
