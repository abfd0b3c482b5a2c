# SPDX-License-Identifier: Apache-2.0
"""Scores and score gradients: pure functions of the weight theta, the mask m and h = dl/dz at z = where(m, theta, 0).

All tensors of one call share one shape and one floating dtype; ``mask`` is bool. h holds every entry, kept or not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude(theta: Tensor) -> Tensor:
    """|theta| (Han et al., 2015)."""
    return theta.abs()


def saliency(theta: Tensor, dz: Tensor) -> Tensor:
    """|theta * h|, the connection sensitivity before normalisation (Lee et al., 2019, eq. 5)."""
    return (theta * dz).abs()


def gate_gradient(theta: Tensor, dz: Tensor) -> Tensor:
    """theta * h = dl/dm for a gate m on theta (SpODE's dE/dm at a hard mask)."""
    return theta * dz


def score_sign(scores: Tensor) -> Tensor:
    """sign(s) with sign(0) = +1, the derivative of |s| that lets a zero score move."""
    return torch.where(scores < 0, -torch.ones_like(scores), torch.ones_like(scores))


def hydra(theta: Tensor, dz: Tensor, scores: Tensor) -> Tensor:
    """sign(s) * theta * h: straight-through gradient of the scores (Sehwag et al., 2020)."""
    return score_sign(scores) * theta * dz


def bip_hypergradient(
    theta: Tensor, mask: Tensor, dz: Tensor, scores: Tensor, gamma: float, key: str = "magnitude"
) -> Tensor:
    """BiP's upper-level gradient of the scores (Zhang et al., 2022, eq. A4).

        sign(s) * (theta * h - (1/gamma) * m * h^2)

    The second term is the implicit gradient, through the lower level's theta*(m) with a Hessian-free Jacobian
    -(1/gamma) diag(h); it is non-zero on kept weights only. gamma = inf drops it.

    Args:
        gamma: > 0, strength of the lower level's regulariser.
        key: "magnitude" ranks by |s|; "value" by s, and has no sign factor.
    """
    gradient = theta * dz
    if gamma != float("inf"):
        gradient = gradient - torch.where(mask, dz * dz, torch.zeros_like(dz)) / gamma
    return gradient if key == "value" else score_sign(scores) * gradient


def released_hypergradient(theta: Tensor, dz: Tensor, scores: Tensor, lr2: float) -> Tensor:
    """What the released BiP code adds up: g - lr2 * g^2 with the score gradient g = sign(s) * theta * h.

    Its implicit term multiplies the score gradient by itself where (A4) has the weight gradient.
    """
    gradient = hydra(theta, dz, scores)
    return gradient - lr2 * gradient * gradient
