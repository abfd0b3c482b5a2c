# SPDX-License-Identifier: Apache-2.0
"""CriterionPruning: the masks of a criterion's scores, in one shot or in rounds, then training through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.allocation import Budget, Shapes
from sparsekit.gradients import Loss, curvature_at, gradients_at
from sparsekit.mask import Mask
from sparsekit.nn import set_masks
from sparsekit.ops import shards, unpack_mask
from sparsekit.patterns import NM, Key
from sparsekit.projection import Projection
from sparsekit.pruners.checks import checked_count
from sparsekit.pruners.cost import batch_size
from sparsekit.pruners.learning_rate import Curve, as_curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.phases import Phase
from sparsekit.pruners.remaining import remaining_scores, remaining_units
from sparsekit.pruners.rounds import RoundPruner
from sparsekit.pruners.scoring import BATCHNORM, Criterion, Scoring, as_criterion, checked_scores, scoring_mode
from sparsekit.pruners.states import checked_state, restore
from sparsekit.unit_masks import unit_counts

SCHEDULES = ("geometric", "linear")


@dataclass(frozen=True)
class _Counts:
    """An allocation of numbers that are known beforehand."""

    counts: Mapping[str, int]
    min_keep: int = 0

    def __call__(self, shapes: Shapes, units: Mapping[str, int], sparsity: Any) -> Budget:
        return dict(self.counts)


class CriterionPruning(RoundPruner):
    """Pruning by a score for every weight: the first step draws batches, scores and prunes, the others train what is left.

    Args:
        model: sparsified; weights as initialised or trained. Masks may be partial: only kept weights are candidates, so
            that nothing comes back, and the rounds begin at their density.
        loss: (model, batch) -> scalar.
        sparsity: fraction of all units removed, in [0, 1); for the layer-wise counts of channels see ``node_sparsity``.
        criterion: a registered name (magnitude, random, snip, grasp, synflow, and what ``sk.criterion`` has added) or a
            Criterion.
        optimizer: list of trainable parameters -> fresh optimizer; needed when there are ``steps``.
        steps: training steps after the pruning, each on one batch.
        rewind_state: state_dict of the plain or sparsified model, usually as initialised, at which the scores are taken and
            from which the training starts; it is put back here. None scores and trains the weights that the model has.
        batches: of each round, all in memory at once; by default the criterion's.
        rounds: n; in round t = 1..n the scores of what is left prune to the density d0^(1 - t/n) * k^(t/n), d0 being that of
            the masks given and k = 1 - sparsity; by default the criterion's.
        schedule: of the rounds, "geometric" as above or "linear".
        batchnorm: while scoring, "train" normalises with the batch, "eval" with the running statistics; by default the
            criterion's. The statistics do not move, and Dropout is off.
        seed: for criteria that draw, >= 0.
        options: keyword arguments of the criterion's function, plain values.
        curve: learning-rate curve of the training ("constant", "cosine", "linear", "step" or callable).
        projection: pattern and allocation; global and unstructured by default. Without group.

    Metrics: round (1), flips and regrown (0), and after the first step the loss.

    Raises:
        ValueError, TypeError: arguments out of range, of a wrong kind, or contradictory; nothing to prune; masks that are
        sparser than the target, or parts of units. In the first step: scores that are not finite, which leaves the masks.

    The first step changes nothing but masks: parameters, buffers, modes and random numbers are as before. Pruned theta:
    moved by weight decay alone in the training; it is never used.
    """

    waits = True

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        criterion: str | Criterion,
        *,
        optimizer: OptimizerFactory | None = None,
        steps: int = 0,
        rewind_state: Mapping[str, Any] | None = None,
        batches: int | None = None,
        rounds: int | None = None,
        schedule: str = "geometric",
        batchnorm: str | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
    ) -> None:
        name = type(self).__name__
        self.criterion = chosen = as_criterion(name, criterion)
        checked_count(name, "steps", steps, 0)
        self.batches = chosen.batches if batches is None else batches
        checked_count(name, "batches", self.batches, 1 if chosen.batches else 0)
        self.rounds = chosen.rounds if rounds is None else checked_count(name, "rounds", rounds)
        self.schedule = _one_of(name, "schedule", schedule, SCHEDULES)
        self.batchnorm = _one_of(name, "batchnorm", batchnorm or chosen.batchnorm, BATCHNORM)
        self.seed, self.options = checked_count(name, "seed", seed, 0), dict(options or {})
        phases = (Phase(1, None, sparsity), Phase(steps, as_curve(name, "curve", curve)))
        super().__init__(model, loss, sparsity, projection, phases, optimizer)
        if rewind_state is not None:
            restore(model, checked_state(f"{name}: rewind_state", model, rewind_state))

    def _check_masks(self) -> None:
        if self.projection.group is not None:
            raise ValueError(f"{self.name}: projection: expected no group, got {self.projection!r}")
        if isinstance(self.projection.pattern, NM) and self.rounds > 1:
            pattern = self.projection.pattern.describe()
            raise ValueError(f"{self.name}: rounds: expected 1 for {pattern}, got {self.rounds}")
        self._budgets()

    def _budgets(self) -> tuple[dict[str, int], Budget]:
        """Units that the layers keep, and those that they will; raises if there are not enough."""
        projection, shapes = self.projection, self._shapes()
        kept = remaining_units(self.name, self.layers, projection.pattern)
        if isinstance(projection.pattern, NM):
            return kept, kept
        budget, floor = projection.budget(shapes, self.sparsity), projection.allocation.min_keep
        units = self._units()
        least = {n: min(floor, units[n]) for n in kept} if isinstance(budget, int) else budget
        for name, count in kept.items():
            if count < least[name]:
                expected = f"masks that keep at least {least[name]:,} units of `{name}`"
                raise ValueError(f"{self.name}: model: expected {expected}, got {count:,} kept")
        if isinstance(budget, int) and sum(kept.values()) < budget:
            got = f"{sum(kept.values()):,} kept"
            raise ValueError(f"{self.name}: model: expected masks that keep at least {budget:,} units, got {got}")
        return kept, budget

    def _wanted(self, index: int) -> int:
        return self.batches * (1 if self.criterion.shared else self.rounds) if index == 0 else 1

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(layer.weight.shape) for name, layer in self.layers.items()}

    def _units(self) -> dict[str, int]:
        return unit_counts(self.projection.pattern, self._shapes())

    def _prune(self, sparsity: float, drawn: list[Any]) -> dict[str, Tensor]:
        """All rounds; an error in one of them gives back the masks from before the first."""
        stated = {"criterion": self.criterion.name, "batches": self.batches, "rounds": self.rounds, "seed": self.seed}
        self.ranks.alike("arguments", lambda: None, **stated)
        before, moved = self.masks, {"flips": self._number(0), "regrown": self._number(0)}
        try:
            for t, (rung, by) in enumerate(self._ladder(sparsity)):
                given = drawn if self.criterion.shared else drawn[t * self.batches : (t + 1) * self.batches]
                scores, key = self._candidates(given, t)
                moved = {name: moved[name] + n for name, n in self._project(scores, rung, key, by()).items()}
        except BaseException:
            set_masks(self.model, before)
            raise
        if self._problems:  # a device that nobody looks at: what went wrong in one round has spoilt the later ones
            wrong = torch.stack([flag.reshape(()) for flag in self._problems.values()]).any()
            words = {
                name: torch.where(wrong, before[name].words, layer.mask_words) for name, layer in self.layers.items()
            }
            set_masks(self.model, {name: Mask(w, before[name].shape) for name, w in words.items()})
        return moved

    def _ladder(self, sparsity: float) -> list[tuple[float, Callable[[], Projection]]]:
        """Sparsity of each round, and what makes its projection from the masks of then."""
        start, end = sum(self._budgets()[0].values()) / max(sum(self._units().values()), 1), 1.0 - sparsity
        ladder: list[tuple[float, Callable[[], Projection]]] = []
        for t in range(1, self.rounds):
            share = t / self.rounds
            density = (
                start ** (1 - share) * end**share if self.schedule == "geometric" else start + (end - start) * share
            )
            rung = round(1.0 - density, 12)
            ladder.append((rung, partial(self._projection_towards, rung)))
        return [*ladder, (sparsity, lambda: self.projection)]

    def _projection_towards(self, rung: float) -> Projection:
        """The projection of a round before the last; layers keep no more than they have, and enough for the last."""
        kept, final = self._budgets()
        planned = self.projection.budget(self._shapes(), rung)
        if isinstance(planned, int) or isinstance(final, int):
            return self.projection
        return replace(self.projection, allocation=_Counts({n: min(kept[n], max(planned[n], final[n])) for n in kept}))

    def _candidates(self, drawn: list[Any], t: int) -> tuple[dict[str, Tensor], Key]:
        """The scores of round ``t``, ready to be projected."""
        with scoring_mode(self.model, self.batchnorm):
            found = self.criterion.scores(self._scoring(drawn, t), **self.options)
        scores = checked_scores(f"{self.name}: criterion {self.criterion.name!r}", found, self.weights)
        return remaining_scores(scores, self.layers, self.projection.pattern, self.criterion.units)

    def _scoring(self, drawn: list[Any], t: int) -> Scoring:
        def of_part(weight: Tensor, words: Tensor) -> Tensor:
            return torch.where(unpack_mask(words, weight.shape), weight, 0)

        weights, kept = {}, {}
        for name, layer in self.layers.items():
            theta, words = layer.weight.detach(), layer.spread_words
            weights[name] = shards.on_parts(of_part, theta, words, shape=theta.shape)
            kept[name] = shards.on_parts(lambda w, bits: unpack_mask(bits, w.shape), theta, words, shape=theta.shape)
        gradients, curvature = partial(self._gradients, weights), partial(self._curvature, weights)
        return Scoring(self.model, weights, kept, drawn, self.seed, t, gradients, curvature, self.cost.count_pass)

    def _gradients(self, weights: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
        if any(map(shards.is_spread, weights.values())):
            return self._dense_gradients(batch)
        _, dz = gradients_at(self.model, self._evaluate, batch, weights)  # frozen weights have gradients too
        self.cost.count_pass(batch_size(batch))
        return dz

    def _curvature(self, weights: Mapping[str, Tensor], batch: Any, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = curvature_at(self.model, self._evaluate, batch, weights, vector)
        for _ in range(2):  # differentiating a forward and a backward pass is about another of each
            self.cost.count_pass(batch_size(batch))
        return found

    def _config(self) -> dict[str, Any]:
        names = ("batches", "rounds", "schedule", "batchnorm", "seed", "options")
        own = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return super()._config() | {"criterion": f"{self.criterion.name}({own})"}


def _one_of(where: str, argument: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{where}: {argument}: expected one of {', '.join(known)}, got {value!r}")
    return value
