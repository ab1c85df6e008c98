"""Profile lines: every eighth batch call, with the origin's fields, and only when asked for."""

from __future__ import annotations

import re

import pytest

from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from tests.pipeline.fake_stage import fake_stages

NUMBERS = (
    r"bridge=host host_bridge_bytes=\d+ bridge_us=\d+ host_copy_us=\d+ device_copy_us=\d+ "
    r"stage_us=\[\d+, \d+\] logits_us=\d+ total_us=\d+"
)


def run(calls: int, rows: int, mode: str) -> None:
    placement = Placement.even(2, 2, mode=mode)
    with LlamaPipeline(fake_stages([1, 1]), placement, threads=1) as pipeline:
        for position in range(calls):
            batch = [(f"s{row}", 1, position) for row in range(rows)]
            pipeline.decode_batch(batch)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


@pytest.fixture
def profiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_DECODE_PROFILE", "1")


@pytest.mark.usefixtures("profiling")
def test_every_eighth_batch_call_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    run(17, rows=3, mode="batch")
    got = lines(capsys)
    assert [line.split()[1] for line in got] == ["call#0", "call#8", "call#16"]
    hidden = re.escape(
        '{"shape":[3,8],"dtype":"f32","device":"host","layout":"row_major","len_bytes":96}'
    )
    for line in got:
        assert re.fullmatch(
            rf"\[pipeline-decode-profile\] call#\d+ m=3 hidden={hidden} mode=batch {NUMBERS}", line
        )


@pytest.mark.usefixtures("profiling")
def test_overlapped_calls_tell_their_microbatches(capsys: pytest.CaptureFixture[str]) -> None:
    run(1, rows=17, mode="overlapped")
    [line] = lines(capsys)
    assert re.fullmatch(
        r"\[pipeline-decode-profile\] call#0 m=17 mode=overlapped microbatch_size=9 "
        rf"microbatch_count=2 {NUMBERS}",
        line,
    )


@pytest.mark.usefixtures("profiling")
def test_single_decodes_are_not_profiled(capsys: pytest.CaptureFixture[str]) -> None:
    run(9, rows=1, mode="batch")
    assert lines(capsys) == []


@pytest.mark.parametrize("value", [None, "", "0", "yes"])
def test_nothing_is_printed_unless_asked(
    value: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LAMELLA_DECODE_PROFILE", raising=False)
    if value is not None:
        monkeypatch.setenv("LAMELLA_DECODE_PROFILE", value)
    run(1, rows=3, mode="batch")
    assert lines(capsys) == []


@pytest.mark.usefixtures("profiling")
def test_the_environment_is_read_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    placement = Placement.even(2, 2, mode="batch")
    with LlamaPipeline(fake_stages([1, 1]), placement, threads=1) as pipeline:
        monkeypatch.delenv("LAMELLA_DECODE_PROFILE")
        pipeline.decode_batch([("a", 1, 0), ("b", 1, 0)])
    assert len(lines(capsys)) == 1
