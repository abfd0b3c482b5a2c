# SPDX-License-Identifier: Apache-2.0
"""The sparsity-indexed flow of SpODE as pure functions of gates, which are mappings layer name -> tensor.

With G the density of the gates m (1 where all are 1), g = -grad G and e = -grad E, one unit of sparsity is bought by

    maximise e'F   subject to   g'F = 1,  |F| <= r/|g|,  r >= 1,

whose solution, with e_perp = e - (g'e/|g|^2) g, is

    F = g/|g|^2 + (sqrt(r^2 - 1)/|g|) e_perp/|e_perp|.

The first term pays the sparsity at least norm; the second spends the rest of the radius on the loss. Only the
direction of e counts. Where e is parallel to g (or zero) the second term has no direction and is dropped. This form,
unlike one in e and g themselves, stays exact when e and g are nearly parallel.

Source: Mo et al., Pruning via sparsity-indexed ODE, ICML 2023. All reductions are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsekit.schedules import Geometric, InverseGeometric, Linear

_RAMPS = {"exp": Geometric, "lin": Linear, "invexp": InverseGeometric}
ENERGIES = ("l2", "l1")
STEP_SCHEDULES = (*_RAMPS, "hess")
RADIUS_SCHEDULES = ("fix", "invexp", "hess")
MAX_RADIUS = 4.0
# Below this share of |e|, what is left of float32 gradients at right angles to g is rounding noise.
PARALLEL = 1e-6

Gates = Mapping[str, Tensor]


def dot(a: Gates, b: Gates) -> Tensor:
    """Inner product over all tensors of ``a`` and ``b`` (same names and shapes): 0-d float64."""
    return torch.stack([(a[name].double() * b[name].double()).sum() for name in a]).sum()


def norm(a: Gates) -> Tensor:
    """Euclidean norm over all tensors: 0-d float64."""
    return dot(a, a).sqrt()


def energy(m: Gates, sizes: Mapping[str, int], kind: str) -> Tensor:
    """G, the density of the gates: sqrt(sum w m^2 / sum w) for "l2", sum w |m| / sum w for "l1".

    Args:
        m: gates of each layer.
        sizes: w, weights behind one gate of each layer (1 when every weight has its own).
        kind: "l2" or "l1".

    Returns:
        0-d float64; 1 when all gates are 1. For 0/1 gates l1 is the density and l2 its square root.
    """
    total = _total(m, sizes)
    if kind == "l1":
        return torch.stack([sizes[name] * x.double().abs().sum() for name, x in m.items()]).sum() / total
    return (torch.stack([sizes[name] * x.double().square().sum() for name, x in m.items()]).sum() / total).sqrt()


def energy_gradient(m: Gates, sizes: Mapping[str, int], kind: str) -> dict[str, Tensor]:
    """g = -grad G, in the gates' shapes and dtypes; with sizes 1 its norm is 1/sqrt(d) for d gates, none of them 0."""
    total = _total(m, sizes)
    if kind == "l1":
        return {name: x.sign() * (-sizes[name] / total) for name, x in m.items()}
    scale = -1.0 / (total * energy(m, sizes, kind))
    return {name: (x.double() * (scale * sizes[name])).to(x.dtype) for name, x in m.items()}


def _total(m: Gates, sizes: Mapping[str, int]) -> int:
    return sum(sizes[name] * x.numel() for name, x in m.items())


def direction(e: Gates, g: Gates, radius: float) -> dict[str, Tensor]:
    """F: steepest descent of E among the directions that lower G by one and have norm radius/|g|.

    Args:
        e: -grad E at the gates; any positive scale.
        g: -grad G at the gates, not all zero.
        radius: r >= 1, dimensionless; the cosine of F and g is 1/r.

    Returns:
        F by name, in e's shapes and dtypes, with g'F = 1 and |F||g| = r, or F = g/|g|^2 if e is parallel to g or zero.
    """
    gg = dot(g, g)
    along = dot(g, e) / gg
    perp = torch.stack([(e[name].double() - along * g[name].double()).square().sum() for name in e]).sum().sqrt()
    sideways = math.sqrt(max(radius * radius - 1.0, 0.0)) / (gg.sqrt() * perp)
    # A NaN must not pass for "parallel", hence <= and not its negation.
    sideways = torch.where(perp <= PARALLEL * norm(e), torch.zeros_like(sideways), sideways)
    return {
        name: (x.double() * sideways + g[name].double() * (1.0 / gg - sideways * along)).to(x.dtype)
        for name, x in e.items()
    }


def density_at(schedule: str, step: int, steps: int, start: float, end: float) -> float:
    """Density planned after ``step`` of ``steps`` steps, from ``start`` down to ``end``, both in (0, 1].

    "exp" falls geometrically, "lin" evenly, "invexp" takes the steps of "exp" in reverse order, smallest first.
    """
    return 1.0 - _RAMPS[schedule](1.0 - start, 1.0 - end, 0, steps)(step)


def gradient_step(density: float, end: float, left: int, slope: float) -> float:
    """Step size of the schedule "hess": (G - k)/(left |grad E|), at most what is left to go, so small where E is steep.

    Args:
        density: G now. end: k, the final density. left: steps left, this one included. slope: |grad E|.
    """
    rest = max(density - end, 0.0)
    return rest / max(left * slope, 1.0)


def radius_at(schedule: str, radius: float, step: int, steps: int, slope: float = 0.0) -> float:
    """r of step ``step`` (from 0): "fix" is ``radius``, "invexp" rises from it to 4, "hess" is 1 + 3 slope but no less.

    slope is |grad E|.
    """
    if schedule == "invexp":
        return MAX_RADIUS * (radius / MAX_RADIUS) ** (1 - (step + 1) / steps)
    if schedule == "hess":
        return max(radius, 1.0 + (MAX_RADIUS - 1.0) * slope)
    return radius


def drift(density: float, dt: float, radius: float) -> float:
    """G after one Euler step of size ``dt`` for the l2 density with equal sizes and e not parallel to g.

    The step leaves the sphere of its tangent: G'^2 = (G - dt)^2 + (r^2 - 1) dt^2, so G lags behind the plan.
    """
    return math.sqrt((density - dt) ** 2 + (radius * radius - 1.0) * dt * dt)
