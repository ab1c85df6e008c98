"""`--trace`, `--metrics-port`, `--metrics-host`: refused early, served while it runs, written."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from pipeline.cli.options import OutputOptions, ProgressOptions
from pipeline.cli.output import Output
from pipeline.cli.tracing import SeeingOptions, seeing
from pipeline.spans import Track
from pipeline.timeline import Recorder, Timeline
from tests.pipeline.recorded import recorded


def output(quiet: bool = False) -> Output:
    return Output(OutputOptions(), ProgressOptions(quiet))


def timeline() -> Timeline:
    return recorded(2, 2).timeline()


def test_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.json"
    with seeing(SeeingOptions(trace=path), output()) as seen:
        assert not path.exists()
        with seen.watching(timeline, dict):
            pass
        assert len(json.loads(path.read_text())["traceEvents"]) > 50
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("trace of ")
    assert str(path) in told.err


def test_a_trace_of_the_end_of_a_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(1, keep=3)
    for at in range(10):
        recorder.record(0, Track.COMPUTE, at * 10**9, (at + 1) * 10**9, at, "decode", 1)
    path = tmp_path / "t.json"
    with (
        seeing(SeeingOptions(trace=path), output()) as seen,
        seen.watching(recorder.timeline, dict),
    ):
        pass
    assert "trace of the last 3.00 s of 10.00 s written" in capsys.readouterr().err


def test_a_failing_run_has_a_trace_too(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with (
        pytest.raises(KeyboardInterrupt),
        seeing(SeeingOptions(trace=path), output(quiet=True)) as seen,
        seen.watching(timeline, dict),
    ):
        raise KeyboardInterrupt
    assert path.exists()


def test_metrics_while_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with seeing(SeeingOptions(metrics_port=0), output()) as seen:
        url = capsys.readouterr().err.split()[-1]

        def scrape() -> str:
            with urllib.request.urlopen(url, timeout=10) as answer:
                text: str = answer.read().decode()
            return text

        assert url.startswith("http://127.0.0.1:")
        assert scrape() == ""  # the model is being loaded
        with seen.watching(timeline, lambda: {"pipeline_decode": {"calls": 5}}):
            assert "lamella_decode_calls_total 5.0" in scrape()
    assert threading.active_count() == before


def test_nothing_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with seeing(SeeingOptions(), output()) as seen, seen.watching(timeline, dict):
        pass
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_wrong_usage(tmp_path: Path, taken: int) -> None:
    with seeing(SeeingOptions(metrics_port=0), output(quiet=True)):
        pass
    for options, why in (
        (SeeingOptions(trace=tmp_path), f"--trace {tmp_path}: .*expected a file"),
        (SeeingOptions(metrics_host="0.0.0.0"), "--metrics-host 0.0.0.0: needs a --metrics-port"),
        (
            SeeingOptions(metrics_port=0, metrics_host="a b"),
            "--metrics-host a b: .*cannot be served",
        ),
        (
            SeeingOptions(metrics_port=0, metrics_host="a" * 300),
            "--metrics-host a+: .*cannot be served",
        ),
        (SeeingOptions(metrics_port=0, metrics_host="192.0.2.1"), "--metrics-host 192.0.2.1: "),
        (SeeingOptions(metrics_port=taken), f"--metrics-port {taken}: .*cannot be served"),
    ):
        with pytest.raises(typer.BadParameter, match=why), seeing(options, output()):
            pytest.fail("was not refused")
