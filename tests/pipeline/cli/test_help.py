"""`--help`: readable at 80 columns, every option explained, and examples that are good usage."""

from __future__ import annotations

import shlex

import pytest
import typer

from kernels import __version__
from pipeline.cli.app import app
from pipeline.cli.examples import EXAMPLES
from tests.pipeline.cli.running import invoke

COMMANDS = tuple(EXAMPLES)


def test_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"lamella {__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_overview(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for name in COMMANDS:
        assert name in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name
            assert parameter.opts[0] in result.stdout
    for line in EXAMPLES[name]:
        assert line in result.stdout


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_are_good_usage(line: str) -> None:
    program, name, *arguments = shlex.split(line[line.index("lamella") :])  # after torchrun
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert program == "lamella"
    command.make_context(name, arguments)
