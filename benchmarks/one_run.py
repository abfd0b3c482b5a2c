# SPDX-License-Identifier: Apache-2.0
"""One run of a comparison: from the dense network of its seed, through pruner and fine-tuning, to the finished row.

A run that is killed or interrupted goes on from its last checkpoint, in whichever phase it was, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import nn

from sparsekit.benchmarks.engine import Workbench, accuracy
from sparsekit.benchmarks.environment import environment
from sparsekit.benchmarks.keeper import Keeper, Watch
from sparsekit.benchmarks.masking import sparsify_for
from sparsekit.benchmarks.methods import Start, as_method
from sparsekit.benchmarks.recipe import RunConfig, as_json
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.spent import Spent
from sparsekit.benchmarks.training import OnStep, cross_entropy, ignore
from sparsekit.nn import masks
from sparsekit.pruners.base import BasePruner, Metrics

# The batches and random numbers of a run's phases; 0 is the dense training.
PRUNE, FINETUNE = 1, 2


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


def total_steps(config: RunConfig, bench: Workbench) -> int:
    """Steps that a run will take, fine-tuning included."""
    method, per_epoch = as_method(config.method), bench.steps_per_epoch
    tail = config.recipe.epochs * per_epoch if method.follows else 0
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
    sparsify_for(model, recipe)
    model.train()
    on_step = progress.run(config, total_steps(config, bench))
    bench.warm_up()
    keeper = keeper_of(config, bench)
    begun = keeper.begun()
    spent, before = Spent(**begun.get("spent", {})), begun.get("before")
    start = Start(model, cross_entropy, dense.init, config.sparsity, recipe, bench.steps_per_epoch, bench.images)
    work = _Work(config, bench, start, keeper, on_step, spent)
    if begun.get("phase") == FINETUNE:
        for _ in range(method.steps(recipe, config.sparsity, bench.steps_per_epoch)):
            on_step()
    else:
        ode = min(recipe.ode_batch, bench.epoch_images) if method.ode_batches else None
        before = _prune(work, PRUNE, method.build, ode)
        if method.follows or config.method.startswith("bip"):
            before = accuracy(model, bench.data, "test")
    if method.then is not None:
        _prune(work, FINETUNE, method.then, before=before)
    if method.finetune:
        steps = recipe.epochs * bench.steps_per_epoch
        also = {"spent": asdict(spent), "before": before}
        seconds = bench.fit(model, config.seed, FINETUNE, steps, keeper, on_step, **also)
        spent.add_training(steps, recipe.batch_size, seconds)
    return model, _row(config, bench, model, dense.row, spent, before)


def keeper_of(config: RunConfig, bench: Workbench) -> Keeper:
    """Keeper of a run, under ``out/unfinished``."""
    identity = {"method": config.method, "sparsity": config.sparsity, "seed": config.seed}
    return bench.keeper(bench.out / "unfinished" / f"{config.id}.safetensors", identity)


@dataclass
class _Work:
    """What the phases of a run share."""

    config: RunConfig
    bench: Workbench
    start: Start
    keeper: Keeper
    on_step: OnStep
    spent: Spent


def _prune(
    work: _Work,
    phase: int,
    build: Callable[[Start], BasePruner],
    ode: int | None = None,
    before: float | None = None,
) -> float | None:
    """Run a pruner, or go on with it; returns the test accuracy of what is pruned but not trained, if that exists.

    ode: size of its batches, where it is not the recipe's.
    """
    config, bench, keeper, model = work.config, work.bench, work.keeper, work.start.model
    begun = keeper.begun()
    begun = begun if begun.get("phase") == phase else {}
    bench.seed_all(config.seed, phase)
    watch = Watch(bench.clock, keeper)
    pruner = build(work.start)
    seconds = watch.seconds
    if begun:
        keeper.restore(model, pruner)
        seconds, before = begun["seconds"], begun["before"]
        for _ in range(pruner.cost.steps):
            work.on_step()
    elif config.method == "oneshot":
        before = accuracy(model, bench.data, "test")
    watch, spent = Watch(bench.clock, keeper, seconds), asdict(work.spent)
    batches = bench.batches(config.seed, phase, ode, begun.get("batch", 0))

    def after(metrics: Metrics) -> None:
        def state() -> dict[str, Any]:
            metrics.read()  # what is wrong on the device must not be taken for a good state
            values = {"phase": phase, "batch": batches.step, "seconds": watch.seconds, "before": before, "spent": spent}
            return {"model": model, "pruner": pruner, **values}

        work.on_step()
        keeper.offer(state)

    with keeper.running():
        pruner.fit(_Endless(batches), after)
    work.spent.add_pruner(pruner, watch.seconds)
    return before


class _Endless:
    """An endless stream as the loader of ``fit``, which asks for a new pass only when the stream ends."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self._batches


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
    return head(config) | {
        "dense": dense,
        "result": result,
        "cost": spent.row(bench.epoch_images),
        "environment": environment(),
    }


def head(config: RunConfig) -> Row:
    """What a row begins with: which run it is of."""
    return {
        "schema": 1,
        "kind": "compare",
        "id": config.id,
        "method": config.method,
        "sparsity": config.sparsity,
        "seed": config.seed,
        "config": as_json(config.recipe),
    }
