# SPDX-License-Identifier: Apache-2.0
"""Rewiring: training a sparse network from the start, whose masks move while the number of weights stays (RigL, SET).

    m     <- random masks with n_l weights in layer l (ERK)              before the first step
    every p-th step t, 0 < t < T:
        k     <- floor(f(t) n_l),    f(t) = alpha/2 (1 + cos(pi t / T))
        stay  <- the n_l - k largest |theta| of the kept weights
        m     <- stay and the k best-scored of all others, those just dropped included
        theta <- 0, and no optimizer state, where m was zero and now is one
    every other step: theta <- theta - alpha m h

So every layer keeps n_l weights at all times, exactly. A weight that is dropped and taken back at once was never away: it
keeps its value and its state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit import ops
from sparsekit.allocation import ERK, Global
from sparsekit.gradients import Loss
from sparsekit.nn import masked_layers
from sparsekit.ops import unpack_mask
from sparsekit.patterns import Key, Unstructured
from sparsekit.projection import Projection
from sparsekit.pruners.checks import check_plain, checked_count, checked_share
from sparsekit.pruners.learning_rate import Curve, as_curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.phases import Phase, beginning
from sparsekit.pruners.rounds import RoundPruner
from sparsekit.pruners.scoring import random_scores

LARGEST_SEED = 2**31 - 1
DECAYS = ("cosine", "constant")


def drop_fraction(step: int, end: int, alpha: float, decay: str = "cosine") -> float:
    """Share of a layer's kept weights that ``step`` replaces: alpha/2 (1 + cos(pi step/end)), or alpha if "constant".

    Source: Evci et al., "Rigging the lottery", ICML 2020, section 3 (f_decay); SET has a constant share.
    """
    return alpha if decay == "constant" else alpha / 2 * (1 + math.cos(math.pi * step / end))


class Rewiring(RoundPruner):
    """The machine of RigL and SET, which say by what weights are taken in; arguments as theirs.

    least_every: the shortest period; two where a step that rewires does not train.
    """

    least_every = 1

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        optimizer: OptimizerFactory,
        steps: int,
        every: int = 100,
        until: float = 0.75,
        alpha: float = 0.3,
        decay: str = "cosine",
        rewind_state: Mapping[str, Any] | None = None,
        seed: int = 0,
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
    ) -> None:
        name = type(self).__name__
        checked_count(name, "steps", steps)
        self.every = checked_count(name, "every", every, self.least_every)
        self.seed = checked_count(name, "seed", seed, 0, LARGEST_SEED)
        self.alpha, self.decay = checked_share(name, "alpha", alpha), decay
        if decay not in DECAYS:
            raise ValueError(f"{name}: decay: expected one of {', '.join(DECAYS)}, got {decay!r}")
        self.end = math.floor(checked_share(name, "until", until) * steps + 0.5)
        projection = Projection(allocation=ERK()) if projection is None else projection
        _check_model(name, model, projection)
        rewind, states = beginning(rewind_state)
        phase = Phase(steps, as_curve(name, "curve", curve), sparsity, rewind)
        super().__init__(model, loss, sparsity, projection, (phase,), optimizer, states)
        self._kept = [mask.count() for mask in self.masks.values()]

    def _scores(self) -> tuple[dict[str, Tensor], Key]:
        stated = {"seed": self.seed, "every": self.every, "end": self.end, "alpha": self.alpha, "decay": self.decay}
        self.ranks.alike("arguments", lambda: None, **stated)
        return random_scores(self.weights, self.seed), "magnitude"

    @property
    def fraction(self) -> float:
        """Share of the kept weights that the coming step replaces; 0 for steps that replace none."""
        due = 0 < self._step < self.end and self._step % self.every == 0
        return drop_fraction(self._step, self.end, self.alpha, self.decay) if due else 0.0

    def _progress(self) -> dict[str, Tensor]:
        return {"fraction": self._number(self.fraction, torch.float64)}

    @torch.no_grad()
    def _rewire(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace what ``fraction`` asks for by the weights of the largest ``wanted`` >= 0; returns what moved."""
        stay = [n - math.floor(self.fraction * n) for n in self._kept]
        before = [layer.mask_words.clone() for layer in self.layers.values()]
        sizes = [
            torch.where(unpack_mask(words, w.shape), w.abs(), -1.0)
            for words, w in zip(before, self.weights.values(), strict=True)
        ]
        staying, invalid = ops.topk_mask(sizes, stay, key="value", scope="tensor", out="bool")
        # What stays ranks first, so that one selection with the layers' own counts fills up with the best of the others;
        # what is no number must not pass for a score, and makes the projection leave all masks alone.
        scores = {
            name: torch.where(kept, torch.inf, torch.where(torch.isfinite(new), new, torch.nan)).masked_fill(
                invalid, torch.nan
            )
            for (name, new), kept in zip(wanted.items(), staying, strict=True)
        }
        moved = self._project(scores, self.sparsity, key="value")
        for layer, words in zip(self.layers.values(), before, strict=True):
            self._clear(layer.weight, unpack_mask(layer.mask_words & ~words, layer.weight.shape))
        return moved

    def _clear(self, weight: Tensor, new: Tensor) -> None:
        """Weights that are new begin at zero, with nothing that the optimizer remembers."""
        weight.masked_fill_(new, 0.0)
        assert self._optimizer is not None
        for value in self._optimizer.state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.masked_fill_(new, 0)

    def _config(self) -> dict[str, Any]:
        own = {"every": self.every, "end": self.end, "alpha": self.alpha, "decay": self.decay, "seed": self.seed}
        return super()._config() | own


def _check_model(name: str, model: nn.Module, projection: Any) -> None:
    """Raise for what the counts of each layer could not be kept of."""
    where = f"{name}: projection: expected"
    if isinstance(projection, Projection):
        if projection.group is not None:
            raise ValueError(f"{where} no group, whose processes would draw the same numbers, got {projection!r}")
        if not isinstance(projection.pattern, Unstructured):
            raise ValueError(f"{where} single weights, got {projection.pattern!r}")
        if isinstance(projection.allocation, Global):
            raise ValueError(f"{where} an allocation per layer, such as erk, got {projection.allocation!r}")
    check_plain(name, model)
    if frozen := [n for n, layer in masked_layers(model).items() if not layer.weight.requires_grad]:
        raise ValueError(f"{name}: model: expected masked weights that require grad, got {frozen[0]!r} frozen")
