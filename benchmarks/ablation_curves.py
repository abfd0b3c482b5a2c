# SPDX-License-Identifier: Apache-2.0
"""BiP's two constants swept as in figures A8b and A8c of the paper: accuracy against gamma, and against the lower rate.

python -m sparsekit.benchmarks.ablation_curves --out runs/curves

Runs are those of ``sparsekit compare``: rows in ``rows.jsonl``, none made twice; the page is ``curves.html``. Gamma is the
regulariser of the lower level (inf leaves the implicit gradient out), alpha a factor of its learning rate: the main text's
letter, which the paper's algorithm A1 uses for the upper level instead.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsekit.benchmarks.compare import ROWS, Workbench, compare, grid
from sparsekit.benchmarks.recipe import MAX_THREADS, Recipe
from sparsekit.benchmarks.report import template
from sparsekit.benchmarks.reporting.figures import SETTINGS, place_legend, quiet, svg_element
from sparsekit.benchmarks.reporting.origin import describe_environment
from sparsekit.benchmarks.reporting.palette import FAINT, PAPER, look
from sparsekit.benchmarks.reporting.wording import MISSING, number_plain, sparsity_text
from sparsekit.benchmarks.rows import Row, read_rows
from sparsekit.benchmarks.speedup_suites import RUNGS, SUITES
from sparsekit.benchmarks.statistics import Estimate, describe
from sparsekit.pruners.checks import checked_count
from sparsekit.tensor_file import replace_text

SPARSITIES = (RUNGS[8], RUNGS[12], RUNGS[18])
"""86.6, 94.5 and 98.6 %."""

PAGE = "curves.html"


@dataclass(frozen=True)
class Sweep:
    """One constant: its name, what it is, and the method of each of its values, ascending."""

    name: str
    words: str
    methods: tuple[tuple[float, str], ...]


SWEEPS = (
    Sweep("gamma", "γ", ((0.1, "bip-gamma0.1"), (1.0, "bip"), (10.0, "bip-gamma10"), (math.inf, "bip-inf"))),
    Sweep("alpha", "factor of the lower rate", ((0.01, "bip-alpha0.01"), (0.1, "bip-alpha0.1"), (1.0, "bip"))),
)


@dataclass(frozen=True)
class Point:
    """Test accuracy at one value of a constant and one sparsity, over seeds."""

    sweep: str
    value: float
    sparsity: float
    accuracy: Estimate


def methods() -> tuple[str, ...]:
    """All methods of the sweeps, each once."""
    return tuple(dict.fromkeys(method for sweep in SWEEPS for _, method in sweep.methods))


def points(rows: Iterable[Row]) -> list[Point]:
    """Points of the sweeps that have finished runs, of each run the last row. Raises ValueError for several recipes."""
    found: dict[tuple[str, float], dict[int, Row]] = {}
    for row in rows:
        if row.get("kind") == "compare" and "result" in row and row["method"] in methods():
            found.setdefault((row["method"], row["sparsity"]), {})[row["seed"]] = row
    recipes = {str(sorted(row["config"].items())) for by_seed in found.values() for row in by_seed.values()}
    if len(recipes) > 1:
        raise ValueError(f"ablation_curves: rows: expected runs of one recipe, got {len(recipes)}")
    levels = sorted({sparsity for _, sparsity in found})
    return [
        Point(sweep.name, value, s, describe([r["result"]["test_accuracy"] for r in found[method, s].values()]))
        for sweep in SWEEPS
        for s in levels
        for value, method in sweep.methods
        if (method, s) in found
    ]


def curves_figure(found: Sequence[Point], name: str) -> str:
    """Mean accuracy against each constant with 95 % intervals as bands, a line for each sparsity; an <svg> element."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8.8, 4.2), layout="constrained")
        panels = figure.subplots(1, len(SWEEPS), sharey=True)
        for axes, sweep in zip(panels, SWEEPS, strict=True):
            _panel(axes, sweep, [point for point in found if point.sweep == sweep.name])
        panels[0].set_ylabel("test accuracy, %", color=FAINT)
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(max(0.0, low), min(100.5, high))
        place_legend(figure, panels[0])
        return svg_element(figure, name, "Test accuracy of BiP against gamma and against the lower learning rate")


