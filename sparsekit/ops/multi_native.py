# SPDX-License-Identifier: Apache-2.0
"""The ops on lists of layers by the compiled module, for CPU and CUDA tensors; serving.py decides where the latter serve.

Layers that the module does not take (other dtypes, strides without gaps in no known order) go the reference's way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from sparsekit.ops import multi_reference as reference
from sparsekit.ops import reference as layers
from sparsekit.ops.multi import MULTI_OPS
from sparsekit.ops.native import _C, SCORE_DTYPES, STREAMED, layout, place, threads_for
from sparsekit.ops.schemas import LIBRARY

_NARROW = (torch.bfloat16, torch.float16)


def _fits(own: Sequence[Tensor], grad: Tensor) -> bool:
    """Does the module take the operands of a layer (the first says how memory is laid out) with such a gradient?"""
    like, spatial = own[0], layout(own[0])
    if spatial is None or like.dtype not in (torch.float32, torch.float64):
        return False
    if grad.dtype != like.dtype and not (like.dtype == torch.float32 and grad.dtype in _NARROW):
        return False
    return all(x.dtype == like.dtype and layout(x) == spatial and not x.is_neg() for x in own)


def _aligned(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient laid out as the layer's operands."""
    if layout(grad) == layout(like) and not grad.is_neg():
        return grad
    return torch.empty_like(like, dtype=grad.dtype).copy_(grad)


def _run(
    name: str,
    operands: Sequence[Sequence[Tensor]],
    grads: Sequence[Tensor],
    words: Sequence[Tensor],
    on_device: bool,
    rates: Tensor | None = None,
    options: tuple[Any, ...] = ([], [], ""),
) -> list[int]:
    """The module's step on every layer that it takes, in one call for each pair of dtypes; returns the others' numbers.

    operands: one list per role of the step. options: the module's rates, numbers and key.
    """
    own = list(zip(*operands, strict=True))
    groups: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
    others = []
    for i, (mine, grad) in enumerate(zip(own, grads, strict=True)):
        if _fits(mine, grad):
            groups.setdefault((mine[0].dtype, grad.dtype), []).append(i)
        else:
            others.append(i)
    for (dtype, grad_dtype), members in groups.items():
        alike = [_aligned(grads[i], own[i][0]) for i in members]
        bits = [words[i].contiguous() for i in members]
        addresses = [a for i in members for a in ([x.data_ptr() for x in own[i]] + [0, 0])[:3]]
        sizes = zip(*(layers.rows_cols(own[i][0].shape) for i in members), strict=True)
        shared = (addresses, [g.data_ptr() for g in alike], [b.data_ptr() for b in bits], *map(list, sizes))
        spatial = [max(layout(own[i][0]) or 1, 1) for i in members]
        codes = [_C.dtypes[SCORE_DTYPES[d]] for d in (dtype, grad_dtype)]
        if on_device:
            there = 0 if rates is None else rates.data_ptr()
            getattr(_C, f"cuda_{name}")(*shared, spatial, *codes, *options, there, *place(own[members[0]][0]))
        else:
            threads = threads_for(sum(g.numel() for g in alike))
            given = (options[0] if rates is None else rates.tolist(), *options[1:])
            getattr(_C, name)(*shared, spatial, *codes, *given, threads)
    return others


def _written(*lists: Sequence[Tensor]) -> None:
    """Tell autograd and caches that these tensors have changed: the module writes behind PyTorch's back."""
    changed = [x for given in lists for x in given if not x.is_inference()]
    torch.autograd.graph.increment_version(changed)


def _pick(members: Sequence[int], *lists: Sequence[Tensor]) -> list[list[Tensor]]:
    return [[given[i] for i in members] if given else [] for given in lists]


