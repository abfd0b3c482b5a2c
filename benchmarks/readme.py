# SPDX-License-Identifier: Apache-2.0
"""Fills the tables of README.md and of docs from the rows under benchmarks/results: no row, no claim.

A table stands between ``<!-- table:NAME -->`` and ``<!-- /table -->``; NAME is a key of TABLES, or on the page of a method
``paper-METHOD`` for what the papers print and ``ours-METHOD`` for what the rows say.
``python -m sparsekit.benchmarks.readme`` rewrites the files, ``--check`` only tells whether it would change.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sparsekit.benchmarks.methods import METHODS
from sparsekit.benchmarks.reporting.cards import our_table, paper_table
from sparsekit.benchmarks.reporting.findings import CHECKPOINT, PRETRAINING
from sparsekit.benchmarks.reporting.kernels import kernel_table, topk_table
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
from sparsekit.benchmarks.rows import Row, read_rows
from sparsekit.benchmarks.speedup_report import speedup_markdown
from sparsekit.benchmarks.speedup_suites import budgets, chosen_suite
from sparsekit.benchmarks.statistics import MINIMUM_PAIRS
from sparsekit.tensor_file import replace_file

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"
DOCUMENTS = (README, DOCS / "kernels.md", DOCS / "results.md", *sorted((DOCS / "methods").glob("*.md")))

MARKER = re.compile(r"(<!-- table:([\w-]+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)


def speedup_table(rows: Iterable[Row], suite: str, **settings: Any) -> str:
    """What the rows of a suite of ``sparsekit speedup`` say; EMPTY without rows. settings: of its recipe, as it was run."""
    chosen = chosen_suite({"suite": suite, "device": "cpu", **settings})
    own = {config.id for config in chosen.configs()}
    found = [row for row in rows if row.get("id") in own]
    return speedup_markdown(found, chosen) if found else EMPTY


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
    return "\n".join(_group(group) for group in summarise(chosen).groups) or EMPTY


SMALL_METHODS = ",".join(
    (
        *("imp", "omp", "dense@2", "spode", "bip-cubic"),
        *budgets(("imp-budget", "gmp", "dpf", "bip-1pass"), (0.25, 0.5, 1, 2, 4)),
        *budgets(("bip",), (0.5, 1, 2)),
    )
)
"""What the rows of the suite "small" are of; its budgets have become finer since."""

SPEEDUPS: dict[str, dict[str, Any]] = {
    "speedup-smoke": {"suite": "smoke"},
    "speedup-small": {"suite": "small", "data": ".data/cifar10", "methods": SMALL_METHODS},
    "speedup-ten": {
        "suite": "small",
        "data": ".data/cifar10",
        "methods": "imp-budget,imp-budget@2,imp-budget@4,gmp,gmp@2,bip-1pass,bip-1pass@2",
        "seeds": 10,
    },
    "speedup-fresh": {
        "suite": "small",
        "data": ".data/cifar10",
        "methods": "imp-budget@2,gmp,gmp@1.25,gmp@1.5,bip-1pass,bip-1pass@1.25,bip-1pass@1.5",
        "seeds": 20,
        "first_seed": 10,
    },
    "speedup-schedule": {"suite": "smoke", "methods": "imp,bip@0.625", "epochs": 16, "sparsity": "0.488,0.866"},
    "speedup-quick": {
        "suite": "quick",
        "data": ".data/cifar10",
        "limit": 3000,
        "image_size": 16,
        "epochs": 2,
        "dense_epochs": 4,
        "seeds": 1,
    },
    "speedup-ablate": {
        "suite": "ablate",
        "data": "digits",
        "network": "convnet",
        "batch_size": 64,
        "sparsity": "0.945,0.986",
    },
}
"""Options of ``sparsekit speedup`` behind each table."""

TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "compare-digits": lambda rows: compare_table(rows, "digits", "convnet"),
    "compare-methods": lambda rows: compare_table(
        [r for r in rows if r.get("sparsity") == 0.945 and r.get("config", {}).get("epochs") == 6], "digits", "convnet"
    ),
    "compare-mlp": lambda rows: compare_table(rows, "digits", "mlp"),
    "compare-cifar10": lambda rows: compare_table(rows, "cifar10", "resnet20"),
    **{name: partial(speedup_table, **settings) for name, settings in SPEEDUPS.items()},
    "kernels": kernel_table,
    "kernels-ours": lambda rows: kernel_table(row for row in rows if str(row.get("provider")).startswith("sparsekit")),
    "steps": lambda rows: kernel_table(
        row for row in rows if row.get("bench") in ("step", "bip iteration", "overhead")
    ),
    "topk": topk_table,
}


def fill(text: str, rows: Sequence[Row]) -> str:
    """The text with every table between markers made anew.

    Raises:
        ValueError: a marker names no table or is not closed.
    """
    opened, closed = text.count("<!-- table:"), text.count("<!-- /table -->")
    if not len(MARKER.findall(text)) == opened == closed:
        raise ValueError(f"fill: text: expected every table marker closed, got {opened} opened and {closed} closed")

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{_made(match[2], rows)}\n{match[4]}"

    return MARKER.sub(table, text)


def _made(name: str, rows: Sequence[Row]) -> str:
    kind, _, method = name.partition("-")
    if kind in ("paper", "ours") and method in METHODS:
        return paper_table(method) if kind == "paper" else our_table(rows, method)
    if name not in TABLES:
        raise ValueError(f"fill: text: expected a table among {', '.join(TABLES)}, or ours-METHOD, got {name!r}")
    return TABLES[name](rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 if --check finds the file stale, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m sparsekit.benchmarks.readme", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a table is stale")
    parser.add_argument("--readme", type=Path, nargs="+", default=DOCUMENTS, help="files with the markers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with .jsonl files")
    options = parser.parse_args(arguments)
    for document in options.readme:
        if not document.is_file():
            parser.error(f"--readme: expected a file, got {document}")
    rows = read_rows(options.results) if options.results.exists() else []
    return max([_renew(document, rows, options.check) for document in options.readme])


def _renew(document: Path, rows: Sequence[Row], check: bool) -> int:
    old = document.read_text(encoding="utf-8")
    new = fill(old, rows)
    if new == old:
        return 0
    if check:
        print(f"{document}: tables are stale; run python -m sparsekit.benchmarks.readme", file=sys.stderr)
        return 1

    def write(target: str) -> None:
        Path(target).write_text(new, encoding="utf-8")
        shutil.copymode(document, target)

    replace_file(document, write)
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
