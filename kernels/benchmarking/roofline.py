"""A picture of results under the roofs that bandwidth and arithmetic are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kernels.errors import InvalidInputError, UnsupportedError


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw a report of `bench` to `path`, whose ending names the format (png, svg, pdf).

    Raises `UnsupportedError` without matplotlib, `InvalidInputError` for another ending. Source:
    Williams, Waterman and Patterson, "Roofline", 2009, https://doi.org/10.1145/1498765.1498785.
    """
    require_plotting(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    copy, product = report["copy_gb_per_s"] / 1e3, report["product_tflop_per_s"]
    rows = report["results"]
    intensities = [row["flop_per_byte"] for row in rows] + [product / copy]
    low, high = min(intensities) / 2, max(intensities) * 4
    axes.plot([low, product / copy], [low * copy, product], color="black", lw=1)
    axes.plot([product / copy, high], [product, product], color="black", lw=1)
    for index, (op, impl) in enumerate(dict.fromkeys((row["op"], row["impl"]) for row in rows)):
        mine = [row for row in rows if (row["op"], row["impl"]) == (op, impl)]
        axes.scatter(
            [row["flop_per_byte"] for row in mine],
            [row["tflop_per_s"] for row in mine],
            label=f"{op}, {impl}",
            marker="x" if mine[0]["peer"] else "o",
            color=f"C{index % 10}",
            s=24,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("TFLOP/s")
    where = report["environment"]
    axes.set_title(
        f"{where['device']}, torch {where['torch']}, copy {report['copy_gb_per_s']:.0f} GB/s, "
        f"products {product:.2f} TFLOP/s",
        fontsize=9,
    )
    axes.grid(True, which="both", lw=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=150)


def require_plotting(path: Path) -> None:
    """Raise what `plot` would, before anything is measured."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise UnsupportedError(
            "matplotlib is not installed: pip install 'lamella[plot]'"
        ) from error
    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise InvalidInputError(f"{path}: expected a file name ending in one of {', '.join(kinds)}")
    if not path.absolute().parent.is_dir():
        raise InvalidInputError(f"{path}: there is no folder {path.absolute().parent}")
    there = path.exists()
    try:
        with path.open("ab"):  # whatever forbids it: a folder of that name, rights, a full disk
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written: {error.strerror}") from error
