# SPDX-License-Identifier: Apache-2.0
"""The tables of a comparison for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple

from rich import box
from rich.markup import escape
from rich.table import Table

from sparsekit.benchmarks.reporting.findings import title
from sparsekit.benchmarks.reporting.origin import subject
from sparsekit.benchmarks.reporting.speedup import Speedup
from sparsekit.benchmarks.reporting.summary import Cell, Group, summarise
from sparsekit.benchmarks.reporting.wording import (
    MISSING,
    label,
    number,
    points,
    points_range,
    seconds_text,
    sparsity_text,
    spread,
    times,
)
from sparsekit.benchmarks.rows import Row


def render_table(rows: Iterable[Row], baseline: str = "imp") -> list[Table]:
    """For each recipe a table of accuracies, one of costs and speed-ups, and one of failed runs if there are any.

    Args:
        rows: rows of kind "compare"; other kinds are passed over.
        baseline: method that the others are compared with.

    Raises:
        ValueError: a row lacks a number.
    """
    tables = []
    for group in summarise(rows, baseline).groups:
        tables += [_accuracies(group), _costs(group)]
        if group.failures:
            tables.append(_failures(group))
    return tables


def _accuracies(group: Group) -> Table:
    base = label(group.baseline)
    caption = f"Mean ± sd over n seeds. Difference to {base}: paired, 95 % t interval. Verdict: one-sided 95 %."
    table = _table(
        f"{title(group)}\n{subject(group)}",
        caption,
        ("test accuracy, %", "n", f"difference to {base}, points", "verdict"),
    )
    for sparsity, method in _grid(group, table):
        cell = group.cell(method, sparsity)
        result = (spread(cell.accuracy), str(cell.accuracy.n)) if cell else (MISSING, "0")
        against = ("baseline", "") if method == group.baseline else _difference(cell)
        table.add_row(sparsity_text(sparsity), escape(label(method)), *result, *against)
    return table


def _difference(cell: Cell | None) -> tuple[str, str]:
    """Difference with its interval, and verdict."""
    if not cell or not cell.difference:
        return MISSING, MISSING
    interval = cell.difference.interval
    text = points(cell.difference.mean) + (f" ({points_range(interval)})" if interval else "")
    return text, cell.verdict or MISSING


def _costs(group: Group) -> Table:
    base = label(group.baseline)
    caption = (
        f"Ratios: time of {base} over time of the method; above 1 the method took less time. The first is the "
        "product of four factors: epochs, passes per step, time per pass, selection."
    )
    columns = ("epochs", "time", "given a dense checkpoint", "with pretraining on both sides", "four factors")
    table = _table("Cost", caption, columns)
    for sparsity, method in _grid(group, table):
        cell = group.cell(method, sparsity)
        cost = (number(cell.work.mean), seconds_text(cell.seconds.mean)) if cell else (MISSING, MISSING)
        ratios = ("baseline", "", "") if method == group.baseline else _ratios(group.speedup(method, sparsity))
        table.add_row(sparsity_text(sparsity), escape(label(method)), *cost, *ratios)
    return table


def _ratios(speed: Speedup | None) -> tuple[str, str, str]:
    """Both clocks and the factors."""
    if not speed:
        return MISSING, MISSING, MISSING
    given, counted = (clock.seconds.value if clock.seconds else None for clock in (speed.checkpoint, speed.pretraining))
    factors = " ".join(f"{value:.2f}" for value in astuple(speed.factors)) if speed.factors else MISSING
    return times(given), times(counted), factors


def _failures(group: Group) -> Table:
    table = _table("Failed runs", "", ("seed", "error"))
    for failure in group.failures:
        error = failure.error + (" (another attempt finished)" if failure.recovered else "")
        table.add_row(sparsity_text(failure.sparsity), escape(label(failure.method)), str(failure.seed), escape(error))
    return table


def _table(title_: str, caption: str, columns: Iterable[str]) -> Table:
    table = Table(
        title=escape(title_), caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in ("sparsity", "method", *columns):
        table.add_column(
            column, overflow="fold", justify="left" if column in ("method", "verdict", "error") else "right"
        )
    return table


def _grid(group: Group, table: Table) -> Iterator[tuple[float, str]]:
    """(sparsity, method) of every line, with a rule after each sparsity."""
    for sparsity in group.sparsities:
        for method in group.methods_at(sparsity):
            yield sparsity, method
        table.add_section()
