"""The README's tables of figures, made from the recorded runs in `results/`.

`python -m tests.bench.report` rewrites the tables between the README's `<!-- figures:NAME -->`
markers; `--check` only says whether they are up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
MARKER = re.compile(r"(<!-- figures:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(name: str) -> dict[str, Any]:
    """A recorded run."""
    report: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return report


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def provenance(report: dict[str, Any]) -> str:
    """Where and with what a run was recorded."""
    where = report["environment"]
    packages = where["packages"]
    versions = ", ".join(
        f"{name} {packages[name]}" for name in ("torch", "transformers") if packages.get(name)
    )
    return (
        f"`{where['command']}`: {where['cpu']}, {where['cores']} cores, "
        f"{where['threads']} thread(s) a stage, "
        f"{versions}, Python {where['python']}, commit {where['commit']}, {where['date']}."
    )


def decode_figures() -> str:
    """Decode and prefill against transformers."""
    report = load("decode")
    rows = [
        [
            f"{row['model']}, batch {row['batch']}",
            f"{row['decode_tokens_per_s']:.1f}",
            f"{row['transformers_decode_tokens_per_s']:.1f}",
            f"**{row['decode_ratio']:.2f}x**",
            f"{row['prefill_tokens_per_s']:.0f}",
            f"{row['prefill_ratio']:.2f}x",
        ]
        for row in report["rows"]
    ]
    head = ["", "decode tokens/s", "transformers", "ratio", "prefill tokens/s", "ratio"]
    return f"{table(head, rows)}\n\n{provenance(report)}"


def overlap_figures() -> str:
    """Overlapped stages against the same stages in turn."""
    report = load("overlap")
    rows = [
        [
            str(row["batch"]),
            f"{row['batch_mode_step_ms']:.0f}",
            f"{row['overlapped_step_ms']:.0f}",
            f"{row['all_cores_step_ms']:.0f}",
            f"**{row['speedup']:.2f}x**",
            f"{row['predicted_speedup']:.2f}x",
            f"{row['share_of_prediction']:.2f}",
        ]
        for row in report["rows"]
    ]
    head = ["batch", "in turn, ms", "overlapped, ms", "in turn, all cores, ms"]
    head += ["overlapped/in turn", "predicted", "reached of it"]
    return f"{table(head, rows)}\n\n{provenance(report)}"


def modes_figures() -> str:
    """Every mode, and how near continuous comes to the bound of its stages' times."""
    report = load("modes")
    names = list(report["rows"][0]["cycle_ms"])
    continuous = [name for name in names if name.startswith("continuous")]
    rows = []
    for row in report["rows"]:
        cycles = row["cycle_ms"]
        best = min(continuous, key=cycles.__getitem__)
        shares = row["bounds"][best]
        rows.append(
            [
                str(row["batch"]),
                *(f"{cycles[name]:.0f}" for name in names if name != "auto"),
                f"**{cycles['batch'] / cycles[best]:.2f}x**",
                f"{shares['share_of_bound_alone']:.2f}",
                f"{shares['share_of_bound_inside']:.2f}",
                f"{row['auto_behind_best']:+.1%}",
            ]
        )
    head = ["batch", *(f"{name}, ms" for name in names if name != "auto"), "continuous/batch"]
    head += ["of C(G)", "of C(G), shared bus", "auto behind best"]
    return f"{table(head, rows)}\n\n{provenance(report)}"


def scheduling_figures() -> str:
    """What the scheduler alone reaches of C(G)."""
    report = load("scheduling")
    rows = [
        [
            str(cell["stages"]),
            cell["times"],
            f"{cell['hop_ms']:.1f}",
            str(cell["groups"]),
            f"{cell['bound_ms']:.0f}",
            f"{cell['cycle_ms']:.1f}",
            f"**{cell['share_of_bound']:.3f}**",
        ]
        for cell in report["cells"]
    ]
    head = ["stages", "their times", "hop, ms", "groups", "C(G), ms", "cycle, ms", "share"]
    found = report["against_overlapped"]
    text = (
        f"Two stages at X/w = 1.4, {found['rows']} rows: continuous makes **{found['gain']:.2f}x** "
        "of overlapped's throughput."
    )
    return f"{table(head, rows)}\n\n{text}\n\n{provenance(report)}"


def distributed_figures() -> str:
    """Stages in processes against stages in threads."""
    report = load("distributed")
    rows = [
        [
            f"{report['model']}, batch {row['batch']}",
            f"{row['tokens_per_s']['threads']:.0f}",
            f"{row['tokens_per_s']['processes']:.0f}",
            f"**{row['ratio']:.2f}x**",
        ]
        for row in report["rows"]
    ]
    head = ["", "threads, tokens/s", "processes, tokens/s", "ratio"]
    return f"{table(head, rows)}\n\n{provenance(report)}"


def load_figures() -> str:
    """Peak memory of loading a stage."""
    report = load("load_memory")
    rows = [
        [
            f"{row['stage']} (layers {row['layers']})",
            f"{row['checkpoint_bytes'] / 1e6:.0f}",
            f"{row['peak_over_bare_bytes'] / 1e6:.0f}",
            f"**{row['peak_ratio']:.2f}x**",
        ]
        for row in report["rows"]
    ]
    head = ["stage", "weights, MB", "peak over the bare process, MB", "ratio"]
    return f"{table(head, rows)}\n\n{provenance(report)}"


def perplexity_figures() -> str:
    """Perplexity of the bundled model on its held-out text, per KV layout."""
    report = load("perplexity")
    rows = [
        [row["kv_dtype"], f"{row['perplexity']:.4f}", f"{row['over_fp16']:+.3%}"]
        for row in report["rows"]
    ]
    text = table(["KV cache", "perplexity", "against fp16"], rows)
    return f"{text}\n\n{provenance(report)}"


FIGURES = {
    "perplexity": perplexity_figures,
    "decode": decode_figures,
    "overlap": overlap_figures,
    "modes": modes_figures,
    "scheduling": scheduling_figures,
    "distributed": distributed_figures,
    "load": load_figures,
}


def render(text: str) -> str:
    """The README with every marked table made anew."""
    return MARKER.sub(lambda m: f"{m[1]}{FIGURES[m[2]]()}\n{m[3]}", text)


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = render(old)
    if check:
        sys.exit(0 if old == new else "README.md: figures differ from tests/bench/results")
    readme.write_text(new)


if __name__ == "__main__":
    main()
