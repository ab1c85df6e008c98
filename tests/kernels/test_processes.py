"""Jobs in processes of their own: every job is answered, whatever becomes of its process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kernels.processes import Crew

WORKER = """
import os
from kernels.processes import serve

def handle(job):
    print("to standard error")
    if job["do"] == "raise":
        raise ValueError("bad\\njob")
    if job["do"] == "die":
        os._exit(3)
    return {"pid": os.getpid(), "mark": os.environ.get("MARK")}

serve(handle)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "helper_process.py").write_text(WORKER)
    return tmp_path


def test_errors_and_deaths_are_answers(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    jobs = [{"do": what} for what in ("work", "raise", "die", "work")]
    with Crew("helper_process", 1, {"MARK": "set"}, root) as crew:
        answers = [answer for _, answer in crew.run(jobs)]
        assert [answer for _, answer in crew.run([])] == []
    assert answers[0]["mark"] == "set"
    assert answers[1] == {"error": "ValueError: bad job"}
    assert answers[2] == {"error": "the process ended with exit code 3"}
    assert answers[3]["pid"] != answers[0]["pid"]
    assert capfd.readouterr().out == ""


def test_several_processes_share_the_jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("MARK", "inherited")
    with Crew("helper_process", 2, {"MARK": None}, root) as crew:
        done = list(crew.run([{"do": "work", "n": n} for n in range(20)]))
    assert sorted(job["n"] for job, _ in done) == list(range(20))
    assert {answer["mark"] for _, answer in done} == {None}


def test_none_is_left_when_the_parent_goes(root: Path) -> None:
    code = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        os.environ["PYTHONPATH"] = sys.path[0]
        from pathlib import Path
        from kernels.processes import Crew
        crew = Crew("helper_process", 1, root=Path({str(root)!r}))
        print(next(crew.run([{{"do": "work"}}]))[1]["pid"], flush=True)
        os._exit(0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )  # returns when the grandchild, which holds the same standard error, has ended too
    assert int(done.stdout) > 0
