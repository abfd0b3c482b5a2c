# SPDX-License-Identifier: Apache-2.0
"""Public functions on whole lists of layers: effective weights, both gradients of z = m * theta, and masked steps.

Each is one launch for up to 56 layers of one dtype (72 for ``mask_weights``), a few layers of odd sizes one more. Lists have
one entry per layer: its weight, int32 words of its mask, its *dense* gradient dL/dz (also where the mask is zero; float32
weights may have gradients of 16 bits), and state of the weight's shape. All on one device. Results do not depend on the
number of threads, nor on CPU or CUDA, where the compiled module serves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekit.ops import multi as _schemas  # noqa: F401  (defines the ops)
from sparsekit.ops import shards
from sparsekit.ops.masks import check_words, choose
from sparsekit.ops.numbers import check_number, number_on, rates
from sparsekit.ops.shards import check_score

SCORE_KEYS = ("magnitude", "value", "released")


def _checked(function: str, words: Sequence[Tensor], **lists: Sequence[Tensor]) -> list[list[Tensor]]:
    """The lists, detached, and the words; raises unless they fit together. The first list is what the others must fit."""
    owner, weights = next(iter(lists.items()))
    for name, given in {**lists, "words": words}.items():
        if isinstance(given, Tensor) or not isinstance(given, Sequence):
            raise TypeError(f"{function}: {name}: expected a sequence of tensors, got {type(given).__name__}")
        if len(given) != len(weights):
            raise ValueError(f"{function}: {name}: expected {len(weights)} tensors ({owner}'), got {len(given)}")
        for i, x in enumerate(given):
            if name != "words" or not isinstance(x, Tensor):
                check_score(f"{function}: {name}[{i}]", x)
            if x.device != weights[0].device:
                raise ValueError(f"{function}: {name}[{i}]: expected device {weights[0].device}, got {x.device}")
            if name != "words" and x.shape != weights[i].shape:
                raise ValueError(
                    f"{function}: {name}[{i}]: expected shape {tuple(weights[i].shape)} ({owner}'), got {tuple(x.shape)}"
                )
    for i, (weight, w) in enumerate(zip(weights, words, strict=True)):
        check_words(function, w, weight.shape, f"{owner}[{i}]")
    if not any(map(shards.is_spread, weights)):
        return [[x.detach() for x in given] for given in (*lists.values(), words)]
    return _parts(function, words, lists)


def _parts(function: str, words: Sequence[Tensor], lists: dict[str, Sequence[Tensor]]) -> list[list[Tensor]]:
    """What this process has of DTensors and of their masks, which may be whole on every process."""
    weights = next(iter(lists.values()))
    for i, weight in enumerate(weights):
        if shards.is_spread(weight):
            shards.check_spread(f"{function}: {next(iter(lists))}[{i}]", weight)
    found = [
        [shards.pair_parts(f"{function}: {name}[{i}]", weights[i], x) for i, x in enumerate(given)]
        for name, given in lists.items()
    ]
    return [*found, [shards.part(shards.spread_as(w, weight)) for w, weight in zip(words, weights, strict=True)]]


def mask_weights(weights: Sequence[Tensor], words: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """``mask_weight`` of every layer: ``where(m, weight, 0)`` in ``dtype`` (default: each weight's own), strides kept.

    Raises:
        ValueError, TypeError: lists that do not fit together.
    """
    given = weights
    weights, words = _checked("mask_weights", words, weights=weights)
    masked: dict[int, Tensor] = {}
    for kind in {dtype or weight.dtype for weight in weights}:
        own = [i for i, weight in enumerate(weights) if (dtype or weight.dtype) == kind]
        pairs = [weights[i] for i in own], [words[i] for i in own]
        masked |= zip(own, torch.ops.sparsekit.mask_weights(*pairs, kind), strict=True)
    return [shards.spread(masked[i], weight, weight.shape) for i, weight in enumerate(given)]


def bilinear_grads(
    grads: Sequence[Tensor], weights: Sequence[Tensor], words: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Both gradients of L(m * theta) from one dense gradient h = dL/dz: (dL/dtheta = where(m, h, 0), dL/dm = theta * h).

    Returns:
        Two lists of tensors of the weights' dtype, shape and strides. Not differentiable.

    Raises:
        ValueError, TypeError: lists that do not fit together.
    """
    if spread := next((w for w in weights if shards.is_spread(w)), None):
        raise ValueError(f"bilinear_grads: weights: expected plain tensors, got a DTensor {tuple(spread.shape)}")
    weights, grads, words = _checked("bilinear_grads", words, weights=weights, grads=grads)
    return torch.ops.sparsekit.bilinear_grads(grads, weights, words) if weights else ([], [])


def bilevel_update_(
    scores: Sequence[Tensor],
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    words: Sequence[Tensor],
    *,
    lr: float | Tensor,
    gamma: float = 1.0,
    key: str = "magnitude",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    momenta: Sequence[Tensor] = (),
    first: bool = False,
) -> None:
    """BiP's upper step, in place: SGD on the scores, s <- s - lr * sign(s) * (theta * h - (1/gamma) * where(m, h^2, 0)).

    Bit for bit torch.optim.SGD on ``criteria.bip_hypergradient`` on a CPU that fuses products and sums (every x86 since
    2013); elsewhere a learning rate's or decay's product is rounded once more there. The weight step of the lower level is
    ``masked_sgd_``.

    Args:
        scores: s, written; may be the weights themselves ("tied").
        weights: theta. grads: h, dense. words: the mask m.
        lr: >= 0, or a 0-d tensor on the device, which a captured graph reads anew at each replay.
        gamma: > 0; inf leaves the second term out.
        key: "magnitude" with sign(0) = +1, "value" without the sign, "released" for
            ``criteria.released_hypergradient`` with lr2 = 1/gamma.
        momentum, weight_decay: as of torch.optim.SGD, >= 0.
        momenta: buffers, written; needed with momentum. first: they start with this step, whatever they hold.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong kind; nothing is written then.
    """
    name = "bilevel_update_"
    choose(name, "key", key, SCORE_KEYS)
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not gamma > 0:
        raise ValueError(f"{name}: gamma: expected a number > 0 or inf, got {gamma!r}")
    check_number(name, "momentum", momentum, 0.0)
    check_number(name, "weight_decay", weight_decay, 0.0)
    lists = {"scores": scores, "weights": weights, "grads": grads, **({"momenta": momenta} if momentum else {})}
    checked = _checked(name, words, **lists)
    if not scores:
        return
    s, theta, h, *buffers, bits = checked
    changing, number = rates(number_on(name, "lr", lr, s[0].device))
    options = (changing, number, float(momentum), float(weight_decay), float(gamma), key, first)
    torch.ops.sparsekit.bilevel_update_(s, buffers[0] if buffers else [], theta, h, bits, *options)


def masked_sgd_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    words: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    momenta: Sequence[Tensor] = (),
    first: bool = False,
) -> None:
    """A step of torch.optim.SGD that leaves pruned weights and their momentum bit-unchanged, in place.

    Args:
        weights: written where the mask is one. grads: dense or masked, the entries under zero bits do not count.
        lr, momenta, first: as of ``bilevel_update_``; ``momentum``, ``dampening``, ``weight_decay``, ``nesterov``: as of
            torch.optim.SGD, with the same bits as its step on a CPU that fuses products and sums.

    ``sparsekit.guard_`` gives the same weights with any optimizer, at the price of two more passes over weights and state;
    this is for loops that make their own steps.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong kind; nothing is written then.
    """
    name = "masked_sgd_"
    check_number(name, "momentum", momentum, 0.0)
    check_number(name, "dampening", dampening, 0.0)
    check_number(name, "weight_decay", weight_decay, 0.0)
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(
            f"{name}: nesterov: expected momentum > 0 and dampening 0 with it, got {momentum}, {dampening}"
        )
    checked = _checked(name, words, weights=weights, grads=grads, **({"momenta": momenta} if momentum else {}))
    if not weights:
        return
    theta, g, *buffers, bits = checked
    changing, number = rates(number_on(name, "lr", lr, theta[0].device))
    options = (changing, number, float(momentum), float(dampening), float(weight_decay), nesterov, first)
    torch.ops.sparsekit.masked_sgd_(theta, buffers[0] if buffers else [], g, bits, *options)


