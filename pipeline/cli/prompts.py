"""The prompts of `lamella generate`: arguments, a file, standard input, or the bundled ones."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import typer

from kernels.errors import InvalidInputError

STANDARD_INPUT = Path("-")


def collect_prompts(
    arguments: list[str],
    file: Path | None,
    fallback: Path | None,
    remark: Callable[[str], None],
) -> list[str]:
    """The prompts of a run, arguments first, then those of the file.

    Without either they come from standard input if something is piped in, else from `fallback`.
    As a pipe may stay silent for ever, `remark` tells that it is read.

    Raises:
        InvalidInputError: the file or standard input has no prompt, or is not text.
        OSError: the file cannot be read.
        typer.BadParameter: nothing was given, or an argument is empty.
    """
    for number, text in enumerate(arguments, 1):
        if not text:
            raise typer.BadParameter(f"prompt {number} is empty: give some text")
        if not is_text(text):
            raise typer.BadParameter(f"prompt {number} is not UTF-8 text: {text!r}")
    prompts = list(arguments)
    if file is not None:
        prompts += read_standard_input() if file == STANDARD_INPUT else read_file(file)
    elif not prompts and has_piped_input():
        remark("reading prompts from standard input")
        prompts = read_standard_input()
    elif not prompts and fallback is not None:
        prompts = read_file(fallback)
    if not prompts:
        raise typer.BadParameter("no prompt: give one as argument, --prompts-file, or a pipe")
    return prompts


def is_text(argument: str) -> bool:
    """Whether an argument is text; Python smuggles other bytes through as lone surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_piped_input() -> bool:
    """Whether standard input is a pipe or a file; terminals and /dev/null bring no prompts."""
    if sys.stdin is None or sys.stdin.closed:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # no descriptor behind it, as in a test or a notebook
        return not sys.stdin.isatty()
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def read_standard_input() -> list[str]:
    """Prompts from standard input, one per line."""
    if sys.stdin is None:
        raise InvalidInputError("standard input is closed")
    return lines_of(sys.stdin, "standard input")


def read_file(path: Path) -> list[str]:
    """Prompts from a file, one per line."""
    with path.open(encoding="utf-8-sig", newline=None) as file:
        return lines_of(file, str(path))


def read_text(path: Path) -> str:
    """All of a UTF-8 file, or of standard input if the path is "-".

    Raises `InvalidInputError` if it is not text, `OSError` if it cannot be read.
    """
    try:
        return sys.stdin.read() if path == STANDARD_INPUT else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 text: {error.reason}") from error


def lines_of(file: TextIO, name: str) -> list[str]:
    """The lines that are not blank, without their ends."""
    try:
        lines = [line.rstrip("\n") for line in file]
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{name} is not UTF-8 text: {error.reason}") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise InvalidInputError(f"{name} holds no prompt: expected one per line")
    return prompts
