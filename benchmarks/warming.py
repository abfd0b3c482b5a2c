# SPDX-License-Identifier: Apache-2.0
"""The first steps of a method on a GPU, outside of every clock: kernels are loaded, proven and tuned in them."""

from __future__ import annotations

import gc
import itertools
import warnings

from sparsekit.benchmarks.builders import Start, trained_with
from sparsekit.benchmarks.engine import Workbench
from sparsekit.benchmarks.masking import sparsify_for
from sparsekit.benchmarks.methods import as_method
from sparsekit.benchmarks.recipe import RunConfig, split_name
from sparsekit.pruners import OneShotMagnitude
from sparsekit.pruners.base import BasePruner
from sparsekit.pruners.capture import WARM_UP
from sparsekit.pruners.metrics import CollapseWarning

DEVICES = {"cuda"}
"""Where first steps cost more than others."""


def warm_up_for(config: RunConfig, bench: Workbench) -> float:
    """Seconds that the first steps of a method took; 0 where this process has taken them, and on a CPU.

    A method's pruners take as many steps as ``captured`` leaves eager, on a network and batches of no consequence. Random
    numbers of the run are drawn from seeds set after this.
    """
    if bench.recipe.device not in DEVICES:
        return 0.0
    return bench.warm_up(split_name(config.method)[0], lambda: _first_steps(config, bench))


def _first_steps(config: RunConfig, bench: Workbench) -> None:
    method = as_method(config.method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        _take(method.build(_start(config, bench)), config, bench, method.ode_batches)
        if method.then is not None:
            start = _start(config, bench)
            trained_with(OneShotMagnitude, start)  # what follows takes over masks
            _take(method.then(start), config, bench, False)
    gc.collect()  # its memory must not count as the run's


def _take(pruner: BasePruner, config: RunConfig, bench: Workbench, ode: bool) -> None:
    size = min(config.recipe.ode_batch, bench.epoch_images) if ode else None
    batches = bench.batches(seed=0, phase=9, batch_size=size)
    for _ in itertools.takewhile(lambda _: not pruner.done, range(WARM_UP)):
        pruner.step(batches)


def _start(config: RunConfig, bench: Workbench) -> Start:
    model = bench.network(seed=0)
    init = {name: value.clone() for name, value in model.state_dict().items()}
    sparsify_for(model, bench.recipe)
    model.train()
    sizes = bench.steps_per_epoch, bench.images
    return Start(model, bench.loss, init, config.sparsity, config.own_recipe, *sizes)
