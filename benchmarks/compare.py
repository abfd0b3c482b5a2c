# SPDX-License-Identifier: Apache-2.0
"""The main job: run methods x sparsities x seeds from the same dense networks and write a row for each run.

A row is identified by the hash of its configuration and not run again. Masks, epochs and learning rates are fixed by the
recipe, so nothing is selected on the validation or the test set; the test accuracy is that of the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from sparsekit.benchmarks.chains import in_chains
from sparsekit.benchmarks.claims import Claims
from sparsekit.benchmarks.engine import Workbench
from sparsekit.benchmarks.environment import environment
from sparsekit.benchmarks.methods import check_method
from sparsekit.benchmarks.one_run import Progress, Silent, head, keeper_of, run_model, total_steps
from sparsekit.benchmarks.recipe import MAX_SEEDS, Recipe, RunConfig, as_json
from sparsekit.benchmarks.rows import Row, append_row, rows_so_far
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
    failed runs are tried again next time. Several processes may work in one folder: each run is done by one of them, and
    what others are still at is missing from what this one returns.
    """
    configs, folder, progress = list(configs), Path(out), progress or Silent()
    with closing(Claims(folder)) as claims:
        job = _Job(folder, progress, claims, bench, on_row)
        for config, rungs in in_chains(configs).items():
            # What another process is at is left to it.
            with claims.mine(config.id) as mine:
                if mine:
                    job.do(config, rungs)
        known = job.known()
    return [known[config.id] for config in configs if config.id in known]


@dataclass
class _Job:
    """A comparison at work in a folder."""

    folder: Path
    progress: Progress
    claims: Claims
    bench: Workbench | None
    on_row: Callable[[Row], None] | None
    failed: dict[str, Row] = field(default_factory=dict)

    def known(self) -> dict[str, Row]:
        """Rows by run: finished ones, and what failed here."""
        earlier = rows_so_far(self.folder / ROWS)
        return self.failed | {row["id"]: row for row in earlier if "result" in row and "id" in row}

    def do(self, config: RunConfig, rungs: Sequence[RunConfig]) -> None:
        """Run ``config`` unless it and all ``rungs`` have rows; what has one is told as skipped."""
        known = self.known()
        done = {c: known[c.id] for c in (*rungs, config) if c.id in known and _same_recipe(known[c.id], c.recipe)}
        for run, row in done.items():
            self._tell(run, row, skipped=True)
        if config in done:
            # The long run is done, so rungs that have no row were never asked for before.
            for rung in rungs:
                if rung not in done:
                    self._run(rung, ())
        else:
            self._run(config, [rung for rung in rungs if rung not in done])

    def _run(self, config: RunConfig, rungs: Sequence[RunConfig]) -> None:
        self.bench = self.bench or Workbench(config.recipe, self.folder)
        self.bench.claims = self.claims
        left = {rung.id: rung for rung in rungs}

        def passed(rung: RunConfig, row: Row) -> None:
            del left[rung.id]
            self._add(rung, row)

        row = _attempt(config, self.bench, self.progress, rungs, passed)
        self._add(config, row)
        if "result" in row:
            keeper_of(config, self.bench).remove()
        for rung in left.values():
            if "result" in row:  # asked for since, when the run was past it
                self._run(rung, ())
            else:  # a run of its own would have come to the same end
                self._add(rung, row | head(rung))

    def _add(self, config: RunConfig, row: Row) -> None:
        append_row(self.folder / ROWS, row)
        if "error" in row:
            self.failed[config.id] = row
        self._tell(config, row, skipped=False)

    def _tell(self, config: RunConfig, row: Row, skipped: bool) -> None:
        self.progress.finished(config, row, skipped)
        if self.on_row is not None:
            self.on_row(row)


def _same_recipe(row: Row, recipe: Recipe) -> bool:
    """Was the row made under these settings? The id leaves out defaults, and these may have been others then."""
    return all(row["config"].get(name, value) == value for name, value in as_json(recipe).items())


def _attempt(
    config: RunConfig,
    bench: Workbench,
    progress: Progress,
    rungs: Sequence[RunConfig],
    on_rung: Callable[[RunConfig, Row], None],
) -> Row:
    try:
        return run_model(config, bench, progress, rungs, on_rung)[1]
    except (ValueError, RuntimeError) as error:  # RuntimeError: what torch raises for shapes and for lack of memory
        return head(config) | {"error": str(error), "environment": environment()}
