# SPDX-License-Identifier: Apache-2.0
"""Fills the tables of README.md and of docs from the rows under benchmarks/results: no row, no claim.

A table stands between ``<!-- table:NAME -->`` and ``<!-- /table -->``; NAME is a key of TABLES, or on the page of a method
``paper-METHOD`` for what the papers print and ``ours-METHOD`` for what the rows say.
``python -m sparsekit.benchmarks.readme`` rewrites the files, ``--check`` only tells whether it would change.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sparsekit.benchmarks.collapse import collapse_table
from sparsekit.benchmarks.families.ablations import ABLATIONS, SWEPT
from sparsekit.benchmarks.methods import METHODS
from sparsekit.benchmarks.reporting.cards import our_table, paper_table
from sparsekit.benchmarks.reporting.compact import compact_table
from sparsekit.benchmarks.reporting.compare_table import compare_table, pairs_table
from sparsekit.benchmarks.reporting.kernels import kernel_table, topk_table
from sparsekit.benchmarks.reporting.markdown import EMPTY
from sparsekit.benchmarks.rows import Row, rows_so_far
from sparsekit.benchmarks.speedup_report import speedup_markdown
from sparsekit.benchmarks.speedup_suites import RUNGS, SUITES, budgets, chosen_suite
from sparsekit.tensor_file import replace_text

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"
PAGES = tuple(DOCS / name for name in ("bip.md", "compact.md", "kernels.md", "results.md"))
DOCUMENTS = (README, *PAGES, *sorted((DOCS / "methods").glob("*.md")))

MARKER = re.compile(r"(<!-- table:([\w-]+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)


def speedup_table(rows: Iterable[Row], against: str = "", **settings: Any) -> str:
    """What the rows of a suite of ``sparsekit speedup`` say; EMPTY without rows.

    settings: of its recipe, as it was run. against: rather every method on every budget, paired with this one.
    """
    chosen = chosen_suite({"device": "cpu", **settings})
    own = {config.id for config in chosen.configs()}
    found = [row for row in rows if row.get("id") in own]
    if against:
        return pairs_table(found, against)
    return speedup_markdown(found, chosen) if found else EMPTY


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

SPEEDUPS["fresh-imp"] = SPEEDUPS["speedup-fresh"] | {"against": "imp-budget@2"}
SPEEDUPS["fresh-gmp"] = SPEEDUPS["speedup-fresh"] | {"against": "gmp", "methods": "gmp,bip-1pass"}

SMALL = SUITES["small"].recipe


def _small(row: Row, structure: str = "unstructured") -> bool:
    """A run of compare with the recipe of the suite "small" but for the structure, on its own budget, on the first seeds."""
    config = row.get("config", {})
    same = row.get("method") not in {**ABLATIONS, **SWEPT} and all(
        config.get(name) == getattr(SMALL, name) for name in ("network", "limit", "epochs", "dense_epochs")
    )
    found = (config.get("structure") or "unstructured", row.get("seed") in range(3), "@" in str(row.get("method")))
    return same and config.get("ode_batch") == SMALL.ode_batch and found == (structure, True, False)


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "compare-digits": lambda rows: compare_table(rows, "digits", "convnet"),
    "compare-methods": lambda rows: compare_table(
        [r for r in rows if r.get("sparsity") == 0.945 and r.get("config", {}).get("epochs") == 6], "digits", "convnet"
    ),
    "compare-mlp": lambda rows: compare_table(rows, "digits", "mlp"),
    "compare-small": lambda rows: compare_table(
        [r for r in rows if _small(r) and r.get("sparsity") == RUNGS[12]], "cifar10", "resnet8"
    ),
    **{
        f"compare-{structure}": lambda rows, structure=structure: compare_table(
            [r for r in rows if _small(r, structure)], "cifar10", "resnet8"
        )
        for structure in ("filter", "channel")
    },
    "compare-cifar10": lambda rows: compare_table(rows, "cifar10", "resnet20"),
    **{name: partial(speedup_table, **settings) for name, settings in SPEEDUPS.items()},
    "collapse": collapse_table,
    "compact": compact_table,
    "kernels": lambda rows: kernel_table(row for row in rows if row.get("bench") != "compact"),
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
    rows = rows_so_far(options.results)
    return max([_renew(document, rows, options.check) for document in options.readme])


def _renew(document: Path, rows: Sequence[Row], check: bool) -> int:
    old = document.read_text(encoding="utf-8")
    new = fill(old, rows)
    if new == old:
        return 0
    if check:
        print(f"{document}: tables are stale; run python -m sparsekit.benchmarks.readme", file=sys.stderr)
        return 1
    replace_text(document, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
