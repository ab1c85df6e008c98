"""The README's figures are those of the recorded runs."""

from __future__ import annotations

import re

from tests.bench.report import FIGURES, ROOT, render


def test_readme_figures_are_the_recorded_ones() -> None:
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"<!-- figures:(\w+) -->", text)) == set(FIGURES)
    assert render(text) == text
