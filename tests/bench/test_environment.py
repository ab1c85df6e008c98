"""The commit that figures stand beside is the one that they were measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.benchmarking.compare import work_tree
from kernels.benchmarking.environment import commit
from tests.bench.test_compare import git


def test_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    assert commit(folder) is None
    git(folder, "init", "-q")
    assert commit(folder) is None
    git(folder, "commit", "-q", "--allow-empty", "-m", "nothing")
    name = git(folder, "rev-parse", "--short=10", "HEAD").strip()
    assert commit(folder) == name
    within = folder / "site-packages"
    within.mkdir()
    (within / "kernel.py").write_text("")
    assert commit(folder) == f"{name}+"  # a kernel that is in no commit
    assert commit(within) is None
    (within / "kernel.py").unlink()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert commit(folder) == name
    with work_tree(folder, "HEAD") as (root, found):  # nor is another repository compared with
        assert root.is_dir()
        assert found == name
