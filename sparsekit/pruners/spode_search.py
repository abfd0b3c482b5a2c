# SPDX-License-Identifier: Apache-2.0
"""SpODE's search for a radius.

In every step several radii r' around the planned r are tried. For each the step is taken, the masks are formed that would
follow, and E is evaluated there on the same batch; the lowest E is taken among those r' whose step realises more than 90 %
of the density asked for, G - G' > 0.9 dt, and r itself if there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsekit.nn import effective_weights
from sparsekit.ops import replicas
from sparsekit.pruners import flow
from sparsekit.pruners.bip_options import batchnorm_policy
from sparsekit.pruners.cost import batch_size
from sparsekit.pruners.spode_options import REALISED
from sparsekit.unit_masks import over_units

if TYPE_CHECKING:
    from sparsekit.pruners.spode import SpODE

# From the planned radius outwards, so that of equal ones the nearest is taken.
_ORDER = (0, 1, -1, 2, -2, 3, -3)


def candidates(search: str, radius: float) -> list[float]:
    """Radii that a step tries: r * 0.99^i ("auto") or 1 + (r - 1) * 0.9^i ("autor"), i = -3..3, none below 1.

    Source: released code of SFPK (Mo et al., ICLR 2025), which carries SpODE on.
    """
    if search == "none":
        return [radius]
    found = [radius * 0.99**i if search == "auto" else 1.0 + (radius - 1.0) * 0.9**i for i in _ORDER]
    return [max(1.0, r) for r in found]


def searched(
    gates: Mapping[str, Tensor],
    move: Callable[[float], Mapping[str, Tensor]],
    dt: float,
    radii: list[float],
    energy: Callable[[Mapping[str, Tensor]], Tensor],
    loss: Callable[[Mapping[str, Tensor]], Tensor],
) -> tuple[dict[str, Tensor], Tensor]:
    """The gates after the best step, and its radius (0-d float64); the host never waits.

    Args:
        move: radius -> F, by layer. energy: gates -> G, 0-d. loss: gates -> E, 0-d; NaN is never the best.
        radii: in the order in which ties are decided; the first one is taken if none realises enough.
    """
    before = energy(gates)
    chosen = torch.full_like(before, radii[0])
    lowest, best = torch.full_like(before, torch.inf), {}
    for radius in radii:
        delta = move(radius)
        trial = {name: m + dt * delta[name] for name, m in gates.items()}
        best = best or trial
        value = loss(trial).to(lowest)
        better = (before - energy(trial) > REALISED * dt) & (value < lowest)
        best = {name: torch.where(better, trial[name], m) for name, m in best.items()}
        lowest, chosen = torch.where(better, value, lowest), chosen.masked_fill(better, radius)
    return best, chosen


@torch.no_grad()
def search(
    pruner: SpODE, batch: Any, e: Mapping[str, Tensor], dt: float, radius: float, removed: float
) -> dict[str, Tensor]:
    """Move the gates of ``pruner`` by the best of the steps; ``removed`` is the sparsity that follows. Returns its radius."""
    g = pruner._energy_gradient()
    best, taken = searched(
        pruner.gates,
        lambda r: flow.direction(e, g, r),
        dt,
        candidates(pruner.options.radius_search, radius),
        lambda gates: flow.energy(gates, pruner._sizes, pruner.energy),
        lambda gates: trial(pruner, gates, removed, batch),
    )
    for name, m in pruner.gates.items():
        m.copy_(best[name])
    return {"radius": taken}


def trial(pruner: SpODE, gates: Mapping[str, Tensor], removed: float, batch: Any) -> Tensor:
    """E of gates that would prune so much, by a forward pass that moves no BatchNorm statistics."""
    theta = pruner.weights
    if pruner.polariser == "ohh":  # whose loss is seen at the masks themselves
        factors = over_units(pruner.projection.pattern, gates, theta)
        scores = {n: (factors[n] * w).abs() for n, w in theta.items()}
        masks = pruner.projection(scores, removed, key="value").masks
        z = {n: torch.where(masks[n].dense(), w, 0) for n, w in theta.items()}
    else:
        z = pruner._effective(pruner._polarised(theta, gates, removed)[0], theta)
    policy = "eval" if pruner.options.batchnorm == "eval" else "frozen"
    model = pruner.model
    with batchnorm_policy(model, policy), effective_weights(model, z), replicas.local_gradients(model):
        _, mean = pruner.ranks.loss(pruner.loss, batch, model, lambda value: None)
    pruner.cost.count_forward(batch_size(batch))
    return mean.reshape(())
