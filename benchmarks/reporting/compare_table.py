# SPDX-License-Identifier: Apache-2.0
"""Comparisons as markdown tables: one for each recipe, every method against a baseline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from sparsekit.benchmarks.reporting.findings import CHECKPOINT, PRETRAINING
from sparsekit.benchmarks.reporting.markdown import EMPTY, markdown
from sparsekit.benchmarks.reporting.origin import stamp, subject
from sparsekit.benchmarks.reporting.summary import Group, summarise
from sparsekit.benchmarks.reporting.wording import (
    MISSING,
    label,
    number,
    number_plain,
    points,
    points_range,
    seconds_text,
    sparsity_text,
    spread,
    times,
)
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.statistics import MINIMUM_PAIRS


def compare_table(rows: Iterable[Row], data: str, network: str) -> str:
    """Markdown tables of the comparisons of one network on one data set, one for each recipe; EMPTY without rows.

    Args:
        rows: rows of any kind.
        data: what the last part of "data" in the config starts with, be it a name or a folder; "-" and "_" aside.
        network: value of "network" in the config.
    """
    chosen = []
    for row in rows:
        config = row.get("config", {})
        name = Path(str(config.get("data"))).name.replace("-", "").replace("_", "").lower()
        if row.get("kind") == "compare" and name.startswith(data) and config.get("network") == network:
            chosen.append(row)
    return pairs_table(chosen)


def pairs_table(rows: Iterable[Row], baseline: str = "imp") -> str:
    """Markdown tables of comparisons, every method paired with ``baseline``; EMPTY without rows."""
    return "\n".join(_group(group) for group in summarise(rows, baseline).groups) or EMPTY


def _group(group: Group) -> str:
    base = label(group.baseline)
    header = (
        "sparsity",
        "method",
        "test accuracy, %",
        "before fine-tuning, %",
        "n",
        f"difference to {base}, points",
        "verdict",
        "epochs",
        "time",
        CHECKPOINT,
        PRETRAINING,
    )
    origin = "; ".join(f"{name} {value}" for name, value in stamp(group))
    dense = f"Dense: {spread(group.dense)} %, {number(group.dense_epochs)} epochs, {seconds_text(group.dense_seconds)}."
    legend = (
        f"{subject(group)}. {dense} Mean ± sd over n seeds; difference paired by seed with its 95 % "
        f"interval; verdict: one-sided 95 % test of a loss of at most {number_plain(100 * group.margin)} points, from "
        f"{MINIMUM_PAIRS} pairs on. Epochs are dense-equivalent. The last two columns are {base}'s time over the "
        f"method's: below 1 the method was slower. {origin}."
    )
    return f"{markdown(header, _lines(group), 'llrrrrlrrrr')}\n{legend}\n"


def _lines(group: Group) -> Iterator[tuple[str, ...]]:
    for sparsity in group.sparsities:
        for method in group.methods_at(sparsity):
            cell, speed = group.cell(method, sparsity), group.speedup(method, sparsity)
            head = (sparsity_text(sparsity), label(method))
            if cell is None:
                yield *head, *[MISSING] * 9
                continue
            difference, clocks = cell.difference, (speed.checkpoint, speed.pretraining) if speed else ()
            interval = f" ({points_range(difference.interval)})" if difference and difference.interval else ""
            ratios = [times(clock.seconds.value if clock.seconds else None) for clock in clocks] or [MISSING] * 2
            yield (
                *head,
                spread(cell.accuracy),
                spread(cell.before),
                str(cell.accuracy.n),
                points(difference.mean if difference else None) + interval,
                cell.verdict or MISSING,
                number(cell.work.mean),
                seconds_text(cell.seconds.mean),
                *ratios,
            )
