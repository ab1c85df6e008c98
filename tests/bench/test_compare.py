"""Comparing with a commit: a slower base is found, its work tree goes away, errors name the ref."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import kernels
from kernels.benchmarking import compare as module
from kernels.benchmarking.compare import Compared, compare, work_tree
from kernels.benchmarking.run import BenchRequest
from kernels.errors import InvalidInputError, LamellaError
from tests.pipeline.cli.running import document, invoke

REQUEST = BenchRequest(("rms_norm",), "cpu", ("cpu",), only="T1-", seconds=0.02)


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three commits: nothing, these kernels with a slow rms_norm, these kernels."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "nothing")
    git(folder, "tag", "empty")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(kernels.__file__).parent, folder / "kernels", ignore=ignore)
    path = folder / "kernels" / "rms_norm" / "cpu.py"
    fast = path.read_text()
    slow = fast.replace("    compute = ", "    __import__('time').sleep(0.005)\n    compute = ", 1)
    assert slow != fast
    for tag, text in (("slow", slow), ("fast", fast)):
        path.write_text(text)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", tag)
        git(folder, "tag", tag)
    return folder


def test_a_slower_base_is_found_and_nothing_is_left(repository: Path) -> None:
    report = compare(REQUEST, "slow", rounds=2, folder=repository)
    (row,) = report["results"]
    assert (row.verdict, row.impl) == ("faster", "cpu")
    assert row.speedup > 5
    assert report["base"]["ref"] == "slow"
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_red_kernel_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = repository / "own.py"
    own.write_text("def broken(*args, **options): raise ValueError('out of luck')\n")
    request = BenchRequest(("rms_norm",), "cpu", (f"{own}:broken",), only="T1-", seconds=0.02)
    (row,) = compare(request, "fast", rounds=2, folder=repository)["results"]
    assert (row.verdict, row.speedup) == ("refused", None)
    assert "ValueError: out of luck" in row.refused


def test_a_red_base_and_one_that_dies_are_said_to_be(repository: Path) -> None:
    path = repository / "kernels" / "rms_norm" / "cpu.py"
    good = path.read_text()
    for tag, line in (("red", "return x * 0"), ("dying", "__import__('os')._exit(7)")):
        path.write_text(good.replace("    compute = ", f"    {line}\n    compute = ", 1))
        git(repository, "commit", "-qam", tag)
        git(repository, "tag", tag)
    for tag, why in (("red", "at the base: "), ("dying", "at the base: the process ended with")):
        (row,) = compare(REQUEST, tag, rounds=2, folder=repository)["results"]
        assert row.verdict == "refused"
        assert row.refused.startswith(why)


def test_what_the_base_lacks_is_new(repository: Path) -> None:
    path = repository / "kernels" / "rms_norm" / "cases.py"
    path.write_text(path.read_text().replace('f"T{', 'f"U{'))
    git(repository, "commit", "-qam", "other names")
    (row,) = compare(REQUEST, "HEAD", rounds=2, folder=repository)["results"]
    assert (row.verdict, row.refused, row.speedup) == ("new", None, None)
    (repository / "kernels" / "rms_norm" / "cpu.py").write_text("1 / 0\n")
    (repository / "kernels" / "registry.py").write_text("1 / 0\n")
    git(repository, "commit", "-qam", "broken")
    with pytest.raises(LamellaError, match=r"HEAD \(\w+\) cannot be imported: ZeroDivisionError"):
        compare(REQUEST, "HEAD", folder=repository)


def test_what_cannot_be_compared_with(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(LamellaError, match=r"empty .* has no benchmarks yet"):
        compare(REQUEST, "empty", folder=repository)
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    with pytest.raises(InvalidInputError, match="'none' is no commit, branch or tag"):
        compare(REQUEST, "none", folder=repository)
    with pytest.raises(InvalidInputError, match="is not a git repository"):
        compare(REQUEST, "HEAD", folder=tmp_path)


def test_the_work_tree_goes_whatever_happens(repository: Path) -> None:
    roots: list[Path] = []

    def interrupted() -> None:
        with work_tree(repository, "slow") as (root, _):
            assert (root / "kernels").is_dir()
            roots.append(root)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not roots[0].exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_process_told_to_end_leaves_no_work_tree(name: str, repository: Path) -> None:
    code = f"""
        import time
        from pathlib import Path
        from kernels.benchmarking.compare import work_tree
        from pipeline.cli.interrupts import raising_terminations
        with raising_terminations(), work_tree(Path({str(repository)!r}), "slow") as (root, _):
            print(root, flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(kernels.__file__).parents[1])},
    )
    assert process.stdout is not None
    root = Path(process.stdout.readline().strip())
    assert (root / "kernels").is_dir()
    number = getattr(signal, name)
    process.send_signal(number)
    assert process.wait(20) == (-number if name == "SIGKILL" else 128 + number)
    if name == "SIGKILL":  # the next to come clears it away
        with work_tree(repository, "fast"):
            assert len(git(repository, "worktree", "list").splitlines()) == 2
    assert not root.parent.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize(
    ("base", "here", "spread", "verdict"),
    [
        (100.0, 99.0, 0.0, "same"),
        (100.0, 90.0, 0.05, "faster"),
        (90.0, 100.0, 0.05, "slower"),
        (100.0, 90.0, 0.2, "same"),
    ],
)
def test_verdict(base: float, here: float, spread: float, verdict: str) -> None:
    assert Compared("op", "case", "cpu", base, here, spread).verdict == verdict


def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Compared("rms_norm", "T1", "cpu", 100.0, 50.0, 0.1),
        Compared("rms_norm", "T2", "cpu", refused="here: its check is red"),
    ]
    report = {"base": {"ref": "HEAD", "commit": "abc"}, "environment": {}, "results": rows}
    monkeypatch.setattr(module, "compare", lambda *arguments: report)
    result = invoke("compare", "rms_norm", "--device", "cpu")
    assert result.exit_code == 1
    assert "2 figures against abc: 1 faster, 1 refused" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    rows[1] = Compared("rms_norm", "T3", "cpu", new=True)
    result = invoke("compare", "rms_norm", "--device", "cpu")
    assert result.exit_code == 0
    assert "2 figures against abc: 1 faster, 1 new" in result.stdout
    found = document(invoke("compare", "rms_norm", "--device", "cpu", "--json"))
    assert found["results"][0]["verdict"] == "faster"
    assert found["results"][0]["speedup"] == 2
