# SPDX-License-Identifier: Apache-2.0
"""The speed-up report of a suite: one self-contained page, Markdown for a README, tables for a terminal, and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.table import Table

from sparsekit.benchmarks.methods import METHODS
from sparsekit.benchmarks.recipe import as_json
from sparsekit.benchmarks.report import MASK_FIGURES, template
from sparsekit.benchmarks.reporting import naming, speedup_lines, wording
from sparsekit.benchmarks.reporting.caveats import cautions, gaps
from sparsekit.benchmarks.reporting.claims import HEADLINE_SEEDS, headline, sentence, stamp_line
from sparsekit.benchmarks.reporting.levels import Level, Report, summarise_suite
from sparsekit.benchmarks.reporting.mask_section import MaskSection, mask_section
from sparsekit.benchmarks.reporting.origin import describe_environment
from sparsekit.benchmarks.reporting.paper import compressed
from sparsekit.benchmarks.reporting.speedup_bars import compared, factors_figure, gain_figure
from sparsekit.benchmarks.reporting.speedup_curves import (
    accuracy_figure,
    collapsed,
    colour_of,
    match_figure,
    shown,
    styles,
    time_figure,
    turn_of,
)
from sparsekit.benchmarks.reporting.speedup_text import as_markdown, as_tables, legend
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.speedup_suites import Suite
from sparsekit.benchmarks.statistics import MINIMUM_PAIRS
from sparsekit.tensor_file import replace_text

__all__ = ["Report", "speedup_json", "speedup_markdown", "speedup_tables", "summarise_suite", "write_speedup"]

FILTERS = {
    "amount": naming.amount,
    "budget": naming.budget,
    "count": wording.count,
    "name": naming.name_of,
}

WORDS = {
    "cautions": cautions,
    "clocks": speedup_lines.clocks,
    "collapsed": collapsed,
    "colour": colour_of,
    "compared": compared,
    "factors": speedup_lines.factor_texts,
    "gaps": gaps,
    "headline": headline,
    "legend": legend,
    "notes": speedup_lines.notes,
    "sentence": sentence,
    "setting": naming.setting,
    "stamp_line": stamp_line,
    "turn": turn_of,
    "verdict_lines": speedup_lines.verdict_lines,
    "verdict_of": speedup_lines.verdict_of,
}

FIGURES = {
    "accuracy_figure": accuracy_figure,
    "factors_figure": factors_figure,
    "gain_figure": gain_figure,
    "match_figure": match_figure,
    "time_figure": time_figure,
}


def write_speedup(rows: Iterable[Row], suite: Suite, path: str | Path, masks: str | Path | None = None) -> Path:
    """Writes the page, atomically: one file with styles and figures inside, no scripts, nothing from a network.

    Args:
        rows: rows of kind "compare"; other kinds are passed over, other recipes and runs counted.
        suite: what the rows were to be.
        path: file to write; its folder is made if needed.
        masks: folder of the runs, in which they may have left their masks; None shows none.

    Returns:
        The path.

    Raises:
        ValueError: a row of the suite lacks a number, a file of masks is damaged.
    """
    report = summarise_suite(rows, suite)
    html = template("speedup.html.j2", **FILTERS).render(
        report=report,
        suite=suite,
        config=as_json(suite.recipe),
        stamp=describe_environment([run.environment for run in report.runs]),
        swept=[level for level in report.levels if _is_swept(level)],
        shorter=compressed(suite.recipe),
        known={own: METHODS[own].summary for own in _owns(report) if own in METHODS},
        masks=_masks(report, None if masks is None else Path(masks)),
        **MASK_FIGURES,
        missing=wording.MISSING,
        minimum=MINIMUM_PAIRS,
        headline_seeds=HEADLINE_SEEDS,
        **WORDS,
        **{name: _marked(figure) for name, figure in FIGURES.items()},
    )
    path = Path(path)
    replace_text(path, html)
    return path


def speedup_markdown(rows: Iterable[Row], suite: Suite) -> str:
    """Verdicts, a table and what limits them, as Markdown; says that there is nothing without a finished run."""
    return as_markdown(summarise_suite(rows, suite))


def speedup_tables(rows: Iterable[Row], suite: Suite) -> list[Table]:
    """The same for a terminal, and every budget, what is missing and what failed."""
    return as_tables(summarise_suite(rows, suite))


def speedup_json(rows: Iterable[Row], suite: Suite) -> dict[str, Any]:
    """Everything that the page says as JSON values; fractions, seconds and epochs, unrounded."""
    report = summarise_suite(rows, suite)
    plain = {f.name: getattr(report, f.name) for f in fields(report) if f.name not in ("suite", "levels", "runs")}
    return {
        "schema": 1,
        "kind": "speedup",
        "suite": asdict(suite) | {"recipe": as_json(suite.recipe)},
        **_plain(plain),
        "runs": [run.id for run in report.runs],
        "levels": [
            asdict(level)
            | {
                "headline": f"{headline(report, level)} {stamp_line(report)}",
                "sentences": {v.match.method: sentence(report, level, v) for v in level.verdicts}
                if level.reference
                else {},
            }
            for level in report.levels
        ],
        "gaps": list(gaps(report)),
        "cautions": list(cautions(report)),
    }


def _plain(value: Any) -> Any:
    """Dataclasses inside mappings and sequences as mappings."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _is_swept(level: Level) -> bool:
    """Whether some method has runs on several budgets."""
    return any(len(verdicts.match.tried) > 1 for verdicts in level.verdicts)


def _owns(report: Report) -> list[str]:
    return list(dict.fromkeys(naming.split_name(name)[0] for name in report.suite.methods))


def _masks(report: Report, folder: Path | None) -> MaskSection:
    """Masks of the methods that the curves show, each on one budget."""
    looks = styles(report)
    methods = {name: looks[naming.split_name(name)[0]] for name in shown(report)}
    return mask_section(report.runs, folder, naming.name_of, methods)


def _marked(figure: Any) -> Any:
    return lambda *arguments: Markup(figure(*arguments))
