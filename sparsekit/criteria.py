# SPDX-License-Identifier: Apache-2.0
"""Criteria: scores and score gradients as pure functions of tensors of one weight's shape. Nothing is modified.

theta is the weight, z = where(mask, theta, 0) the effective weight, dz = dL/dz its *dense* gradient (also where the
mask is zero), mask a bool tensor (True = kept), scores the learned scores s. Results have the shape of theta and the
dtype that the arguments promote to. Shapes that differ are a ValueError.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def gate_gradient(theta: Tensor, dz: Tensor) -> Tensor:
    """Gradient theta * dz of the loss with respect to a gate c in z = c * theta, kept or not.

    Source: dE/dm of SpODE, Mo et al., ICML 2023. SNIP's score, Lee et al., ICLR 2019, is its absolute value at c = 1.
    """
    _check_shapes("gate_gradient", theta, dz=dz)
    return theta * dz


def gradient_flow(theta: Tensor, hg: Tensor) -> Tensor:
    """Score theta * (H g): what a weight adds to half the growth of |g|^2 with its own size. The largest are kept.

    The paper ranks S(-theta) = -theta * (H g), what removing the weight adds to the gradient's norm to first order, and
    removes the largest. Signs matter: weights whose presence lowers the gradient flow have negative scores here.

    Args:
        hg: H g, of theta's shape; H and g are Hessian and gradient of the loss at the effective weights.
    Source: GraSP, Wang, Zhang and Grosse, ICLR 2020.
    """
    _check_shapes("gradient_flow", theta, hg=hg)
    return theta * hg


def synaptic_flow(theta: Tensor, dr: Tensor) -> Tensor:
    """Score |theta * dR/dtheta|: all paths through a weight, each by the product of the |theta| on it.

    Args:
        theta: |weights| (or the weights themselves); dr: dR/d|theta| of R, the sum of the outputs for an input of ones of
            the network with all parameters replaced by their absolute values.
    Source: SynFlow, Tanaka, Kunin, Yamins and Ganguli, NeurIPS 2020.
    """
    _check_shapes("synaptic_flow", theta, dr=dr)
    return (theta * dr).abs()


def hydra(theta: Tensor, dz: Tensor, scores: Tensor) -> Tensor:
    """Gradient sign(s) * theta * dz of the loss with respect to the scores, straight through the top-k of |s|.

    sign(0) = +1, so that a score of zero can leave zero.
    Source: Hydra, Sehwag et al., NeurIPS 2020, with the estimator of Ramanujan et al., CVPR 2020.
    """
    _check_shapes("hydra", theta, dz=dz, scores=scores)
    return _with_sign(theta * dz, scores)


def bip_hypergradient(
    theta: Tensor,
    mask: Tensor,
    dz: Tensor,
    scores: Tensor,
    gamma: float,
    key: Literal["magnitude", "value"] = "magnitude",
) -> Tensor:
    """Gradient of BiP's upper level with respect to the scores: sign(s) * (theta * dz - (1/gamma) * mask * dz^2).

    The bracket is dL/dm with the implicit gradient dtheta*/dm = -(1/gamma) diag(dz) of the lower level
    min_theta L(m * theta) + (gamma/2) ||theta||^2, whose own gradient is mask * dz.

    Args:
        theta: weight after the lower step. mask: bool, the mask of this step. dz: dense gradient on the upper batch.
        scores: s; its sign enters because masks are the top-k of |s|. sign(0) = +1.
        gamma: > 0; inf drops the second term exactly, which leaves ``hydra``.
        key: "value" for masks that are the top-k of s itself: no sign.
    Source: BiP, Zhang et al., NeurIPS 2022, Algorithm A1, equation A4.
    """
    _check_shapes("bip_hypergradient", theta, mask=mask, dz=dz, scores=scores)
    if mask.dtype != torch.bool:
        raise TypeError(f"bip_hypergradient: mask: expected a bool tensor, got {mask.dtype}")
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not gamma > 0:
        raise ValueError(f"bip_hypergradient: gamma: expected a number > 0 or inf, got {gamma!r}")
    if key not in ("magnitude", "value"):
        raise ValueError(f"bip_hypergradient: key: expected 'magnitude' or 'value', got {key!r}")
    gradient = theta * dz
    if not math.isinf(gamma):
        # where, not a product: an overflow of dz^2 under a zero mask bit must not become NaN.
        gradient = gradient - torch.where(mask, dz * dz, 0) * (1 / gamma)
    return _with_sign(gradient, scores) if key == "magnitude" else gradient


def released_hypergradient(theta: Tensor, dz: Tensor, scores: Tensor, lr2: float = 1e-4) -> Tensor:
    """What BiP's released code uses in place of ``bip_hypergradient``: g - lr2 * g^2 with g = sign(s) * theta * dz.

    The code multiplies the score gradient by itself where equation A4 has the weight gradient, hence theta^2 dz^2 with
    no mask and no sign. Here sign(0) = 0: autograd differentiates |s| that way.

    Args:
        lr2: the code's name for 1/gamma, finite and >= 0; its configurations use 1e-4.
    """
    _check_shapes("released_hypergradient", theta, dz=dz, scores=scores)
    if isinstance(lr2, bool) or not isinstance(lr2, (int, float)) or not 0 <= lr2 < math.inf:
        raise ValueError(f"released_hypergradient: lr2: expected a finite number >= 0, got {lr2!r}")
    gradient = torch.sign(scores) * (theta * dz)
    return gradient - lr2 * gradient * gradient


def _with_sign(gradient: Tensor, scores: Tensor) -> Tensor:
    return torch.where(scores < 0, -gradient, gradient)


def _check_shapes(where: str, theta: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.shape != theta.shape:
            expected = f"the shape {tuple(theta.shape)} of theta"
            raise ValueError(f"{where}: {name}: expected {expected}, got {tuple(tensor.shape)}")
