# SPDX-License-Identifier: Apache-2.0
"""Criteria: functions that score every weight of a network, by name; ``CriterionPruning`` does everything else.

@sk.criterion("square", batches=2)
def square(scoring):
    total = {name: torch.zeros_like(w) for name, w in scoring.weights.items()}
    for batch in scoring.batches:
        for name, h in scoring.gradients(batch).items():
            total[name] += h.square()
    return {name: w.square() * total[name] for name, w in scoring.weights.items()}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.criteria import gate_gradient
from sparsekit.modes import kept_modes
from sparsekit.nn import frozen_batchnorm
from sparsekit.ops import shards
from sparsekit.pruners.checks import checked_count
from sparsekit.pruners.remaining import UNITS

BATCHNORM = ("train", "eval")


@dataclass(frozen=True)
class Scoring:
    """What a criterion is given: the network in its present state, and the batches of one round.

    model: in eval mode, but for BatchNorm as the criterion wants it; leave its tensors alone.
    weights: layer name -> effective weight where(m, theta, 0), detached. masks: layer name -> bool, True where kept; both of
        the weight's shape, DTensors where the weight is one.
    batches: those drawn for this round. seed: of whatever the criterion draws. round: from 0.
    gradients: batch -> {layer name: dl/dz}, detached, for pruned weights too; the mean over all processes.
    curvature: (batch, {layer name: v}) -> {layer name: H v}, detached; H is the Hessian of the loss in the effective weights.
    count: counts one forward and backward pass over so many samples, for a criterion with passes of its own.
    """

    model: nn.Module
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    batches: list[Any]
    seed: int
    round: int
    gradients: Callable[[Any], dict[str, Tensor]]
    curvature: Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]
    count: Callable[[int], None]


@dataclass(frozen=True)
class Criterion:
    """A score for every weight; higher means keep.

    name: as which it is registered. scores: (Scoring, **options) -> {layer name: float tensor of the weight's shape}.
    batches: drawn for every round; 0 for a criterion without data. shared: one draw serves all rounds instead.
    rounds: between the masks given and the target, each with new scores, unless the pruner is told otherwise.
    units: score of a filter or channel: "norm" is the norm of its pattern, "sum" the sum of the signed scores, "abs_sum" the
        absolute value of that. Single weights rank by |score|, with "sum" by the score.
    batchnorm: "train" normalises with the batch, "eval" with the running statistics; these never move.
    """

    name: str
    scores: Callable[..., Mapping[str, Tensor]]
    batches: int = 1
    shared: bool = False
    rounds: int = 1
    units: str = "norm"
    batchnorm: str = "train"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"Criterion: name: expected a name, got {self.name!r}")
        if not callable(self.scores):
            raise TypeError(f"Criterion: scores: expected a callable Scoring -> scores by layer, got {self.scores!r}")
        checked_count("Criterion", "batches", self.batches, 0)
        checked_count("Criterion", "rounds", self.rounds)
        for field, known in (("units", UNITS), ("batchnorm", BATCHNORM)):
            if (value := getattr(self, field)) not in known:
                raise ValueError(f"Criterion: {field}: expected one of {', '.join(known)}, got {value!r}")


CRITERIA: dict[str, Criterion] = {}


def criterion(name: str, **fields: Any) -> Callable[[Callable[..., Mapping[str, Tensor]]], Criterion]:
    """Decorator that registers a function of scores under a name, and makes it a Criterion.

    Args:
        name: which no other criterion has; the same function may be registered again, as when its module is reloaded.
        fields: the other fields of ``Criterion``.

    Raises:
        ValueError, TypeError: the name is taken; fields out of range or unknown.
    """

    def register(scores: Callable[..., Mapping[str, Tensor]]) -> Criterion:
        made = Criterion(name, scores, **fields)
        known = CRITERIA.get(name)
        if known is not None and _identity(known.scores) != _identity(scores):
            raise ValueError(f"criterion: name: expected one that is not taken, got {name!r}")
        CRITERIA[name] = made
        return made

    return register


def _identity(function: Any) -> tuple[Any, Any]:
    return getattr(function, "__module__", None), getattr(function, "__qualname__", None)


def as_criterion(where: str, given: str | Criterion) -> Criterion:
    """A criterion by name or as it is; an error begins with ``where``."""
    if isinstance(given, Criterion):
        return given
    if not isinstance(given, str) or given not in CRITERIA:
        raise ValueError(f"{where}: criterion: expected a Criterion or one of {', '.join(CRITERIA)}, got {given!r}")
    return CRITERIA[given]


def checked_scores(where: str, found: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores of all layers, detached and in the order of ``weights``, infinite ones as NaN; an error begins with ``where``."""
    if not isinstance(found, Mapping) or found.keys() != weights.keys():
        got = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(f"{where}: expected scores by layer ({', '.join(weights)}), got {got}")
    scores = {}
    for name, weight in weights.items():
        score = found[name]
        if not isinstance(score, Tensor) or not score.is_floating_point() or score.shape != weight.shape:
            got = f"{score.dtype} of {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            expected = f"floating point scores of {tuple(weight.shape)} for `{name}`"
            raise ValueError(f"{where}: expected {expected}, got {got}")
        # An infinite score is an overflow, which may have swallowed any order; NaN is what projections look for.
        scores[name] = torch.where(torch.isfinite(score.detach()), score.detach(), math.nan)
    return scores


@contextmanager
def scoring_mode(model: nn.Module, batchnorm: str) -> Iterator[None]:
    """Within it nothing is random, and BatchNorm normalises as told without moving its statistics; then all is as before.

    Random numbers that are drawn nevertheless are given back.
    """
    devices = list({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with kept_modes(model), torch.random.fork_rng(devices=devices):
        model.eval()
        if batchnorm == "train":
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
        with frozen_batchnorm(model):
            yield


@criterion("magnitude", batches=0)
def magnitude(scoring: Scoring) -> dict[str, Tensor]:
    """|theta|, whose scores of units are the pattern's norms."""
    return scoring.weights


@criterion("random", batches=0)
def random(scoring: Scoring) -> dict[str, Tensor]:
    """Uniform numbers that the seed alone decides."""
    return random_scores(scoring.weights, scoring.seed)


@criterion("snip", units="abs_sum")
def snip(scoring: Scoring) -> dict[str, Tensor]:
    """theta * dl/dz, summed over the batches: the gradient of a gate on each weight, or on each filter or channel."""
    total: dict[str, Tensor] = {}
    for batch in scoring.batches:
        for name, h in scoring.gradients(batch).items():
            total[name] = total[name] + wide(h) if name in total else wide(h)
    return {name: gate_gradient(wide(w), total[name]) for name, w in scoring.weights.items()}


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def random_scores(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A float64 score in [0, 1) for each weight, from a CPU generator of its own; the same on all devices and processes."""
    generator, scores = torch.Generator().manual_seed(seed), {}
    for name, weight in weights.items():
        drawn = torch.rand(weight.shape, dtype=torch.float64, generator=generator)
        scores[name] = shards.spread_as(drawn.to(weight.device), weight)
    return scores
