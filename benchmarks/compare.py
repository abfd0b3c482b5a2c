# SPDX-License-Identifier: Apache-2.0
"""The main job: run methods x sparsities x seeds from the same dense networks and write a row for each run.

A row is identified by the hash of its configuration and not run again. Masks, epochs and learning rates are fixed by the
recipe, so nothing is selected on the validation or the test set; the test accuracy is that of the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from sparsekit.benchmarks.engine import OnStep, Workbench, accuracy, clock, cross_entropy, ignore, make_sgd, train
from sparsekit.benchmarks.environment import environment
from sparsekit.benchmarks.methods import Start, as_method
from sparsekit.benchmarks.recipe import Recipe, RunConfig, as_json
from sparsekit.benchmarks.rows import Row, append_row, read_rows
from sparsekit.benchmarks.spent import Spent
from sparsekit.nn import masks, sparsify

ROWS = "rows.jsonl"


class Progress(Protocol):
    """Where a comparison tells how far it is."""

    def dense(self, seed: int, steps: int) -> OnStep:
        """The dense training of a seed begins; returns the callback for each of its steps."""
        ...

    def run(self, config: RunConfig, steps: int) -> OnStep:
        """A run begins; returns the callback for each of its steps."""
        ...

    def finished(self, config: RunConfig, row: Row, skipped: bool) -> None:
        """A run is done, has failed (``"error" in row``) or was skipped because its row exists."""
        ...


@dataclass
class Silent:
    """Progress that nobody watches."""

    def dense(self, seed: int, steps: int) -> OnStep:
        return ignore

    def run(self, config: RunConfig, steps: int) -> OnStep:
        return ignore

    def finished(self, config: RunConfig, row: Row, skipped: bool) -> None:
        return None


def grid(methods: Iterable[str], sparsities: Iterable[float], seeds: int, recipe: Recipe) -> list[RunConfig]:
    """All runs, seed by seed, then sparsity by sparsity. Raises ValueError on unknown methods or an empty grid.

    The methods of one seed and sparsity follow each other, so that a machine that gets slower or faster meets them alike.
    """
    names, levels = list(methods), list(sparsities)
    for name in names:
        as_method(name)
    if not names or not levels or seeds < 1:
        expected = "at least one method, one sparsity and one seed"
        raise ValueError(f"compare: expected {expected}, got {names}, {levels}, seeds={seeds}")
    runs = (RunConfig(m, s, seed, recipe) for seed in range(seeds) for s in levels for m in names)
    return list(dict.fromkeys(runs))  # a method or sparsity that is named twice runs once


def total_steps(config: RunConfig, bench: Workbench) -> int:
    """Steps that a run will take, fine-tuning included."""
    method, per_epoch = as_method(config.method), bench.steps_per_epoch
    tail = config.recipe.epochs * per_epoch if method.finetune else 0
    return method.steps(config.recipe, config.sparsity, per_epoch) + tail


def run_model(config: RunConfig, bench: Workbench, progress: Progress | None = None) -> tuple[nn.Module, Row]:
    """Run one configuration from the dense network of its seed; returns the pruned, masked model and the finished row.

    Raises:
        ValueError: something about the configuration, or a loss that is not finite.
    """
    progress = progress or Silent()
    recipe, method = config.recipe, as_method(config.method)
    if recipe != bench.recipe:
        raise ValueError("compare: configs: expected the recipe of the workbench for every run, got another one")
    dense = bench.dense(config.seed, progress.dense(config.seed, recipe.dense_epochs * bench.steps_per_epoch))
    model = bench.network(config.seed)
    model.load_state_dict(dense.state)
    sparsify(model, skip=recipe.skip)
    model.train()
    on_step = progress.run(config, total_steps(config, bench))
    spent, before = Spent(), None
    bench.warm_up()
    bench.seed_all(config.seed, phase=1)
    start = clock(recipe.device)
    given = Start(model, cross_entropy, dense.init, config.sparsity, recipe, bench.steps_per_epoch, bench.images)
    pruner = method.build(given)
    ode = min(recipe.ode_batch, bench.epoch_images) if method.ode_batches else None
    if config.method == "oneshot":
        spent.seconds += clock(recipe.device) - start
        before = accuracy(model, bench.data, "test")
        start = clock(recipe.device)
    pruner.fit(_Endless(bench.batches(config.seed, 1, ode)), lambda metrics: on_step())
    spent.add_pruner(pruner, clock(recipe.device) - start)
    if method.finetune:
        before = accuracy(model, bench.data, "test")
        _finetune(model, config, bench, spent, on_step)
    elif config.method.startswith("bip"):
        before = accuracy(model, bench.data, "test")
    return model, _row(config, bench, model, dense.row, spent, before)


class _Endless:
    """An endless stream as the loader of ``fit``, which asks for a new pass only when the stream ends."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self._batches


def _finetune(model: nn.Module, config: RunConfig, bench: Workbench, spent: Spent, on_step: OnStep) -> None:
    recipe = config.recipe
    steps = recipe.epochs * bench.steps_per_epoch
    bench.seed_all(config.seed, phase=2)
    start = clock(recipe.device)
    optimizer = make_sgd(recipe)(list(model.parameters()))
    train(model, bench.batches(config.seed, phase=2), optimizer, steps, on_step=on_step)
    spent.add_training(steps, recipe.batch_size, clock(recipe.device) - start)


def _row(
    config: RunConfig,
    bench: Workbench,
    model: nn.Module,
    dense: dict[str, Any],
    spent: Spent,
    before: float | None,
) -> Row:
    final = masks(model)
    result = {
        "kept": final.count(),
        "total": final.numel,
        "sparsity": final.sparsity,
        "mask_hash": final.hash()[:16],
        "val_accuracy": accuracy(model, bench.data, "val"),
        "test_accuracy": accuracy(model, bench.data, "test"),
        "test_accuracy_before": before,
    }
    return _head(config) | {
        "dense": dense,
        "result": result,
        "cost": spent.row(bench.epoch_images),
        "environment": environment(),
    }


def _head(config: RunConfig) -> Row:
    return {
        "schema": 1,
        "kind": "compare",
        "id": config.id,
        "method": config.method,
        "sparsity": config.sparsity,
        "seed": config.seed,
        "config": as_json(config.recipe),
    }


def compare(
    configs: Iterable[RunConfig],
    out: str | Path,
    progress: Progress | None = None,
    bench: Workbench | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Run what has no finished row in ``out/rows.jsonl`` yet; returns the rows of all ``configs``, old and new.

    A run that fails leaves a row with "error" and the comparison goes on; failed runs are tried again next time.
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
        return _head(config) | {"error": str(error), "environment": environment()}
