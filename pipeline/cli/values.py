"""Kinds of option: each takes its values apart and says, for a wrong one, what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import typer

from pipeline.cli.errors import usage_error


def count(*names: str, least: int = 1, most: int | None = None, **extra: Any) -> Any:
    """An option that takes a whole number of at least `least`."""
    allowed = f"{least} or more" if most is None else f"{least} to {most}"

    def parse(value: object) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            raise usage_error(names[0], value, f"expected a whole number, {allowed}")
        return number

    return typer.Option(*names, parser=parse, **{"metavar": "N", **extra})


def number(*names: str, allowed: str, test: Callable[[float], bool], **extra: Any) -> Any:
    """An option that takes a finite number that passes `test`, described by `allowed`."""

    def parse(value: object) -> float:
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or not test(number):
            raise usage_error(names[0], value, f"expected a number {allowed}")
        return number

    return typer.Option(*names, parser=parse, **{"metavar": "X", **extra})


def choice(
    *names: str,
    among: tuple[str, ...],
    others: Callable[[str], bool] = lambda value: False,
    **extra: Any,
) -> Any:
    """An option that takes one of some words, in upper or lower case, or what `others` accepts."""

    def parse(value: object) -> str:
        if others(str(value)):
            return str(value)
        word = str(value).strip().lower()
        if word not in among:
            raise usage_error(names[0], value, f"expected one of {', '.join(among)}")
        return word

    return typer.Option(*names, parser=parse, **{"metavar": "NAME", **extra})


def text(*names: str, **extra: Any) -> Any:
    """An option that takes some text, and not none."""

    def parse(value: object) -> str:
        if not value:
            raise usage_error(names[0], repr(value), "expected some text")
        return str(value)

    return typer.Option(*names, parser=parse, **{"metavar": "TEXT", **extra})


def flag(*names: str, **extra: Any) -> Any:
    """An option without a value."""
    return typer.Option(*names, **{"metavar": "", **extra})
