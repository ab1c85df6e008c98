"""What a terminal gets to see while completions are made."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.cli.metrics_table import cycle_row, metrics_table
from pipeline.cli.options import OutputOptions
from pipeline.cli.output import Output
from pipeline.cli.text import harmless, last_line
from pipeline.cli.views.panels import Panels
from pipeline.cli.views.row import Row
from pipeline.cli.views.streaming import Streaming
from pipeline.sequences import GenerationEvent


def terminal() -> tuple[Output, io.StringIO]:
    screen = io.StringIO()
    to = Output(OutputOptions())
    to.out = Console(file=screen, force_terminal=True, width=40, height=5, highlight=False)
    return to, screen


def take(row: Row, text: str, reason: str | None = None) -> None:
    row.take(GenerationEvent(row.number - 1, 0, text, reason))  # type: ignore[arg-type]


def test_control_characters_do_nothing() -> None:
    assert harmless("a\tb\n\x1b[2J\r\x07\x9bc\x7f") == "a\tb\n\ufffd[2J\ufffd\ufffd\ufffdc\ufffd"
    assert last_line("one\ntwo\x1b", 5) == "\u2026two\ufffd"


def test_a_panel_for_each_end_and_a_line_for_each_under_way() -> None:
    to, screen = terminal()
    rows = [Row(number, f"prompt{number}") for number in range(1, 7)]
    with Panels(to, rows) as panels:
        for row in rows[:5]:
            take(row, " text\x1b")
        shown = [
            "".join(part.text for part in line) for line in to.out.render_lines(panels._lines())
        ]
        assert [line.split()[0] for line in shown] == ["1", "2", "3"]
        assert shown[-1].strip() == "3 more under way, 1 waiting"
        take(rows[0], " end\n\n", "stop")
        panels.update(rows[0], " end\n\n")
    text = screen.getvalue()
    assert "1/6" in text
    assert "2 tokens, stop" in text
    assert "\x1b end" not in text


def test_streaming_keeps_a_terminal_safe(capsys: pytest.CaptureFixture[str]) -> None:
    to, screen = terminal()
    row = Row(1, "prompt\x1b")
    with Streaming(to, row) as view:
        view.update(row, " te\x1bxt")
    assert "prompt\ufffd" in screen.getvalue()
    assert capsys.readouterr().out == " te\ufffdxt\n"


def test_metrics_without_a_decode_call() -> None:
    rate = {"tokens": 1, "seconds": 0.0, "tokens_per_s": None}
    metrics = {
        "prefill": rate,
        "decode": rate,
        "snapshot": {"pipeline_decode": {"calls": 0}},
    }
    console = Console(file=io.StringIO(), width=80)
    console.print(metrics_table(metrics))
    assert "no calls" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_cycle_shown_is_of_the_way_that_made_most_tokens() -> None:
    tail = {"mode": "batch", "groups": 1, "predicted_cycle_us": None, "measured_cycle_us": 900}
    most = {
        "mode": "continuous",
        "groups": 2,
        "predicted_cycle_us": 3500,
        "measured_cycle_us": 3600,
    }
    row = cycle_row({**tail, "most": most, "steps": {"continuous 2": 138, "batch": 4}})
    assert row == ("cycle", "", "3.6 ms", "mostly continuous in 2 groups; predicted 3.5 ms")
