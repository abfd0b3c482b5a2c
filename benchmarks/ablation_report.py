# SPDX-License-Identifier: Apache-2.0
"""The report of an ablation: JSON for programs, and one self-contained page for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from sparsekit.benchmarks.ablation_variants import CONTROL
from sparsekit.benchmarks.report import template
from sparsekit.benchmarks.reporting.ablation import Ablation, summarise_ablation
from sparsekit.benchmarks.reporting.figures import SETTINGS, quiet, svg_element
from sparsekit.benchmarks.reporting.naming import name_of
from sparsekit.benchmarks.reporting.origin import describe_environment
from sparsekit.benchmarks.reporting.palette import FAINT, INK, PAPER, SERIES
from sparsekit.benchmarks.reporting.wording import MISSING, percent, sparsity_text
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.statistics import MINIMUM_PAIRS
from sparsekit.tensor_file import replace_text

SCOPE = (
    "Intervals tell of the order of batches and the draws of masks, for this one network and mask; other networks are "
    "other runs of prune."
)


def ablation_title(found: Ablation) -> str:
    """ "BiP at 90 % sparsity, seed 0: convnet on digits"."""
    run, config = found.run, found.config
    where = f"{config['network']} on {Path(str(config['data'])).name}"
    return f"{name_of(run['method'])} at {sparsity_text(run['sparsity'])} sparsity, seed {run['seed']}: {where}"


def ablation_json(rows: Iterable[Row]) -> dict[str, Any]:
    """Everything that the page says as JSON values; accuracies as fractions."""
    rows = list(rows)
    found = summarise_ablation(rows)
    values = {"schema": 1, "kind": "ablation", "run": dict(found.run)}
    values |= {"variants": [asdict(line) for line in found.lines], "answers": [asdict(a) for a in found.answers]}
    return values | {"rows": rows}


def write_ablation(rows: Iterable[Row], path: str | Path) -> Path:
    """Writes the page, atomically: one file with styles and figure inside, no scripts, nothing from a network.

    Raises:
        ValueError: no rows of an ablation, or rows of several runs.
    """
    found, path = summarise_ablation(rows), Path(path)
    html = template("ablate.html.j2").render(
        found=found,
        heading=ablation_title(found),
        stamp=describe_environment(found.environments),
        figure=Markup(difference_figure(found, "differences")),
        control=CONTROL,
        scope=SCOPE,
        missing=MISSING,
        minimum=MINIMUM_PAIRS,
    )
    replace_text(path, html)
    return path


def difference_figure(found: Ablation, name: str) -> str:
    """Differences of all variants to the control with their intervals, as an <svg> element; empty without any."""
    lines = [line for line in found.lines if line.difference]
    if not lines:
        return ""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8.8, 1.1 + 0.38 * len(lines)), layout="constrained")
        axes = figure.add_subplot()
        for y, line in enumerate(lines):
            assert line.difference is not None
            mean, interval = 100 * line.difference.mean, line.difference.interval
            if interval:
                axes.hlines(y, 100 * interval.low, 100 * interval.high, color=SERIES[0], lw=2)
            axes.plot(mean, y, "o", color=SERIES[0], mec=PAPER, ms=8, zorder=3)
        axes.axvline(0, color=INK, lw=1.2, zorder=1)
        axes.set_yticks(range(len(lines)), [line.variant for line in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel(f"difference to the control ({percent(_control(found))} % accurate), points", color=FAINT)
        quiet(axes, "x")
        return svg_element(figure, name, "Accuracy of each variant minus that of the control")


def _control(found: Ablation) -> float | None:
    own = next((line.accuracy for line in found.lines if line.variant == CONTROL), None)
    return own.mean if own else None
