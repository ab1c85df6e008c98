"""What users see when something goes wrong: one line on standard error and an exit code.

Exit codes: 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from kernels.errors import InvalidInputError, LamellaError
from pipeline.cli.text import harmless

FAILED, USAGE, INTERRUPTED = 1, 2, 130

# The base of all errors about the command's arguments, whichever click typer is built on.
ClickError: type[Exception] = typer.BadParameter.__mro__[2]


def usage_error(option: str, value: object, allowed: str) -> typer.BadParameter:
    """An error about the value of an option; `allowed` says what it could have been."""
    return typer.BadParameter(f"{option} {value}: {allowed}")


@contextmanager
def blaming(option: str, value: object) -> Iterator[None]:
    """Turn what the library says about a wrong value into an error about `option`."""
    try:
        yield
    except InvalidInputError as error:
        raise usage_error(option, value, str(error)) from error


def print_error(message: str) -> None:
    """Write `error: message` as one line to standard error."""
    one_line = " ".join(message.split())
    print(f"error: {harmless(one_line)}", file=sys.stderr, flush=True)


def describe(error: BaseException) -> str:
    """The error in words; the type's name is part of it only where Lamella did not raise it."""
    if isinstance(error, LamellaError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def describe_usage(error: Exception) -> str:
    """The complaint about the arguments, in the style of ours."""
    if isinstance(error, typer.BadParameter):
        message = error.message
    else:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        message = message[:1].lower() + message[1:].rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message} (see {context.command_path} --help)" if context is not None else message


def report(error: BaseException, show_traceback: bool) -> int:
    """Tell the user about an error that ended a command; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        silence_stdout()
        return FAILED
    if show_traceback:
        traceback.print_exception(error)
    print_error(describe(error))
    return FAILED


def flush_stdout() -> int:
    """Write out what is still buffered; the exit code if that fails, else 0."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        silence_stdout()
        return report(error, show_traceback=False)
    return 0


def silence_stdout() -> None:
    """Send the rest of the output nowhere, because nobody takes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
