# SPDX-License-Identifier: Apache-2.0
"""One run of a comparison: from the dense network of its seed, through pruner and fine-tuning, to the finished row.

A run that is killed or interrupted goes on from its last checkpoint, in whichever phase it was, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import nn

from sparsekit.benchmarks.chains import passed_at
from sparsekit.benchmarks.dense_file import Dense
from sparsekit.benchmarks.engine import Workbench
from sparsekit.benchmarks.environment import environment
from sparsekit.benchmarks.keeper import Keeper, Watch
from sparsekit.benchmarks.mask_files import keep_masks
from sparsekit.benchmarks.masking import sparsify_for
from sparsekit.benchmarks.meter import Meter
from sparsekit.benchmarks.methods import Start, as_method
from sparsekit.benchmarks.recipe import RunConfig, as_json
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.spent import Spent
from sparsekit.benchmarks.training import OnStep, ignore
from sparsekit.benchmarks.warming import warm_up_for
from sparsekit.mask import Masks
from sparsekit.nn import masks
from sparsekit.pruners.base import BasePruner, Metrics
from sparsekit.pruners.capture import captured

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
    recipe = config.own_recipe
    tail = recipe.epochs * per_epoch if method.follows else 0
    return method.steps(recipe, config.sparsity, per_epoch) + tail


def run_model(
    config: RunConfig,
    bench: Workbench,
    progress: Progress | None = None,
    rungs: Sequence[RunConfig] = (),
    on_rung: Callable[[RunConfig, Row], None] = lambda config, row: None,
) -> tuple[nn.Module, Row]:
    """Run one configuration from the dense network of its seed; returns the pruned, masked model and the finished row.

    Args:
        rungs: runs of the same method and seed at lower sparsities that this one passes through, see ``chains``.
        on_rung: gets each of them with its finished row, as soon as it is passed; after a kill perhaps once more.

    Raises:
        ValueError: something about the configuration, or a loss that is not finite.
    """
    progress = progress or Silent()
    if config.recipe != bench.recipe:
        raise ValueError("compare: configs: expected the recipe of the workbench for every run, got another one")
    recipe, method = config.own_recipe, as_method(config.method)
    dense = bench.dense(config.seed, progress.dense(config.seed, bench.dense_steps))
    start = start_of(config, bench, dense)
    model = start.model
    on_step = progress.run(config, total_steps(config, bench))
    warm_up = bench.warm_up() + warm_up_for(config, bench)
    begun = (keeper := keeper_of(config, bench)).begun()
    meter, spent = Meter(recipe.device, whole=not begun), Spent(**begun.get("spent", {}))
    spent.warm_up += warm_up
    run = _Run(config, bench, start, dense, keeper, meter, on_step, spent, begun.get("before"))
    if begun.get("phase") == FINETUNE:
        for _ in range(method.steps(recipe, config.sparsity, bench.steps_per_epoch)):
            on_step()
    else:
        _prune(run, PRUNE, method.build, rungs, on_rung)
        if method.follows or config.method.startswith("bip"):
            run.before = bench.accuracy(model, "test")
        if method.between is not None:
            method.between(start, config.seed)
    if method.then is not None:
        _prune(run, FINETUNE, method.then)
    if method.finetune:
        steps = recipe.epochs * bench.steps_per_epoch
        also = {"spent": asdict(spent), "before": run.before}
        took = bench.fit(model, config.seed, FINETUNE, steps, keeper, on_step, **also)
        spent.add_training(steps, recipe.batch_size, *took)
    return model, _row(run, config, spent)


def start_of(config: RunConfig, bench: Workbench, dense: Dense) -> Start:
    """Where a run starts: a network in train mode that holds the dense weights, sparsified."""
    model = bench.network(config.seed)
    model.load_state_dict(dense.state)
    sparsify_for(model, config.recipe)
    model.train()
    sizes = bench.steps_per_epoch, bench.images
    return Start(model, bench.loss, dense.init, config.sparsity, config.own_recipe, *sizes)


@dataclass
class _Run:
    """What the parts of a run share; before: test accuracy of what is pruned but not trained, if that exists."""

    config: RunConfig
    bench: Workbench
    start: Start
    dense: Dense
    keeper: Keeper
    meter: Meter
    on_step: OnStep
    spent: Spent
    before: float | None


def keeper_of(config: RunConfig, bench: Workbench) -> Keeper:
    """Keeper of a run, under ``out/unfinished``."""
    identity = {"method": config.method, "sparsity": config.sparsity, "seed": config.seed}
    return bench.keeper(bench.out / "unfinished" / f"{config.id}.safetensors", identity)


def _prune(
    run: _Run,
    phase: int,
    build: Callable[[Start], BasePruner],
    rungs: Sequence[RunConfig] = (),
    on_rung: Callable[[RunConfig, Row], None] = lambda config, row: None,
) -> None:
    """Run the pruner of a phase, or go on with it."""
    config, bench, model, keeper = run.config, run.bench, run.start.model, run.keeper
    recipe, method, begun = config.own_recipe, as_method(config.method), keeper.begun()
    begun = begun if begun.get("phase") == phase else {}
    bench.seed_all(config.seed, phase)
    watch = Watch(bench.clock, keeper)
    pruner, seconds, captures = build(run.start), watch.seconds, 0.0
    if begun:
        seconds, run.before, captures = begun["seconds"], begun["before"], begun.get("captures", 0.0)
        keeper.restore(model, pruner)
        for _ in range(pruner.cost.steps):
            run.on_step()
    elif config.method == "oneshot":
        run.before = bench.accuracy(model, "test")
    watch, ends = Watch(bench.clock, keeper, seconds, captures), passed_at(pruner, rungs)
    ode = min(recipe.ode_batch, bench.epoch_images) if method.ode_batches and phase == PRUNE else None
    batches = bench.batches(config.seed, phase, ode, begun.get("batch", 0))

    def after(metrics: Metrics) -> None:
        def state() -> dict[str, Any]:
            metrics.read()  # what is wrong on the device must not be taken for a good state
            values = {"phase": phase, "batch": batches.step, "before": run.before, **watch.state()}
            return {"model": model, "pruner": pruner, "spent": asdict(run.spent), **values}

        run.on_step()
        if rung := ends.get(pruner.cost.steps):
            metrics.read()
            with watch.paused():
                on_rung(rung, _row(run, rung, run.spent.plus(pruner, watch.seconds, watch.captures)))
        keeper.offer(state)

    with keeper.running():
        (captured(pruner, watch.on_capture) if recipe.graphs else pruner).fit(_Endless(batches), after)
    run.spent.add_pruner(pruner, watch.seconds, watch.captures)


class _Endless:
    """An endless stream as the loader of ``fit``, which asks for a new pass only when the stream ends."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self._batches


def _row(run: _Run, config: RunConfig, spent: Spent) -> Row:
    final, bench, measured = masks(run.start.model), run.bench, run.meter.row()
    begin, size = bench.evaluation_seconds, bench.data.image_size
    if bench.keep_masks:
        keep_masks(bench.out, config.id, run.start.model, (bench.data.channels, size, size))
    result = {**counted(final), **bench.accuracies(run.start.model), "test_accuracy_before": run.before}
    evaluated = {"evaluation_seconds": bench.evaluation_seconds - begin}
    return head(config) | {
        "dense": run.dense.row,
        "result": result,
        "cost": spent.row(bench.epoch_images, bench.flops) | measured | evaluated,
        "environment": environment(),
    }


def counted(final: Masks) -> Row:
    """What a row says of the masks that a run ends with."""
    found = {"kept": final.count(), "total": final.numel, "sparsity": final.sparsity}
    return {**found, "mask_hash": final.hash()[:16]}


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
