"""A function of one's own, by name: found in modules and files, or an error that says why not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kernels.errors import InvalidInputError
from kernels.own import is_own, load_own


def test_modules_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_kernels.py").write_text("def attention(): return __name__\n")
    monkeypatch.chdir(tmp_path)
    assert load_own("my_kernels:attention")() == "my_kernels"
    from_file = load_own("my_kernels.py:attention")
    assert from_file() != "my_kernels"
    assert load_own(f"{tmp_path}/my_kernels.py:attention") is from_file
    assert is_own("my_kernels:attention")
    assert not is_own("triton")


def test_a_file_imports_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "beside_own.py").write_text("def f(): return 'beside'\n")
    (folder / "main.py").write_text("from beside_own import f\n")
    assert load_own(f"{folder}/main.py:f")() == "beside"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("my.py:f", "no such file"),
        (":f", "expected module:function"),
        ("os:", "expected module:function"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("os:no_such_function", "os has no 'no_such_function'"),
        ("os:sep", "expected a function"),
        ("broken.py:f", "ZeroDivisionError"),
        ("leaving.py:f", "SystemExit: 0"),
    ],
)
def test_what_cannot_be_loaded(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=why):
        load_own(name)
