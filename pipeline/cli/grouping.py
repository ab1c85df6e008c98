"""Commands whose parameters are groups of options, and whose errors are one line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import typer

from pipeline.cli.errors import ClickError, report
from pipeline.cli.options import OutputOptions


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Prepare a function for typer.

    A parameter whose type is a dataclass of options becomes those options; the function gets the
    dataclass. Errors other than those about usage end as one line and an exit code.
    """
    hints = get_type_hints(function, include_extras=True)
    groups = {n: hint for n, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    plain: list[inspect.Parameter] = []
    grouped: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in groups:
            grouped.extend(_parameters(groups[name]))
        else:
            plain.append(parameter.replace(annotation=hints[name]))
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*plain, *grouped)]

    @functools.wraps(function)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        try:
            function(**values)
        except (typer.Exit, typer.Abort, ClickError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise typer.Exit(report(error, _wants_traceback(values))) from error

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


def _wants_traceback(values: dict[str, Any]) -> bool:
    return any(v.traceback for v in values.values() if isinstance(v, OutputOptions))
