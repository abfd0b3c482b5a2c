# SPDX-License-Identifier: Apache-2.0
"""A speed-up report as Markdown and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.markup import escape
from rich.table import Table

from sparsekit.benchmarks.reporting.caveats import cautions, gaps
from sparsekit.benchmarks.reporting.claims import END, GIVEN, headline, stamp_line
from sparsekit.benchmarks.reporting.levels import Report
from sparsekit.benchmarks.reporting.markdown import EMPTY, markdown
from sparsekit.benchmarks.reporting.naming import name_of
from sparsekit.benchmarks.reporting.speedup_lines import VerdictLine, factor_texts, notes, verdict_lines, verdict_of
from sparsekit.benchmarks.reporting.wording import (
    number,
    number_plain,
    points,
    seconds_text,
    sparsity_text,
    spread,
)
from sparsekit.benchmarks.statistics import MINIMUM_PAIRS

COLUMNS = ("sparsity", "method", "test accuracy, %", "seeds", "difference to best IMP, points", "time to match")
RATIOS = (GIVEN, END, "budgeted IMP over it")
SIDES = "llrrrrrrr"

PARENTHESES = "In parentheses: on the recipe's budget, at an accuracy that is not shown to match; no speed-up."


def legend(report: Report) -> str:
    """How to read the table, in one paragraph."""
    base = name_of(report.suite.baseline)
    return (
        f"Accuracy: mean ± sd. Difference: paired by seed, 95 % interval. Time to match: least time, {GIVEN}, on a budget "
        f"that is non-inferior to the best IMP variant at that sparsity (margin {number_plain(100 * report.margin)} points, "
        f"one-sided 95 %, from {MINIMUM_PAIRS} paired seeds on); never: every budget tried is inferior; open: inconclusive. "
        f"Ratios: time of {base} over that of the method, with 95 % bootstrap intervals, above 1 the method is cheaper."
    )


def as_markdown(report: Report) -> str:
    """Verdicts, table, legend and what limits them; EMPTY without a row."""
    limits = "".join(f"- {text}\n" for text in (*gaps(report), *cautions(report)))
    if not report.runs:
        return f"No run has finished, so nothing is claimed.\n\n{limits}" if report.failures else EMPTY
    heads = "".join(f"- {headline(report, level)} {stamp_line(report)}\n" for level in reversed(report.levels))
    lines = (
        (sparsity_text(level.sparsity), *_cells(line))
        for level in report.levels
        for line in verdict_lines(report, level)
    )
    table = markdown((*COLUMNS, *RATIOS), lines, SIDES)
    return f"{heads}\n{table}\n{legend(report)} {PARENTHESES}\n" + (f"\n{limits}" if limits else "")


def _cells(line: VerdictLine) -> Iterator[str]:
    """All cells of a line but the sparsity."""
    yield line.name
    yield line.accuracy
    yield line.seeds
    yield (
        "best IMP" if line.status == "reference" else line.difference + (f" ({line.interval})" if line.interval else "")
    )
    yield line.time
    for ratio in (line.given, line.end_to_end):
        claimed = line.matched or ratio in ("baseline", "–")
        yield ratio if claimed else f"({ratio})"
    yield line.budgeted


def as_tables(report: Report) -> list[Table]:
    """For a terminal: verdicts, then accuracy and cost of every budget, then what failed and what is missing."""
    tables = [_verdicts(report), _budgets(report)] if report.runs else []
    limits = (*gaps(report), *cautions(report))
    if limits:
        table = Table(title="Read with care", box=None, show_header=False)
        table.add_column(overflow="fold")
        for text in limits:
            table.add_row(escape(f"- {text}"))
        tables.append(table)
    if report.failures:
        tables.append(_failures(report))
    return tables


def _verdicts(report: Report) -> Table:
    heads = "\n".join(headline(report, level) for level in reversed(report.levels))
    table = _table(
        f"{report.suite.name}: {stamp_line(report)}", f"{heads}\n\n{legend(report)} {PARENTHESES}", (*COLUMNS, *RATIOS)
    )
    for level in report.levels:
        for line in verdict_lines(report, level):
            table.add_row(sparsity_text(level.sparsity), *(escape(cell) for cell in _cells(line)))
        table.add_section()
    return table


def _budgets(report: Report) -> Table:
    columns = (
        "sparsity",
        "method",
        "test accuracy, %",
        "n",
        "lower bound",
        "verdict",
        "epochs",
        "time",
        "four factors",
    )
    caption = (
        "Lower bound: one-sided 95 % bound of the difference to the best IMP variant. Epochs are dense-equivalent."
    )
    table = _table("Every budget", caption, columns)
    for level in report.levels:
        for entry in level.entries:
            cost = entry.checkpoint
            table.add_row(
                sparsity_text(level.sparsity),
                escape("\n".join((name_of(entry.method), *notes(report, entry)))),
                spread(entry.accuracy),
                str(len(entry.seeds)),
                points(entry.judgement.bound if entry.judgement else None),
                verdict_of(level, entry),
                number(cost.work.mean if cost.work else None),
                seconds_text(cost.seconds.mean if cost.seconds else None),
                " ".join(factor_texts(entry.saving)),
            )
        table.add_section()
    return table


def _failures(report: Report) -> Table:
    table = _table("Failed runs", "", ("sparsity", "method", "seed", "error"))
    for failure in report.failures:
        error = failure.error + (" (another attempt finished)" if failure.recovered else "")
        cells = (sparsity_text(failure.sparsity), name_of(failure.method), str(failure.seed), error)
        table.add_row(*(escape(cell) for cell in cells))
    return table


def _table(title: str, caption: str, columns: tuple[str, ...]) -> Table:
    table = Table(
        title=escape(title), caption=escape(caption), caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in columns:
        left = column in ("sparsity", "method", "verdict", "error")
        table.add_column(column, overflow="fold", justify="left" if left else "right")
    return table
