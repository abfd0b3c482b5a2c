# SPDX-License-Identifier: Apache-2.0
"""SpODE: pruning along a sparsity-indexed ODE, also called PSO (Mo et al., ICML 2023).

The weights theta stay fixed. Every weight (or channel) has a gate m, 1 at the start. A polariser P makes gates nearly
binary, E(m) = loss(P(m) * theta) is what pruning should not raise, and G(m) is the density of the gates:

    G(m) = sqrt(sum w m^2 / sum w)  ("l2")   or   sum w |m| / sum w  ("l1"),   w weights behind a gate.

Density is taken away in small portions dt, each spent as the loss likes best:

    dm/dt = F(m),   F = g/|g|^2 + (sqrt(r^2 - 1)/|g|) e_perp/|e_perp|,   e = -grad E,  g = -grad G,

e_perp being the part of e at right angles to g (see ``flow``). For l2 the first term shrinks all gates alike and
changes no ranking; the second turns m towards what lowers E, by the angle sqrt(r^2 - 1) dt/G. One explicit Euler step
takes one batch. The mask is at all times the exact selection of the largest |m * theta| at the density reached.

With the polariser "ohh" the loss is seen at that mask itself, however few gates it prunes, and dE/dm = theta * dE/dz
for every gate, so pruned gates are still driven and may return; this is one pass of the masked layers' dense gradient.
The others take the dense path at z = P(m) * theta, with thresholds over all layers under a global allocation and for
each layer otherwise.

A unit of coupled filters spans several layers and has one gate for all its weights: dE/dm sums theta * dE/dz over them, w
is their number, |m| times their l1 norm ranks it. Filters in no unit have no gate and no part in G; groups stand for layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.gradients import Loss, gradients_at
from sparsekit.nn import recalibrate_batchnorm
from sparsekit.nn.batchnorm import has_batchnorm
from sparsekit.projection import Projection
from sparsekit.pruners import flow
from sparsekit.pruners.base import BasePruner
from sparsekit.pruners.bip_options import batchnorm_policy
from sparsekit.pruners.checks import check_plain, check_tensors, checked_count
from sparsekit.pruners.cost import batch_size
from sparsekit.pruners.polarisers import polarise
from sparsekit.pruners.spode_gates import fold, initial_gates, one_batch
from sparsekit.pruners.spode_options import SpODEOptions, checked_arguments
from sparsekit.pruners.spode_search import search
from sparsekit.unit_masks import over_units, unit_counts, unit_sizes, unit_sums


class SpODE(BasePruner):
    """Pruning of a pretrained, sparsified model by a flow of its gates.

    Args:
        model: pretrained and sparsified. The flow starts from its present masks, full or not; a pruned model thus
            continues from its density: iterative SpODE alternates training with new runs at rising sparsities.
        loss: (model, batch) -> scalar.
        sparsity: final fraction of units removed, in [0, 1). For channels see also ``node_sparsity``.
        steps: N, Euler steps; each pulls one batch. The last one pulls ``recalibrate`` more if there is BatchNorm.
        radius: r >= 1, cosine of F and g is 1/r; 1 ignores the loss.
        energy: G, "l2" or "l1".
        polariser: P, one of oh, ohm, ohh, ohhm, qt, qtm, gau, gaum; see ``polarise``.
        projection: pattern Unstructured, Filter, Channel or CoupledFilters; global and unstructured by default.
        recalibrate: batches for the BatchNorm statistics of the pruned network at the end; 0 leaves them alone.
        options: schedules and what else is rarely changed, see SpODEOptions.

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune; masks already too sparse.

    Pruned theta: unchanged, as all of theta (but see SpODEOptions.mask_option). The masks count units exactly:
    kept_count(units, 1 - density) after each step and kept_count(units, sparsity) at the end. Biases have no gates.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        steps: int = 100,
        radius: float = 1.1,
        energy: str = "l2",
        polariser: str = "ohh",
        projection: Projection | None = None,
        recalibrate: int = 20,
        options: SpODEOptions | None = None,
    ) -> None:
        super().__init__(model, loss, sparsity, projection)
        check_plain("SpODE", self.model)
        self.options = options or SpODEOptions()
        checked_arguments(self.options, radius, energy, polariser, self.projection.pattern)
        self.steps = checked_count("SpODE", "steps", steps)
        self.recalibrate = checked_count("SpODE", "recalibrate", recalibrate, least=0)
        self.radius, self.energy, self.polariser = float(radius), energy, polariser
        pattern = self.projection.pattern
        self._shapes = {name: tuple(layer.weight.shape) for name, layer in self.layers.items()}
        self._units, self._sizes = unit_counts(pattern, self._shapes), unit_sizes(pattern, self._shapes)
        self.gates, self._start = initial_gates(self.masks, self.projection, self._units, self.sparsity)
        self.density = self._start
        if self.options.reproject:
            self._rescale()
        self.scores: dict[str, Tensor] = {}

    @property
    def done(self) -> bool:
        return self._step >= self.steps

    def _advance(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        last = self._step + 1 == self.steps
        # All that the step will need is drawn before anything changes, so that a step without it can be repeated.
        wanted = self.recalibrate if self.options.recalibration == "average" else min(self.recalibrate, 1)
        batch, *extra = self._draw(batches, 1 + (wanted if last and has_batchnorm(self.model) else 0))
        loss, e = self._descent(batch)
        slope = float(flow.norm(e)) if self.options.step_schedule == "hess" else 0.0
        dt = self._step_size(slope)
        planned = 1.0 - self.sparsity if last else self.density - dt
        taken = self._move(batch, e, dt, self._radius(slope), planned)
        self.density = planned
        if self.options.reproject:
            self._rescale()
        elif not last:
            self.density = min(float(self._energy()), 1.0)
        scores = self._scores(last)
        moved = self._project(scores, self.sparsity if last else self._removed(), key="value")
        if last and self.options.mask_option != "one":
            fold(self.layers, self.gates, self.projection, self.options.mask_option)
        if extra and self.options.recalibration == "average":
            recalibrate_batchnorm(self.model, extra, self.loss)
        elif extra:
            one_batch(self.model, extra[0], self.loss, self.options.recalibration == "released_reset")
        return {"loss": loss, "energy": self._energy(), **taken, **moved}

    def _move(self, batch: Any, e: dict[str, Tensor], dt: float, radius: float, planned: float) -> dict[str, Tensor]:
        """One Euler step of the gates; with a search also the radius that it took."""
        if self.options.radius_search != "none":
            return search(self, batch, e, dt, radius, round(1.0 - planned, 12))
        delta = flow.direction(e, self._energy_gradient(), radius)
        for name, m in self.gates.items():
            m.add_(delta[name], alpha=dt)
        return {}

    def _removed(self) -> float:
        """Sparsity that the flow has reached; rounded, lest a sum of steps move a count that is exact on paper."""
        return round(1.0 - self.density, 12)

    def _energy(self) -> Tensor:
        """G, the density of the gates: 0-d float64."""
        return flow.energy(self.gates, self._sizes, self.energy)

    def _energy_gradient(self) -> dict[str, Tensor]:
        """g = -grad G."""
        return flow.energy_gradient(self.gates, self._sizes, self.energy)

    @torch.no_grad()
    def _descent(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """E at the polarised gates, and e = -dE/dm."""
        pattern, theta, slopes = self.projection.pattern, self.weights, None
        with batchnorm_policy(self.model, self.options.batchnorm):
            if self.polariser == "ohh":
                found = self._on_device("descent", None, [batch], self._dense_pass)
                dz = {name: found[f"dz {name}"] for name in theta}
            else:
                values, slopes = self._polarised(theta, self.gates, self._removed())
                _, dz = gradients_at(self.model, self._evaluate, batch, self._effective(values, theta))
                self.cost.count_pass(batch_size(batch))
                found = {"loss": self._loss_value}
        sums = unit_sums(pattern, {name: w.float() * dz[name].float() for name, w in theta.items()})
        e = {name: -total for name, total in sums.items()}
        return found["loss"], e if slopes is None else {name: x * slopes[name] for name, x in e.items()}

    def _dense_pass(self, drawn: list[Any]) -> dict[str, Tensor]:
        dz = self._dense_gradients(drawn[0])
        return {"loss": self._loss_value, **{f"dz {name}": value for name, value in dz.items()}}

    def _effective(self, values: Mapping[str, Tensor], theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """P(m) * theta."""
        factors = over_units(self.projection.pattern, values, theta)
        return {name: (factors[name] * w).to(w.dtype) for name, w in theta.items()}

    def _polarised(
        self, theta: Mapping[str, Tensor], gates: Mapping[str, Tensor], removed: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """P(m) and its slopes, by thresholds over what the allocation gives one budget."""
        budget = self.projection.budget(self._shapes, removed)
        pruned: float | dict[str, float] = removed
        if not isinstance(budget, int):
            pruned = {name: 1.0 - budget[name] / units if units else 0.0 for name, units in self._units.items()}
        factors = unit_sums(self.projection.pattern, {name: w.float().abs() for name, w in theta.items()})
        return polarise(self.polariser, gates, factors, pruned, self.options.ratio, self.options.eps)

    def _step_size(self, slope: float) -> float:
        """dt, the density to take away in this step; slope is |grad E|."""
        end, schedule = 1.0 - self.sparsity, self.options.step_schedule
        if schedule == "hess":
            return flow.gradient_step(self.density, end, self.steps - self._step, slope)
        now, then = (flow.density_at(schedule, i, self.steps, self._start, end) for i in (self._step, self._step + 1))
        return now - then

    def _radius(self, slope: float) -> float:
        """r of this step; slope is |grad E|."""
        return flow.radius_at(self.options.radius_schedule, self.radius, self._step, self.steps, slope)

    def _rescale(self) -> None:
        """Scale all gates so that G is the density planned."""
        factor = (self.density / self._energy()).float()
        for m in self.gates.values():
            m.mul_(factor)

    def _scores(self, last: bool) -> dict[str, Tensor]:
        """What ranks the projection: |m * theta|, at the end with its momentum; shaped as the weights."""
        factors, mu = over_units(self.projection.pattern, self.gates, self.weights), self.options.score_momentum
        scores = {name: (factors[name] * w).abs() for name, w in self.weights.items()}
        if not mu:
            return scores
        self.scores = {name: s + mu * self.scores[name] if self.scores else s for name, s in scores.items()}
        return self.scores if last else scores

    def _config(self) -> dict[str, Any]:
        own = {"steps": self.steps, "radius": self.radius, "energy": self.energy, "polariser": self.polariser}
        return super()._config() | own | {"recalibrate": self.recalibrate, "options": asdict(self.options)}

    def state_dict(self) -> dict[str, Any]:
        """See BasePruner; adds the gates, the momentum of the scores and the density reached."""
        own: dict[str, Any] = {"start": self._start, "density": self.density}
        own["gates"] = {name: m.clone() for name, m in self.gates.items()}
        # Before the first step there are none, but torch.distributed.checkpoint has to know that there will be.
        own["scores"] = {name: s.clone() for name, s in self.scores.items()}
        if self.options.score_momentum and not self.scores:
            own["scores"] = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in self.weights.items()}
        return super().state_dict() | own

    def _check_state(self, where: str, state: Any) -> None:
        super()._check_state(where, state)
        check_tensors(f"{where}: gates", state["gates"], self.gates)
        check_tensors(f"{where}: scores", state["scores"], self.weights if state["scores"] else {})
        for name in ("start", "density"):
            if not isinstance(state[name], (int, float)) or not math.isfinite(state[name]):
                raise ValueError(f"{where}: {name}: expected a finite number, got {state[name]!r}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See BasePruner."""
        super().load_state_dict(state)
        self._start, self.density = float(state["start"]), float(state["density"])
        for name, m in self.gates.items():
            m.copy_(state["gates"][name])
        scores = state["scores"]  # stand-ins of zeros count as none
        self.scores = {n: scores[n].to(w.device, copy=True) for n, w in self.weights.items() if scores}
