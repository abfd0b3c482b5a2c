# SPDX-License-Identifier: Apache-2.0
"""Weights as functions of what is trained in their place, and the chain rule through them, as pure functions.

w is the weight that the network uses, u or phi the leaf that an optimizer trains; dw = dL/dw. Nothing is modified, and
results have the leaf's shape and dtype unless said otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor


def soft_threshold(u: Tensor, s: Tensor) -> Tensor:
    """w = sign(u) * relu(|u| - sigmoid(s)).

    Args:
        u: leaf. s: 0-d, of any sign; sigmoid(s) is the threshold. -inf leaves u, inf is a threshold of 1.

    Source: STR, Kusupati et al., ICML 2020, equation 4 with the sigmoid of its experiments.
    """
    return torch.sign(u) * torch.relu(u.abs() - torch.sigmoid(s))


def soft_threshold_gradients(u: Tensor, s: Tensor, dw: Tensor) -> tuple[Tensor, Tensor]:
    """(dL/du, dL/ds): dw where |u| > sigmoid(s) and else 0; -sigmoid'(s) * sum of sign(u) * dw over the same weights, 0-d.

    Source: STR, equations 5 to 7; the gradient of relu at 0 is 0.
    """
    level = torch.sigmoid(s)
    du = torch.where(u.abs() > level, dw, 0)
    return du, -level * (1 - level) * (torch.sign(u) * du).sum()


def threshold_margin(u: Tensor, s: Tensor) -> Tensor:
    """|u| - sigmoid(s): |w| where that is above 0, and below it what is missing."""
    return u.abs() - torch.sigmoid(s)


def crossing(u: Tensor, s: Tensor) -> Tensor:
    """The shift b at which a threshold sigmoid(s + b) reaches |u|: logit(|u|) - s; -inf at 0, inf from |u| = 1 on."""
    return torch.logit(u.abs().clamp(max=1)) - s


def powered(phi: Tensor, alpha: float) -> Tensor:
    """w = phi * |phi|^(alpha - 1), alpha >= 1.

    Source: Powerprop, Schwarz et al., NeurIPS 2021, equation 2.
    """
    return phi * phi.abs().pow(alpha - 1)


def powered_gradient(phi: Tensor, alpha: float, dw: Tensor) -> Tensor:
    """dL/dphi = alpha * |phi|^(alpha - 1) * dw, so that small weights learn slowly and zero stays zero for alpha > 1.

    By formula: through the power, autograd divides by zero where phi is 0.
    Source: Powerprop, section 2.
    """
    return alpha * phi.abs().pow(alpha - 1) * dw


def rooted(w: Tensor, alpha: float) -> Tensor:
    """phi = sign(w) * |w|^(1 / alpha), of which ``powered`` makes w again.

    Source: Powerprop, section 2 on initialisation.
    """
    return torch.sign(w) * w.abs().pow(1 / alpha)
