# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison: tables for a terminal, JSON for programs, and one self-contained HTML page for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from sparsekit.benchmarks.methods import METHODS
from sparsekit.benchmarks.reporting import figures, wording
from sparsekit.benchmarks.reporting.findings import cautions, findings, title
from sparsekit.benchmarks.reporting.speedup import Clock, Factors, Ratio, Speedup, speedup
from sparsekit.benchmarks.reporting.summary import Cell, Group, Summary, summarise
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.statistics import MINIMUM_PAIRS
from sparsekit.io import replace_file

__all__ = [
    "Cell",
    "Clock",
    "Factors",
    "Group",
    "Ratio",
    "Speedup",
    "Summary",
    "as_json",
    "render_table",
    "speedup",
    "summarise",
    "write_report",
]

TEMPLATES = Path(__file__).parent / "templates"

FILTERS = {
    "count": wording.count,
    "label": wording.label,
    "number": wording.number,
    "percent": wording.percent,
    "plain": wording.number_plain,
    "points": wording.points,
    "points_range": wording.points_range,
    "seconds": wording.seconds_text,
    "sparsity": wording.sparsity_text,
    "spread": wording.spread,
    "times": wording.times,
    "times_range": wording.times_range,
}


def write_report(rows: Iterable[Row], path: str | Path, baseline: str = "imp") -> Path:
    """Writes the HTML report, atomically: one file with styles and figures inside, no scripts, nothing from a network.

    Args:
        rows: rows of kind "compare"; other kinds are passed over.
        path: file to write; its folder is made if needed.
        baseline: method that the others are compared with.

    Returns:
        The path.

    Raises:
        ValueError: a row lacks a number.
    """
    summary = summarise(rows, baseline)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS | {"flat": flat}
    html = environment.get_template("report.html.j2").render(
        summary=summary,
        heading=title(summary.groups[0]) if len(summary.groups) == 1 else "Comparison of pruning methods",
        title=title,
        subject=subject,
        stamp=stamp,
        methods=methods,
        findings=findings,
        cautions=cautions,
        colour=figures.colour,
        accuracy_figure=lambda group, name: Markup(figures.accuracy_figure(group, name)),
        cost_figure=lambda group, name: Markup(figures.cost_figure(group, name)),
        missing=wording.MISSING,
        minimum=MINIMUM_PAIRS,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda target: Path(target).write_text(html, encoding="utf-8"))
    return path


def as_json(rows: Iterable[Row], baseline: str = "imp") -> dict[str, Any]:
    """Everything that the report says as JSON values; fractions, seconds and epochs, unrounded."""
    summary = summarise(rows, baseline)
    groups = []
    for group in summary.groups:
        values = asdict(group)
        values["runs"] = [run.id for run in group.runs]
        values["findings"] = [asdict(finding) for finding in findings(group)]
        values["cautions"] = list(cautions(group))
        groups.append(values)
    return {"schema": 1, "kind": "comparison", "superseded": summary.superseded, "groups": groups}


def render_table(rows: Iterable[Row], baseline: str = "imp") -> list[Table]:
    """For each recipe a table of accuracies, one of costs and speed-ups, and one of failed runs if there are any."""
    tables = []
    for group in summarise(rows, baseline).groups:
        tables += [_accuracy_table(group), _cost_table(group)]
        if group.failures:
            tables.append(_failure_table(group))
    return tables


def _accuracy_table(group: Group) -> Table:
    base = wording.label(group.baseline)
    table = Table(title=f"{title(group)}: {subject(group)}", caption="mean ± sd over n seeds; difference paired, 95 %")
    for column in ("sparsity", "method", "test accuracy, %", "n", f"difference to {base}, points", "verdict"):
        table.add_column(column, justify="left" if column in ("method", "verdict") else "right")
    for sparsity, method in _grid(group, table):
        cell = group.cell(method, sparsity)
        difference = cell.difference if cell else None
        interval = f" ({wording.points_range(difference.interval)})" if difference and difference.interval else ""
        table.add_row(
            wording.sparsity_text(sparsity),
            wording.label(method),
            wording.spread(cell.accuracy if cell else None),
            str(cell.accuracy.n if cell else 0),
            "baseline" if method == base else wording.points(difference.mean if difference else None) + interval,
            cell.verdict or wording.MISSING if cell else wording.MISSING,
        )
    return table
