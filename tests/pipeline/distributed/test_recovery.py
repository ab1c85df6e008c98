"""After a restart by torchrun a run goes on where it was, and its texts come out the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline import LlamaPipeline
from pipeline.cli.options import OutputOptions, ProgressOptions
from pipeline.cli.output import Output
from pipeline.cli.ranks import recovering
from pipeline.distributed.journal import Journal
from pipeline.distributed.world import World
from tests.pipeline.distributed.launching import CALM, ROOT, environment, free_port, torchrun

PROMPTS = ["import ", "def add(a, b):", "class "]
PIPED = "".join(f"{prompt}\n" for prompt in PROMPTS)
OPTIONS = ["-n", "300", "--threads", "1", "--mode", "continuous", "--temperature", "0.8"]


def test_a_killed_rank_changes_no_text() -> None:
    command = torchrun("pipeline", "generate", *OPTIONS, size=2, restarts=1)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment() | {"LAMELLA_HEARTBEAT_TIMEOUT": CALM},
        stdin=subprocess.PIPE,  # which gives the prompts only once
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        try:
            assert agent.stdin is not None
            agent.stdin.write(PIPED)
            agent.stdin.flush()
            agent.stdin.close()
            agent.stdin = None
            assert agent.stderr is not None
            told = until(agent.stderr.readline, lambda line: line.startswith("stage0:"))
            time.sleep(0.4)  # some tokens
            os.kill(process_of_rank(agent.pid, 1), signal.SIGKILL)
            out, rest = agent.communicate(timeout=60)
        finally:
            agent.kill()
    assert agent.returncode == 0, told + rest
    assert "error: rank 1 (host " in rest
    assert "tokens of 3 prompts after a restart" in rest
    alone = [sys.executable, "-m", "pipeline", "generate", "-s", "2", *OPTIONS]
    whole = subprocess.run(
        alone, cwd=ROOT, env=environment(), input=PIPED, capture_output=True, text=True, check=True
    )
    assert out == whole.stdout, "each text once"


def test_ctrl_c_ends_all_ranks_in_good_order() -> None:
    command = torchrun("pipeline", "generate", "-n", "900", *OPTIONS[2:], *PROMPTS, size=2)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment() | {"LAMELLA_HEARTBEAT_TIMEOUT": CALM},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group, as a terminal's Ctrl-C goes to
    ) as agent:
        try:
            assert agent.stderr is not None
            until(agent.stderr.readline, lambda line: line.startswith("stage0:"))
            time.sleep(0.3)
            os.killpg(agent.pid, signal.SIGINT)
            out, err = agent.communicate(timeout=20)
        finally:
            agent.kill()
    assert agent.returncode != 0
    assert out == ""
    assert err.splitlines().count("interrupted") == 1
    assert "error:" not in err, "nobody takes it for a loss"


def until(read: Callable[[], str], right: Callable[[str], bool]) -> str:
    """Read lines up to the right one."""
    told = ""
    while not right(line := read()):
        assert line, told
        told += line
    return told


def process_of_rank(agent: int, rank: int) -> int:
    """The process that torchrun's agent started for a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            env = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if parent == agent and b"RANK=%d" % rank in env:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def test_a_journal_is_of_one_run() -> None:
    world = World(0, 2, 0, 2, "127.0.0.1", free_port(), restarts=1)
    first = Journal(world, "run a")
    assert not first.drawn
    for prompt, token in ((0, 7), (2, 1 << 40), (0, 8)):
        first.note(prompt, token)
    first.close(finished=False)
    again = Journal(world, "run a")
    assert again.drawn == {0: [7, 8], 2: [1 << 40]}
    again.note(0, 9)
    again.close(finished=False)
    other = Journal(world, "run b")
    assert other.foreign
    assert not other.drawn
    other.note(0, 1)
    assert not other.printed
    other.close(finished=True)
    last = Journal(world, "run b")
    assert not last.foreign
    assert last.printed
    last.close(finished=True)


def test_prompts_are_read_once_and_texts_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    store = World(0, 2, 0, 2, "127.0.0.1", port).open_store()  # as torchrun's agent does
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "2",
    }.items():
        monkeypatch.setenv(name, value)
    to = Output(OutputOptions(json=False), ProgressOptions(quiet=True))

    def start(prompts: list[str], tokens: list[int], *, fails: bool) -> tuple[bool, list[str], Any]:
        """What one start finds; it draws some tokens for its first prompt."""
        with suppress(ValueError), recovering(("options",), to) as recovery:
            found = (recovery.printed, recovery.prompts(lambda: prompts), dict(recovery.drawn))
            for token in tokens:
                recovery.note(0, token)
            if fails:
                raise ValueError
        return found

    assert start(["a", "é"], [5, 6], fails=True) == (False, ["a", "é"], {})
    assert start([], [5, 6, 7], fails=False) == (False, ["a", "é"], {0: [5, 6]})
    assert start([], [], fails=False) == (True, ["a", "é"], {0: [5, 6, 7]})
    del store


@pytest.mark.parametrize("kept", [0, 1, 7, 19, 20])
def test_a_stream_goes_on_from_tokens_that_were_drawn_before(kept: int) -> None:
    with LlamaPipeline.from_pretrained(threads=1, stages=2) as pipe:
        whole = pipe.generate(PROMPTS, max_new_tokens=20).completions
        drawn = {done.index: done.tokens[:kept] for done in whole[:2]}
        with pipe.stream(PROMPTS, max_new_tokens=20, drawn=drawn) as stream:
            events = list(stream)
        assert stream.result().completions == whole
    for done in whole:
        mine = [event for event in events if event.index == done.index]
        assert [event.token for event in mine] == done.tokens
        assert "".join(event.text for event in mine) == done.text
        assert [event.finish_reason for event in mine][-1] == done.finish_reason
