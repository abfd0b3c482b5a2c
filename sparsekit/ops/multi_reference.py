# SPDX-License-Identifier: Apache-2.0
"""Readable PyTorch implementations of the ops on whole lists of layers (multi.py), layer by layer.

The steps are the very calls that torch.optim makes, in its order, but for the exact root of AdamW. ``rates`` are numbers
as a float64 tensor on the tensors' device, in place of the numbers themselves, where only the device knows them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekit import criteria
from sparsekit.ops.reference import mask_weight, unpack_mask


def mask_weights(weights: Sequence[Tensor], words: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """``where(m, weight, 0)`` in ``dtype`` of every layer."""
    return [mask_weight(weight, w, dtype) for weight, w in zip(weights, words, strict=True)]


def bilinear_grads(
    grads: Sequence[Tensor], weights: Sequence[Tensor], words: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """(where(m, grad, 0), weight * grad) of every layer, in the weight's dtype and strides."""
    masked, products = [], []
    for grad, weight, w in zip(grads, weights, words, strict=True):
        wide = torch.empty_like(weight).copy_(grad)
        masked.append(mask_weight(wide, w, weight.dtype))
        products.append(wide.mul_(weight))
    return masked, products


def numbers_of(rates: Tensor | None, numbers: Sequence[float]) -> Sequence[float | Tensor]:
    """The rates where there are any: as floats if reading them is free, else as 0-d tensors."""
    if rates is None:
        return numbers
    return rates.tolist() if rates.device.type == "cpu" else rates.unbind()


def _subtract(target: Tensor, rate: float | Tensor, step: Tensor) -> None:
    """target <- target - rate * step."""
    if isinstance(rate, Tensor):
        target.addcmul_(step, -rate.to(target.dtype))
    else:
        target.add_(step, alpha=-rate)


def _square_root(x: Tensor) -> Tensor:
    """Correctly rounded: PyTorch's own float32 root on a CPU is now and then the next number."""
    return x.double().sqrt().to(x.dtype)


def bilevel_update_(
    scores: Sequence[Tensor],
    momenta: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    words: Sequence[Tensor],
    rates: Tensor | None,
    lr: float,
    momentum: float,
    weight_decay: float,
    gamma: float,
    key: str,
    first: bool,
) -> None:
    """SGD on the scores along criteria.bip_hypergradient (key "released": criteria.released_hypergradient)."""
    (rate,) = numbers_of(rates, [lr])
    for i, (s, weight, h, w) in enumerate(zip(scores, weights, grads, words, strict=True)):
        if key == "released":
            g = criteria.released_hypergradient(weight, h.to(weight.dtype), s, 1 / gamma)
        else:
            mask = unpack_mask(w, weight.shape)
            g = criteria.bip_hypergradient(weight, mask, h.to(weight.dtype), s, gamma, key)  # pyright: ignore
        g = g.to(s.dtype)
        if weight_decay:
            g = g.add(s, alpha=weight_decay)
        if momentum:
            g = momenta[i].copy_(g) if first else momenta[i].mul_(momentum).add_(g)
        _subtract(s, rate, g)


def masked_sgd_(
    weights: Sequence[Tensor],
    momenta: Sequence[Tensor],
    grads: Sequence[Tensor],
    words: Sequence[Tensor],
    rates: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    first: bool,
) -> None:
    """One step of torch.optim.SGD, then what is pruned put back as it was."""
    (rate,) = numbers_of(rates, [lr])
    for i, (weight, grad, w) in enumerate(zip(weights, grads, words, strict=True)):
        mask, g, moved = unpack_mask(w, weight.shape), grad.to(weight.dtype), weight.clone()
        if weight_decay:
            g = g.add(weight, alpha=weight_decay)
        if momentum:
            buffer = g.clone() if first else momenta[i].clone().mul_(momentum).add_(g, alpha=1 - dampening)
            momenta[i].copy_(torch.where(mask, buffer, momenta[i]))
            g = g.add(buffer, alpha=momentum) if nesterov else buffer
        _subtract(moved, rate, g)
        weight.copy_(torch.where(mask, moved, weight))


def masked_adamw_(
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    grads: Sequence[Tensor],
    words: Sequence[Tensor],
    rates: Tensor | None,
    factors: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One step of torch.optim.AdamW, then what is pruned put back as it was.

    factors: of the weight (1 - lr * weight decay), step size lr / (1 - beta1^t), root of 1 - beta2^t.
    """
    keep, size, root = numbers_of(rates, factors)
    for weight, m, v, grad, w in zip(weights, first, second, grads, words, strict=True):
        mask, g = unpack_mask(w, weight.shape), grad.to(weight.dtype)
        moved, mean, square = weight.mul(keep), m.lerp(g, 1 - beta1), v.mul(beta2).addcmul_(g, g, value=1 - beta2)
        below = _square_root(square).div_(root).add_(eps)
        if isinstance(size, Tensor):
            moved.sub_(mean.div(below).mul_(size))
        else:
            moved.addcdiv_(mean, below, value=-size)
        for old, new in ((weight, moved), (m, mean), (v, square)):
            old.copy_(torch.where(mask, new, old))
