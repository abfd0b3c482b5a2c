# SPDX-License-Identifier: Apache-2.0
"""The eight polarisers of SpODE: from gates m to nearly binary gates p, with the slope dp/dm.

The context c = |m| a of a gate (a = |theta|, or its l1 norm over the unit) is compared with what the gates of its group
reach, a fraction q of which is to be pruned. Groups are single layers, or all gates together.

    name   p                                   dp/dm
    oh     1[c > tau]                          1[c > tau] / m
    ohm    m 1[c > tau]                        1[c > tau]
    ohh    1[c > tau]                          1 (straight through, pruned gates included)
    ohhm   m 1[c > tau]                        1 (straight through, pruned gates included)
    qt     sigmoid(lo + (hi - lo)(c - l)/(u - l))   p (1 - p) (hi - lo)/(u - l) dc/dm
    qtm    m times that of qt                       that of qt
    gau, gaum   as qt, qtm with other l and u

tau is the int(q n)-th smallest context. For qt, u and l are the q and ratio*q quantiles (linearly interpolated); for
gau those of the normal distribution with the contexts' mean and standard deviation, which needs no sorting. With
hi = logit(eps) and lo = -hi, contexts below l give p <= 1 - eps and contexts above u give p >= eps. tau, l and u count
as constants in dp/dm.
A group with int(q n) <= 1 is not polarised: p = m with slope 1.

Source: Mo et al., ICML 2023, algorithms 2 to 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from sparsekit import ops

POLARISERS = ("oh", "ohm", "ohh", "ohhm", "qt", "qtm", "gau", "gaum")
_TINY = 1e-12


class Polarised(NamedTuple):
    """Polarised gates and their derivatives: layer name -> tensor of the gates' shape and dtype."""

    values: dict[str, Tensor]
    slopes: dict[str, Tensor]


@torch.no_grad()
def polarise(
    kind: str,
    gates: Mapping[str, Tensor],
    factors: Mapping[str, Tensor],
    pruned: float | Mapping[str, float],
    ratio: float = 0.9,
    eps: float = 0.9,
) -> Polarised:
    """Polarise gates with thresholds over all layers or for each.

    Args:
        kind: one of POLARISERS.
        gates: m by layer, floating.
        factors: a by layer, >= 0, shaped as the gates; ones make the gates alone the context.
        pruned: q, fraction of gates to prune in [0, 1): one number over all layers together, or one for each layer.
        ratio: quantile at which a sigmoid starts to rise, as a share of q, in (0, 1).
        eps: value that a sigmoid reaches at the upper quantile, in (0.5, 1).
    """
    contexts = {name: m.abs() * factors[name] for name, m in gates.items()}
    groups = {name: [name] for name in gates} if isinstance(pruned, Mapping) else {"": list(gates)}
    values, slopes = {}, {}
    for key, names in groups.items():
        q = pruned[key] if isinstance(pruned, Mapping) else pruned
        group = [contexts[name] for name in names]
        # A q that stands for a count, as 1 - 0.9 does for 1 of 10, must not lose it to its own rounding.
        count = int(q * sum(c.numel() for c in group) + 1e-9)
        if count <= 1:
            values |= {name: gates[name].clone() for name in names}
            slopes |= {name: torch.ones_like(gates[name]) for name in names}
        elif kind.startswith("oh"):
            threshold = order_statistic(group, count)
            for name in names:
                values[name], slopes[name] = one_hot(kind, gates[name], contexts[name], threshold)
        else:
            low, high = (quantiles if kind.startswith("qt") else normal_quantiles)(group, (ratio * q, q))
            for name in names:
                values[name], slopes[name] = sigmoid(kind, gates[name], factors[name], low, high, eps)
    return Polarised(values, slopes)


def one_hot(kind: str, m: Tensor, context: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """(p, dp/dm) of oh, ohm, ohh and ohhm at a given tau."""
    kept = context > threshold
    value = torch.where(kept, m if kind.endswith("m") else 1.0, 0.0).to(m.dtype)
    if kind.startswith("ohh"):
        return value, torch.ones_like(m)
    # A kept gate has a context above tau >= 0 and so is not zero itself.
    return value, torch.where(kept, 1.0 if kind == "ohm" else 1.0 / m, 0.0).to(m.dtype)


def sigmoid(kind: str, m: Tensor, factor: Tensor, low: Tensor, high: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(p, dp/dm) of qt, qtm, gau and gaum at given quantiles l and u (0-d). If they coincide, p is a step at them."""
    logit = math.log(eps / (1 - eps))
    width = high - low + _TINY
    value = torch.sigmoid(2 * logit * ((m.abs() * factor - low + _TINY) / width) - logit).to(m.dtype)
    if kind.endswith("m"):
        return value * m, value
    slope = value * (1 - value) * (2 * logit / width) * m.sign() * factor
    return value, torch.where(high > low, slope, 0.0).to(m.dtype)


def order_statistic(contexts: list[Tensor], rank: int) -> Tensor:
    """The ``rank``-th smallest value (from 1) of several tensors together: 0-d."""
    total = sum(c.numel() for c in contexts)
    larger = ops.topk_mask(contexts, total - rank, key="value", nan="drop", out="bool").masks
    rest = [c.masked_fill(kept, -torch.inf).amax() for c, kept in zip(contexts, larger, strict=True) if c.numel()]
    return torch.stack(rest).amax()


def quantiles(contexts: list[Tensor], fractions: tuple[float, float]) -> list[Tensor]:
    """Quantiles of several tensors together, linear between order statistics: 0-d each."""
    last = sum(c.numel() for c in contexts) - 1
    found = []
    for fraction in fractions:
        position = fraction * last
        below = int(position)
        at = order_statistic(contexts, below + 1)
        share = position - below
        found.append(at + share * (order_statistic(contexts, below + 2) - at) if share else at)
    return found


def normal_quantiles(contexts: list[Tensor], fractions: tuple[float, float]) -> list[Tensor]:
    """Quantiles of the normal distribution with the contexts' mean and (unbiased) standard deviation: 0-d each."""
    total = sum(c.numel() for c in contexts)
    mean = torch.stack([c.double().sum() for c in contexts]).sum() / total
    deviation = (torch.stack([(c.double() - mean).square().sum() for c in contexts]).sum() / (total - 1)).sqrt()
    return [mean + NormalDist().inv_cdf(fraction) * deviation for fraction in fractions]
