"""Where prompts come from, and what is wrong with those that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from kernels.errors import InvalidInputError
from pipeline.cli import prompts
from pipeline.cli.folders import DEMO_PROMPTS
from pipeline.cli.prompts import collect_prompts, read_file, read_text
from tests.pipeline.cli.running import invoke, only_line


def write(folder: Path, content: bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(content)
    return path


def test_one_prompt_per_line(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff  indented\r\n\n \t \nÄ \u2028 line\nlast".encode())
    assert read_file(path) == ["  indented", "Ä \u2028 line", "last"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \r\n\t\n"])
def test_file_without_prompts(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InvalidInputError, match="holds no prompt: expected one per line"):
        read_file(path)


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="is not UTF-8 text"):
        read_file(path)
    with pytest.raises(InvalidInputError, match="is not UTF-8 text"):
        read_text(path)


def test_arguments_come_before_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, b"c\nd\n")
    assert collect_prompts(["a", "b"], path, None, print) == ["a", "b", "c", "d"]


def test_arguments_leave_standard_input_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "read_standard_input", lambda: pytest.fail("was read"))
    assert collect_prompts(["a"], None, DEMO_PROMPTS, print) == ["a"]


def test_demonstration_where_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "has_piped_input", lambda: False)
    assert collect_prompts([], None, DEMO_PROMPTS, print) == read_file(DEMO_PROMPTS)
    with pytest.raises(typer.BadParameter, match="no prompt: give one"):
        collect_prompts([], None, None, print)


def test_empty_standard_input_is_an_error() -> None:
    for arguments in ([], ["--prompts-file", "-"]):
        result = invoke("generate", "--quiet", *arguments, given="\n")
        assert result.exit_code == 1
        message = "error: standard input holds no prompt: expected one per line"
        assert only_line(result.stderr) == message
