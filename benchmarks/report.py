# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison: tables for a terminal, JSON for programs, and one self-contained HTML page for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from sparsekit.benchmarks.reporting import figures, mask_figures, wording
from sparsekit.benchmarks.reporting.findings import cautions, digest, findings, title
from sparsekit.benchmarks.reporting.mask_section import mask_section
from sparsekit.benchmarks.reporting.origin import flat, methods, stamp, subject
from sparsekit.benchmarks.reporting.speedup import Clock, Factors, Ratio, Speedup, speedup
from sparsekit.benchmarks.reporting.summary import Cell, Group, Summary, summarise
from sparsekit.benchmarks.reporting.terminal import render_table
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.statistics import MINIMUM_PAIRS
from sparsekit.tensor_file import replace_text

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
    "amount": wording.count,
    "flat": flat,
    "label": wording.label,
    "number": wording.number,
    "percent": wording.percent,
    "plain": wording.number_plain,
    "points": wording.points,
    "points_range": wording.points_range,
    "seconds": wording.seconds_text,
    "seconds_sd": wording.seconds_sd,
    "sparsity": wording.sparsity_text,
    "spread": wording.spread,
    "times": wording.times,
    "times_range": wording.times_range,
}


MASK_FIGURES = {
    "densities_figure": lambda section, name: Markup(mask_figures.densities_figure(section, name)),
    "overlap_figure": lambda section, name: Markup(mask_figures.overlap_figure(section, name)),
}


def write_report(rows: Iterable[Row], path: str | Path, baseline: str = "imp", masks: str | Path | None = None) -> Path:
    """Writes the HTML report, atomically: one file with styles and figures inside, no scripts, nothing from a network.

    Args:
        rows: rows of kind "compare"; other kinds are passed over.
        path: file to write; its folder is made if needed.
        baseline: method that the others are compared with.
        masks: folder of the comparison, in which runs may have left their masks; None shows none.

    Returns:
        The path.

    Raises:
        ValueError: a row lacks a number, a file of masks is damaged.
    """
    summary, folder = summarise(rows, baseline), None if masks is None else Path(masks)
    html = template("report.html.j2").render(
        summary=summary,
        heading=title(summary.groups[0]) if len(summary.groups) == 1 else "Comparison of pruning methods",
        title=title,
        subject=subject,
        stamp=stamp,
        methods=methods,
        digest=digest,
        findings=findings,
        cautions=cautions,
        colour=figures.colour,
        turn=figures.turn,
        accuracy_figure=lambda group, name: Markup(figures.accuracy_figure(group, name)),
        cost_figure=lambda group, name: Markup(figures.cost_figure(group, name)),
        mask_section=lambda group: mask_section(group.runs, folder, wording.label, figures.styles(group)),
        **MASK_FIGURES,
        missing=wording.MISSING,
        minimum=MINIMUM_PAIRS,
    )
    path = Path(path)
    replace_text(path, html)
    return path


def template(name: str, /, **filters: Any) -> Template:
    """A page among the templates, with the words that all pages share and ``filters`` of its own."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS | filters
    return environment.get_template(name)


def as_json(rows: Iterable[Row], baseline: str = "imp") -> dict[str, Any]:
    """Everything that the report says as JSON values; fractions, seconds and epochs, unrounded."""
    summary = summarise(rows, baseline)
    groups = []
    for group in summary.groups:
        values = asdict(group)
        values["runs"] = [run.id for run in group.runs]
        values["digest"] = list(digest(group))
        values["findings"] = [asdict(finding) for finding in findings(group)]
        values["cautions"] = list(cautions(group))
        groups.append(values)
    return {"schema": 1, "kind": "comparison", "superseded": summary.superseded, "groups": groups}
