# SPDX-License-Identifier: Apache-2.0
"""Probabilities of keeping: soft samples of masks, their slopes, and the projection onto a budget. Nothing is modified."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Keeps logarithms of 0 finite, in float32 too.
_LEAST = 1e-20
# Halvings of the bracket of a shift in float64, after which its ends are neighbours or lie between the same two entries.
_HALVINGS = 64


def logistic_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Differences of two Gumbel variables, one for each entry of ``like``: log(u / (1 - u)) of a uniform u in (0, 1).

    Drawn in the dtype of ``like``, with zeros in place of u raised to half of the smallest step of u.
    """
    u = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    u.clamp_(min=torch.finfo(like.dtype).eps / 4)
    return u.log() - torch.log1p(-u)


def soft_mask(p: Tensor, noise: Tensor, sharpness: Tensor | float) -> tuple[Tensor, Tensor]:
    """A relaxed sample of masks that are 1 with probability p, and its derivative by p.

    m = sigmoid(T (log p - log(1 - p) + noise)), which tends to such a mask as T grows; dm/dp = T m (1 - m) (1/p + 1/(1 - p)).
    With p and 1 - p at least 1e-20 under logarithms and fractions; where m is rounded to 1, its derivative is 0.

    Args:
        p: in [0, 1]. noise: logistic, of p's shape. sharpness: T > 0, the reciprocal of the temperature; a number or 0-d.
    Source: Maddison et al., "The concrete distribution", ICLR 2017, as used by ProbMask, Zhou et al., CVPR 2021.
    """
    if noise.shape != p.shape:
        raise ValueError(f"soft_mask: noise: expected the shape {tuple(p.shape)} of p, got {tuple(noise.shape)}")
    own, other = p + _LEAST, 1 - p + _LEAST
    mask = torch.sigmoid((own.log() - other.log() + noise) * sharpness)
    return mask, sharpness * mask * (1 - mask) * (1 / own + 1 / other)


def onto_budget(p: Sequence[Tensor], budget: int) -> list[Tensor]:
    """The nearest point of {0 <= p <= 1, sum of all entries <= budget}: clip(p - v, 0, 1) with one v >= 0 for all tensors.

    v is 0 where clip(p, 0, 1) is within the budget already, else what makes the sum equal to it: the bracket of v is halved
    in float64 until one linear piece of the sum is left in it, which is solved. A GPU is not waited for.

    Args:
        p: any finite numbers, at least one tensor, one device. NaN anywhere makes every entry NaN.
        budget: >= 0.

    Returns:
        Tensors of the shapes and dtypes of p, in the order of p.

    Raises:
        ValueError: no tensors or a negative budget. TypeError: a budget that is no int.
    Source: ProbMask, Zhou et al., CVPR 2021, whose code stops after 20 halvings.
    """
    if not p:
        raise ValueError("onto_budget: p: expected tensors, got none")
    if isinstance(budget, bool) or not isinstance(budget, int):
        raise TypeError(f"onto_budget: budget: expected an int >= 0, got {budget!r}")
    if budget < 0:
        raise ValueError(f"onto_budget: budget: expected an int >= 0, got {budget!r}")
    whole = torch.cat([x.detach().reshape(-1) for x in p]).double()
    if not (whole.numel() and budget):
        return [x.detach() * 0 for x in p]
    shift = _shift(whole, budget)
    parts = (whole - shift).clamp_(0, 1).split([x.numel() for x in p])
    return [part.reshape(x.shape).to(x.dtype) for part, x in zip(parts, p, strict=True)]


def _shift(p: Tensor, budget: int) -> Tensor:
    """v, 0-d float64."""
    low = torch.zeros((), dtype=torch.float64, device=p.device)
    high = p.max().clamp(min=0)  # nothing is left there
    for i in range(_HALVINGS):
        middle = (low + high) / 2
        above = (p - middle).clamp_(0, 1).sum() > budget
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        # Looking costs nothing on a CPU; elsewhere the host would have to wait.
        if i % 8 == 7 and p.device.type == "cpu" and not bool(_bends(p, low, high)):
            break
    # No entry reaches 0 or 1 within the bracket, so that the sum falls by as much as there are entries in between.
    inside, full = (p >= high) & (p - 1 <= low), p - 1 >= high
    solved = (torch.where(inside, p, 0).sum() + full.sum() - budget) / inside.sum()
    shift = torch.where((solved >= low) & (solved <= high), solved, high)
    fits = p.clamp(0, 1).sum() <= budget
    return torch.where(fits, 0, shift) + p.sum() * 0


def _bends(p: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Does an entry reach 0 or 1 at a shift between the two?"""
    return (((p > low) & (p < high)) | ((p - 1 > low) & (p - 1 < high))).any()
