# SPDX-License-Identifier: Apache-2.0
"""The main job: run methods x sparsities x seeds from the same dense networks and write a row for each run.

A row is identified by the hash of its configuration and not run again. Masks, epochs and learning rates are fixed by the
recipe, so nothing is selected on the validation or the test set; the test accuracy is that of the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from sparsekit.benchmarks.engine import Workbench
from sparsekit.benchmarks.environment import environment
from sparsekit.benchmarks.methods import check_method
from sparsekit.benchmarks.one_run import Progress, Silent, head, keeper_of, run_model, total_steps
from sparsekit.benchmarks.recipe import MAX_SEEDS, Recipe, RunConfig, as_json
from sparsekit.benchmarks.rows import Row, append_row, read_rows
from sparsekit.pruners.checks import checked_count

__all__ = ["Progress", "Silent", "Workbench", "compare", "grid", "run_model", "total_steps"]

ROWS = "rows.jsonl"


def grid(methods: Iterable[str], sparsities: Iterable[float], seeds: int, recipe: Recipe) -> list[RunConfig]:
    """All runs, seed by seed, then sparsity by sparsity. Raises ValueError on unknown methods or an empty grid.

    The methods of one seed and sparsity follow each other, so that a machine that gets slower or faster meets them alike.
    """
    names, levels = list(methods), list(sparsities)
    for name in names:
        check_method(name, recipe)
    if not names or not levels or seeds < 1:
        expected = "at least one method, one sparsity and one seed"
        raise ValueError(f"compare: expected {expected}, got {names}, {levels}, seeds={seeds}")
    checked_count("compare", "seeds", seeds, most=MAX_SEEDS)
    runs = (RunConfig(m, s, seed, recipe) for seed in range(seeds) for s in levels for m in names)
    return list(dict.fromkeys(runs))  # a method or sparsity that is named twice runs once


def compare(
    configs: Iterable[RunConfig],
    out: str | Path,
    progress: Progress | None = None,
    bench: Workbench | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Run what has no finished row in ``out/rows.jsonl`` yet; returns the rows of all ``configs``, old and new.

    A run that was not finished goes on where it was. One that fails leaves a row with "error" and the comparison goes on;
    failed runs are tried again next time.
    """
    configs, folder, progress = list(configs), Path(out), progress or Silent()
    folder.mkdir(parents=True, exist_ok=True)
    earlier = read_rows(folder / ROWS) if (folder / ROWS).exists() else []
    known = {row["id"]: row for row in earlier if "result" in row}
    rows = []
    for config in configs:
        row, skipped = known.get(config.id), True
        if row is None or not _same_recipe(row, config.recipe):
            bench = bench or Workbench(config.recipe, folder)
            row, skipped = _attempt(config, bench, progress), False
            append_row(folder / ROWS, row)
            if "result" in row:
                keeper_of(config, bench).remove()
        rows.append(row)
        progress.finished(config, row, skipped)
        if on_row is not None:
            on_row(row)
    return rows


def _same_recipe(row: Row, recipe: Recipe) -> bool:
    """Was the row made under these settings? The id leaves out defaults, and these may have been others then."""
    return all(row["config"].get(name, value) == value for name, value in as_json(recipe).items())


def _attempt(config: RunConfig, bench: Workbench, progress: Progress) -> Row:
    try:
        return run_model(config, bench, progress)[1]
    except (ValueError, RuntimeError) as error:  # RuntimeError: what torch raises for shapes and for lack of memory
        return head(config) | {"error": str(error), "environment": environment()}
