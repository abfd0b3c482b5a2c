# SPDX-License-Identifier: Apache-2.0
"""The scores of BiP: where they start and how the upper step moves them.

A start from given masks needs scores that rank every kept entry above every pruned one. Let k be the number of kept
entries among those that are ranked together, and a the k-th largest |theta| among them, where magnitude would cut. Then

    |s| = max(|theta|, a)          of a kept entry
    |s| = min(|theta|, a (1 - e))  of a pruned entry, e the machine epsilon, so that this is the largest number below a

and s has the sign of theta. So at least k entries have |s| >= a, and these are the kept ones. Entries on which the given
masks and those of magnitude agree keep s = theta (but for pruned ones that tie with a); the others stand at the border,
and are the first to change sides. Units (filters, channels, blocks) are scaled as wholes by the same rule for their norms,
with 16 e of theta's dtype to either side of a, as the norm of a scaled unit is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsekit import criteria, ops
from sparsekit.coupled import CoupledFilters
from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import shards
from sparsekit.patterns import NM, Key, Pattern, Unstructured


def first_scores(theta: Mapping[str, Tensor], key: Key) -> dict[str, Tensor]:
    """Copies of theta, or |theta| for the value key."""
    return {name: w.abs() if key == "value" else w.clone() for name, w in theta.items()}


def scores_of_masks(layers: Mapping[str, MaskedLayer], pattern: Pattern, key: Key, together: bool) -> dict[str, Tensor]:
    """Scores nearest to theta, as said above, whose projection gives the present masks.

    Args:
        together: are all layers ranked together, or each on its own?
    """
    theta = {name: shards.gathered(layer.weight.detach()) for name, layer in layers.items()}
    kept = {name: layer.mask.dense() for name, layer in layers.items()}
    if isinstance(pattern, CoupledFilters):
        scores = _coupled_scores(theta, kept, pattern, key, together)
    else:
        scores = _layer_scores(theta, kept, pattern, key, together)
    if key == "value":
        scores = {name: s.abs() for name, s in scores.items()}
    return {name: shards.spread_as(scores[name], layer.weight) for name, layer in layers.items()}


def _layer_scores(
    theta: Mapping[str, Tensor], kept: Mapping[str, Tensor], pattern: Pattern, key: Key, together: bool
) -> dict[str, Tensor]:
    names, eps = list(theta), _eps(theta)
    single, scores = isinstance(pattern, (Unstructured, NM)), {}
    for group in [names] if together else [[name] for name in names]:
        if single:
            sizes = _parted([theta[n].abs() for n in group], [kept[n] for n in group], 0.0, eps)
            scores |= {
                n: torch.where(theta[n] < 0, -s, s).to(theta[n].dtype) for n, s in zip(group, sizes, strict=True)
            }
        else:
            units = [pattern.unit_scores(theta[n].abs(), key) for n in group]
            whole = [pattern.reduce_sum(kept[n]) > 0 for n in group]
            for n, was, size in zip(group, units, _parted(units, whole, 16 * eps, 16 * eps), strict=True):
                scores[n] = _scaled(theta[n], *(pattern.expand(u, theta[n].shape) for u in (was, size)))
    return scores


def _coupled_scores(
    theta: Mapping[str, Tensor], kept: Mapping[str, Tensor], pattern: CoupledFilters, key: Key, together: bool
) -> dict[str, Tensor]:
    eps = _eps(theta)
    units = pattern.group_scores({n: w.abs() for n, w in theta.items()}, key)
    whole = pattern.kept_units({n: k.flatten(1).any(1) for n, k in kept.items()})
    pairs = [(units, whole)] if together else [([u], [k]) for u, k in zip(units, whole, strict=True)]
    sizes = [size for was, which in pairs for size in _parted(was, which, 16 * eps, 16 * eps)]
    was, size = (pattern.of_filters(values, theta, 1.0) for values in (units, sizes))
    shapes = {n: (-1, *[1] * (w.ndim - 1)) for n, w in theta.items()}
    return {n: _scaled(w, was[n].reshape(shapes[n]), size[n].reshape(shapes[n])) for n, w in theta.items()}


def _eps(theta: Mapping[str, Tensor]) -> float:
    return max(torch.finfo(w.dtype).eps for w in theta.values())


def _parted(sizes: Sequence[Tensor], kept: Sequence[Tensor], above: float, below: float) -> list[Tensor]:
    """Sizes of which the kept ones, and no others, reach the border; above, below: relative distances from it."""
    flat, count = torch.cat([s.flatten() for s in sizes]), sum(int(k.sum()) for k in kept)
    if not 0 < count < len(flat):
        return list(sizes)
    # Zeros may be kept, which the pruned ones must not tie with.
    border = flat.kthvalue(len(flat) - count + 1).values.clamp(min=torch.finfo(flat.dtype).tiny)
    high, low = border * (1 + above), border * (1 - below)
    raised = [torch.where(k & (s < border), high, s) for s, k in zip(sizes, kept, strict=True)]
    return [torch.where(~k & (s >= border), low, s) for s, k in zip(raised, kept, strict=True)]


def _scaled(theta: Tensor, was: Tensor, size: Tensor) -> Tensor:
    """Theta with its units, whose size ``was`` is, brought to ``size``; a unit of zeros becomes one of equal entries."""
    scaled = torch.where(was == size, theta.to(size.dtype), theta * (size / was))
    return torch.where((was == 0) & (size > 0), size, scaled).to(theta.dtype)


def update_scores(
    upper: torch.optim.Optimizer,
    scores: Mapping[str, Tensor],
    layers: Mapping[str, MaskedLayer],
    h: Mapping[str, Tensor],
    gamma: float,
    key: str,
) -> None:
    """The upper step on the scores of all layers at once, at the present theta and mask; state as of the optimizer's.

    key: of the scores, or "released".
    """
    (group,) = upper.param_groups
    values = list(scores.values())
    momentum, state = group["momentum"], upper.state
    first = "momentum_buffer" not in state[values[0]]
    if momentum and first:
        for s in values:
            state[s]["momentum_buffer"] = torch.empty_like(s, requires_grad=False)
    ops.bilevel_update_(
        values,
        [layer.weight for layer in layers.values()],
        [h[name] for name in layers],
        [layer.mask_words for layer in layers.values()],
        lr=group["lr"],
        gamma=gamma,
        key=key,
        momentum=momentum,
        weight_decay=group["weight_decay"],
        momenta=[state[s]["momentum_buffer"] for s in values] if momentum else (),
        first=first,
    )


@torch.no_grad()
def tied_gradients(
    layers: Mapping[str, MaskedLayer], h: Mapping[str, Tensor], gamma: float, released: bool
) -> dict[str, Tensor]:
    """Gradient of the upper objective with respect to the scores, which are theta, at the present theta and mask."""

    def of_part(theta: Tensor, h: Tensor, words: Tensor) -> Tensor:
        if released:
            return criteria.released_hypergradient(theta, h, theta, 1 / gamma)
        return criteria.bip_hypergradient(theta, ops.unpack_mask(words, theta.shape), h, theta, gamma)

    gradients = {}
    for name, layer in layers.items():
        spread = layer.weight, h[name], layer.spread_words
        gradients[name] = shards.on_parts(of_part, *spread, shape=layer.weight.shape)
    return gradients