def _mask_weights(
    weights: Sequence[Tensor], words: Sequence[Tensor], dtype: torch.dtype, on_device: bool
) -> list[Tensor]:
    casts = {(kind, kind) for kind in SCORE_DTYPES} | {(torch.float32, narrow) for narrow in _NARROW}
    outs = [torch.empty_like(weight, dtype=dtype) for weight in weights]
    groups: dict[torch.dtype, list[int]] = {}
    for i, weight in enumerate(weights):
        if (weight.dtype, dtype) in casts and layout(weight) is not None and not weight.is_neg():
            groups.setdefault(weight.dtype, []).append(i)
        else:
            outs[i] = layers.mask_weight(weight, words[i], dtype)
    for kind, members in groups.items():
        # The CPU code does not cast: the masked weight has the weight's dtype first.
        made = [outs[i] if on_device or kind == dtype else torch.empty_like(weights[i]) for i in members]
        bits = [words[i].contiguous() for i in members]
        pointers = [[x.data_ptr() for x in given] for given in ([weights[i] for i in members], bits, made)]
        rows, cols = map(list, zip(*(layers.rows_cols(x.shape) for x in made), strict=True))
        spatial = [max(layout(weights[i]) or 1, 1) for i in members]
        if on_device:
            codes = [_C.dtypes[SCORE_DTYPES[d]] for d in (kind, dtype)]
            _C.cuda_mask_weights(*pointers, rows, cols, *codes, spatial, *place(made[0]))
            continue
        _C.mask_weights(
            *pointers, rows, cols, made[0].element_size(), spatial, threads_for(sum(x.numel() for x in made), STREAMED)
        )
        for i, x in zip(members, made, strict=True):
            outs[i] = x if x is outs[i] else outs[i].copy_(x)
    return outs


def _bilinear_grads(
    grads: Sequence[Tensor], weights: Sequence[Tensor], words: Sequence[Tensor], on_device: bool
) -> tuple[list[Tensor], list[Tensor]]:
    masked, products = ([torch.empty_like(weight) for weight in weights] for _ in range(2))
    for i in _run("bilinear_grads", [weights, masked, products], grads, words, on_device):
        ((masked[i],), (products[i],)) = reference.bilinear_grads([grads[i]], [weights[i]], [words[i]])
    return masked, products


def _bilevel_update_(
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
    on_device: bool,
) -> None:
    roles = [scores, weights, *([momenta] if momentum else [])]
    options = [lr], [momentum, weight_decay, 1 / gamma, float(first)], key
    others = _run("bilevel_update", roles, grads, words, on_device, rates, options)
    s, m, theta, h, bits = _pick(others, scores, momenta, weights, grads, words)
    reference.bilevel_update_(s, m, theta, h, bits, rates, lr, momentum, weight_decay, gamma, key, first)
    _written(scores, momenta)


def _masked_sgd_(
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
    on_device: bool,
) -> None:
    options = [lr], [momentum, dampening, weight_decay, float(nesterov), float(first)], ""
    roles = [weights, *([momenta] if momentum else [])]
    others = _run("masked_sgd", roles, grads, words, on_device, rates, options)
    theta, m, g, bits = _pick(others, weights, momenta, grads, words)
    reference.masked_sgd_(theta, m, g, bits, rates, lr, momentum, dampening, weight_decay, nesterov, first)
    _written(weights, momenta)


def _masked_adamw_(
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
    on_device: bool,
) -> None:
    options = list(factors), [beta1, beta2, eps], ""
    others = _run("masked_adamw", [weights, first, second], grads, words, on_device, rates, options)
    theta, m, v, g, bits = _pick(others, weights, first, second, grads, words)
    reference.masked_adamw_(theta, m, v, g, bits, rates, factors, beta1, beta2, eps)
    _written(weights, first, second)


_NATIVE = (_mask_weights, _bilinear_grads, _bilevel_update_, _masked_sgd_, _masked_adamw_)


def _served(function: Callable[..., Any], on_device: bool) -> Callable[..., Any]:
    @wraps(function)
    def serve(*arguments: Any) -> Any:
        return function(*arguments, on_device)

    return serve


CPU_IMPLEMENTATIONS = {name: _served(f, False) for name, f in zip(MULTI_OPS, _NATIVE, strict=True)}
CUDA_IMPLEMENTATIONS = {name: _served(f, True) for name, f in zip(MULTI_OPS, _NATIVE, strict=True)}

if _C is not None:
    for _name in MULTI_OPS:
        LIBRARY.impl(_name, CPU_IMPLEMENTATIONS[_name], "CPU")


def stepped_on_cpu(name: str) -> Callable[..., None]:
    """An op that writes, on tensors of any device by the module's CPU code, whose arithmetic is that of the kernels."""

    def step(*arguments: Any) -> None:
        there: list[tuple[Tensor, Tensor]] = []

        def fetch(x: Tensor) -> Tensor:
            there.append((x, x.cpu()))
            return there[-1][1]

        CPU_IMPLEMENTATIONS[name](*tree_map_only(Tensor, fetch, arguments))
        for x, here in there:
            x.copy_(here)

    return step
