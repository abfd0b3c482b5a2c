# SPDX-License-Identifier: Apache-2.0
"""Chains: iterative magnitude pruning passes through lower sparsities on its way, so one run can serve several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sparsekit.benchmarks.methods import as_method
from sparsekit.benchmarks.recipe import RunConfig
from sparsekit.pruners.base import BasePruner
from sparsekit.pruners.rounds import RoundPruner
from sparsekit.schedules import imp_ladder


def in_chains(configs: Iterable[RunConfig]) -> dict[RunConfig, list[RunConfig]]:
    """Runs to do, in order, each with those that it passes through, by rising sparsity.

    A run is passed through if its method prunes in equal rounds and its ladder is the beginning of the other's: same
    method, seed and recipe, and a sparsity that is exactly one of the other's rungs.
    """
    left = list(configs)
    chains: dict[RunConfig, list[RunConfig]] = {}
    for config in left:
        if not any(_passes(other, config) for other in left):
            chains[config] = sorted((c for c in left if _passes(config, c)), key=lambda c: c.sparsity)
    return chains


def _passes(long: RunConfig, short: RunConfig) -> bool:
    same = (long.method, long.seed, long.recipe) == (short.method, short.seed, short.recipe)
    if not same or long.sparsity <= short.sparsity or not as_method(long.method).chained:
        return False
    rate = long.recipe.imp_rate
    return short.sparsity in imp_ladder(long.sparsity, rate)[:-1]


def passed_at(pruner: BasePruner, rungs: Sequence[RunConfig]) -> Mapping[int, RunConfig]:
    """Steps after which the pruner has done what each of ``rungs`` would have done."""
    if not rungs:
        return {}
    if not isinstance(pruner, RoundPruner):
        raise TypeError(f"compare: rungs: expected a pruner that works in rounds, got {type(pruner).__name__}")
    ends = {phase.sparsity: end for phase, end in zip(pruner.phases, pruner.ends, strict=True)}
    return {ends[rung.sparsity]: rung for rung in rungs}