def _panel(axes: Axes, sweep: Sweep, found: Sequence[Point]) -> None:
    finite = [value for value, _ in sweep.methods if value < math.inf]
    # Infinity is one more step of ten to the right.
    places = {value: math.log10(min(value, 10 * max(finite))) for value, _ in sweep.methods}
    for i, sparsity in enumerate(sorted({point.sparsity for point in found})):
        own, style = [point for point in found if point.sparsity == sparsity], look(i)
        x, y = [places[point.value] for point in own], [100 * point.accuracy.mean for point in own]
        drawn = {"color": style.colour, "marker": style.marker, "ls": style.line, "label": f"{sparsity_text(sparsity)}"}
        axes.plot(x, y, lw=1.7, ms=6, mec=PAPER, mew=0.8, zorder=3, **drawn)
        bands = [
            (100 * p.accuracy.interval.low, 100 * p.accuracy.interval.high) if p.accuracy.interval else None
            for p in own
        ]
        low, high = ([band[side] if band else math.nan for band in bands] for side in (0, 1))
        axes.fill_between(x, low, high, color=style.colour, alpha=0.14, lw=0, zorder=2)
    axes.set_xticks([*places.values()], ["∞" if value == math.inf else number_plain(value) for value in places])
    axes.set_xlabel(sweep.words)
    quiet(axes, "y")


def write_curves(rows: Iterable[Row], path: Path) -> Path:
    """Writes the page, atomically. Raises ValueError if no run of the sweeps has finished."""
    rows = list(rows)
    found = points(rows)
    if not found:
        raise ValueError("ablation_curves: rows: expected finished runs of the sweeps, got none")
    used = [row for row in rows if "result" in row and row.get("method") in methods()]
    cells = {(point.sweep, point.value, point.sparsity): point.accuracy for point in found}
    html = template("curves.html.j2").render(
        figure=Markup(curves_figure(found, "curves")),
        sweeps=SWEEPS,
        sparsities=sorted({point.sparsity for point in found}),
        cells=cells,
        config=used[-1]["config"],
        stamp=describe_environment([row["environment"] for row in used]),
        inf=math.inf,
        missing=MISSING,
    )
    replace_text(path, html)
    return path


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ablation_curves", description="BiP's gamma and lower learning rate, swept.")
    parser.add_argument("--out", type=Path, default=Path("runs/curves"), help="folder for rows and page")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 .. N-1, each with its own dense network")
    parser.add_argument("--sparsity", type=float, nargs="+", default=SPARSITIES, help="fractions removed")
    parser.add_argument(
        "--suite", choices=tuple(SUITES), help="recipe of a suite of sparsekit speedup, to be changed below"
    )
    for name in ("data", "network"):
        parser.add_argument(f"--{name}", help="as of compare")
    for name in ("limit", "image_size", "dense_epochs", "epochs", "batch_size"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="as of compare")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", type=Path, default=Path(".data"), help="where data sets lie")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    return parser.parse_args(words)


def _recipe(given: argparse.Namespace) -> Recipe:
    """Of the suite, or of the digits with 8 epochs, with what was given in place of its own."""
    settings = ("data", "network", "limit", "image_size", "dense_epochs", "epochs", "batch_size")
    own = {name: value for name in settings if (value := getattr(given, name)) is not None}
    return replace(SUITES[given.suite].recipe if given.suite else Recipe(epochs=8), **own)


def main(words: Sequence[str] | None = None) -> int:
    """Run what has no row yet, and write the page; 1 if runs have failed, 2 for bad input."""
    given, failed = _arguments(words), 0
    try:
        if not given.report_only:
            recipe = _recipe(given)
            torch.set_num_threads(checked_count("ablation_curves", "threads", given.threads, 1, MAX_THREADS))
            configs, bench = (
                grid(methods(), given.sparsity, given.seeds, recipe),
                Workbench(recipe, given.out, given.root),
            )
            with bench.stop.installed():
                failed = sum("error" in row for row in compare(configs, given.out, bench=bench))
        print(write_curves(read_rows(given.out / ROWS), given.out / PAGE))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
