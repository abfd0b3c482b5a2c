# SPDX-License-Identifier: Apache-2.0
"""What a comparison will cost, before it starts: dense-equivalent epochs, and seconds from a short probe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparsekit.benchmarks.engine import Workbench
from sparsekit.benchmarks.methods import as_method, make_sgd
from sparsekit.benchmarks.recipe import RunConfig
from sparsekit.benchmarks.training import clock, step_of

PROBE_STEPS = 20


@dataclass(frozen=True)
class Forecast:
    """Predicted cost of one run after the dense network exists.

    dense_epochs: forward+backward passes over the training images. seconds: at the speed of the probe.
    """

    config: RunConfig
    dense_epochs: float
    seconds: float


def seconds_per_epoch(bench: Workbench) -> float:
    """Seconds of one epoch of dense training as the runs do it, from ``PROBE_STEPS`` steps after as many for warming up."""
    model = bench.network(seed=0)
    optimizer = make_sgd(bench.recipe)(list(model.parameters()))
    batches = bench.batches(seed=0, phase=9)
    take = step_of(model, optimizer, bench.loss, bench.recipe.graphs)
    for _ in range(PROBE_STEPS):
        take(next(batches))
    start = clock(bench.recipe.device)
    for _ in range(PROBE_STEPS):
        take(next(batches))
    return (clock(bench.recipe.device) - start) / PROBE_STEPS * bench.steps_per_epoch


def forecast(configs: Iterable[RunConfig], bench: Workbench) -> tuple[list[Forecast], float]:
    """One forecast per run, and the seconds that one dense network takes (needed once per seed)."""
    epoch = seconds_per_epoch(bench)
    rows = []
    for config in configs:
        passes = as_method(config.method).passes(config.own_recipe, config.sparsity, bench.epoch_images)
        rows.append(Forecast(config, passes, passes * epoch))
    return rows, bench.recipe.dense_epochs * epoch