def masked_adamw_(
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    grads: Sequence[Tensor],
    words: Sequence[Tensor],
    *,
    lr: float | Tensor,
    step: int | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> None:
    """A step of torch.optim.AdamW that leaves pruned weights and their moments bit-unchanged, in place.

    Args:
        weights, first, second: theta and the running means of g and g^2 (zeros at the start), written where the mask is one.
        grads: dense or masked, the entries under zero bits do not count.
        lr: as of ``bilevel_update_``. step: number of this step, from 1; a 0-d tensor on the device for captured graphs.
        betas, eps, weight_decay: as of torch.optim.AdamW. On a CPU that fuses, moments have the same bits as after its step;
            weights too, but for its float32 root, which is not correctly rounded as this one is and at times one ulp off.

    For ``sparsekit.guard_`` see ``masked_sgd_``.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong kind; nothing is written then.
    """
    name = "masked_adamw_"
    for argument, beta in zip(("betas[0]", "betas[1]"), betas, strict=True):
        check_number(name, argument, beta, 0.0, 1.0)
    check_number(name, "eps", eps, 0.0)
    check_number(name, "weight_decay", weight_decay, 0.0)
    lists = _checked(name, words, weights=weights, first=first, second=second, grads=grads)
    if not weights:
        return
    rate = number_on(name, "lr", lr, weights[0].device)
    t = step if isinstance(step, int) else number_on(name, "step", step, weights[0].device)
    if not isinstance(t, Tensor) and not t >= 1:
        raise ValueError(f"{name}: step: expected a number >= 1, got {step!r}")
    factors = [1 - rate * weight_decay, rate / (1 - betas[0] ** t), (1 - betas[1] ** t) ** 0.5]
    there = [x for x in factors if isinstance(x, Tensor)]
    # Filled on the device: a copy from the host could not be captured.
    rates = torch.stack([x if isinstance(x, Tensor) else there[0].new_full((), x) for x in factors]) if there else None
    numbers = [0.0] * 3 if there else factors
    torch.ops.sparsekit.masked_adamw_(*lists, rates, numbers, float(betas[0]), float(betas[1]), float(eps))
