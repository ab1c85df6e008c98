"""The README's figures are those of the recorded runs."""

from __future__ import annotations

from tests.bench.report import ROOT, render


def test_readme_figures_are_the_recorded_ones() -> None:
    text = (ROOT / "README.md").read_text()
    assert "<!-- figures:" in text
    assert render(text) == text
