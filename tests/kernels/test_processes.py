"""Jobs in processes of their own: every job is answered, whatever becomes of its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kernels.processes import Crew

WORKER = """
import ctypes, os, sys, time
from kernels.processes import serve

def handle(job):
    print("to standard error")
    if job["do"] == "read":
        return {"read": sys.stdin.read()}
    if job["do"] == "exit":
        sys.exit("enough")
    if job["do"] == "loop":
        open(job["started"], "w").close()
        while True:
            pass
    if job["do"] == "native loop":
        open(job["started"], "w").close()
        ctypes.PyDLL(None).sleep(1000)  # keeps the interpreter to itself
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


def test_a_job_that_takes_too_long_is_an_answer(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    jobs = [{"do": "loop", "started": str(tmp_path / "started")}, {"do": "work"}]
    with Crew("helper_process", 1, root=root, job_seconds=2) as crew:
        late, work = (answer for _, answer in crew.run(jobs))
    assert late == {"error": "took longer than 2 s"}
    assert work["pid"] > 0


def test_exits_and_reads_are_answers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with Crew("helper_process", 1, root=root) as crew:
        # A second run has the same process: it outlives the threads that wait for its answers.
        pids = [next(crew.run([{"do": "work"}]))[1]["pid"] for _ in range(2)]
        exited, read = (answer for _, answer in crew.run([{"do": "exit"}, {"do": "read"}]))
    assert pids[0] == pids[1]
    assert exited == {"error": "SystemExit: enough"}
    assert read == {"read": ""}


@pytest.mark.parametrize("do", ["loop", "native loop"])
def test_none_is_left_in_the_middle_of_a_job(do: str, root: Path, tmp_path: Path) -> None:
    if do == "native loop" and sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent")
    started = tmp_path / "started"
    code = f"""
        from pathlib import Path
        from kernels.processes import Crew
        crew = Crew("helper_process", 1, root=Path({str(root)!r}))
        list(crew.run([{{"do": {do!r}, "started": {str(started)!r}}}]))
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    while not started.exists():
        assert parent.poll() is None
        time.sleep(0.02)
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate(timeout=20)  # until nobody holds standard error


def test_the_current_folder_is_not_imported_from(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    for name in ("kernels", "torch"):
        (here / name).mkdir(parents=True)
        (here / name / "__init__.py").write_text("raise ImportError('from here')\n")
    (here / "calendar.py").write_text("raise ImportError('from here')\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(here / "none"))
    with Crew("kernels.checking.worker") as crew:
        ((_, answer),) = crew.run([{"op": "no such"}])
    assert "'no such' is unknown" in answer["error"]
