# SPDX-License-Identifier: Apache-2.0
"""Every op schema of the ``sparsekit`` namespace with its fake, its FLOP formula and its device-independent default.

Schemas live in Python so that the package imports on any machine; compiled code only adds implementations (native.py).
Tensors that a backward op was not asked for come back empty, because an op cannot return an absent tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from sparsekit.ops import formulas, reference

LIBRARY = torch.library.Library("sparsekit", "DEF")
MaskGradient = Callable[[Tensor, Tensor], Tensor]
DEFAULT = "CompositeExplicitAutograd"
OP_NAMES = [
    "pack_mask",
    "unpack_mask",
    "popcount",
    "mask_counts",
    "mask_weight",
    "topk_mask",
    "masked_linear",
    "masked_linear_backward",
    *(f"masked_conv{n}d{suffix}" for n in (1, 2, 3) for suffix in ("", "_backward")),
]

_CONV = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"
LIBRARY.define("pack_mask(Tensor mask) -> Tensor")
LIBRARY.define("unpack_mask(Tensor words, SymInt[] shape) -> Tensor")
LIBRARY.define("popcount(Tensor words) -> Tensor")
LIBRARY.define("mask_counts(Tensor[] before, Tensor[] after) -> Tensor")
LIBRARY.define("mask_weight(Tensor weight, Tensor words, ScalarType dtype) -> Tensor")
LIBRARY.define(
    "topk_mask(Tensor[] scores, int[] kept, str key, str scope, str nan, Tensor? warm=None, str method='bracket')"
    " -> (Tensor[], Tensor, Tensor)"
)
LIBRARY.define("masked_linear(Tensor x, Tensor weight, Tensor words, Tensor? bias) -> Tensor")
LIBRARY.define(
    "masked_linear_backward(Tensor dy, Tensor x, Tensor weight, Tensor words, bool[] needs, bool dense_grad)"
    " -> (Tensor, Tensor, Tensor)"
)
for _n in (1, 2, 3):
    LIBRARY.define(f"masked_conv{_n}d(Tensor x, Tensor weight, Tensor words, Tensor? bias, {_CONV}) -> Tensor")
    LIBRARY.define(
        f"masked_conv{_n}d_backward(Tensor dy, Tensor x, Tensor weight, Tensor words, {_CONV}, bool[] needs,"
        " bool dense_grad) -> (Tensor, Tensor, Tensor)"
    )


def _mask_weight(weight: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.ops.sparsekit.mask_weight(weight, words, dtype)


def _masked_linear(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    return formulas.linear(x, _mask_weight(weight, words, x.dtype), bias)


def _masked(dz: Tensor, words: Tensor) -> Tensor:
    return _mask_weight(dz, words, dz.dtype)


def _weight_gradient(
    dz: Tensor, weight: Tensor, words: Tensor, wanted: tuple[bool, bool], mask: MaskGradient
) -> Tensor:
    need, dense_grad = wanted
    if not need:
        return dz
    dz = dz.to(weight.dtype)
    return dz if dense_grad else mask(dz, words)


def masked_linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    needs: Sequence[bool],
    dense_grad: bool,
    mask: MaskGradient = _masked,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op of that name; ``mask`` may write to the gradient that it masks."""
    # The masked weight is formed again instead of kept alive: one streaming pass against a tensor per layer.
    z = _mask_weight(weight, words, x.dtype) if needs[0] else weight
    dx, dz, db = formulas.linear_backward(dy, x, z, needs)
    return dx, _weight_gradient(dz, weight, words, (needs[1], dense_grad), mask), db


def _masked_conv(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, *geometry) -> Tensor:
    return formulas.conv(x, _mask_weight(weight, words, x.dtype), bias, *geometry)


def masked_conv_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    needs: Sequence[bool],
    dense_grad: bool,
    mask: MaskGradient = _masked,
) -> tuple[Tensor, Tensor, Tensor]:
    """The ops of that name for every number of dimensions; ``mask`` as above."""
    # Without dx the weight's values are not read, only its shape and dtype.
    z = _mask_weight(weight, words, x.dtype) if needs[0] else weight.to(x.dtype)
    dx, dz, db = formulas.conv_backward(dy, x, z, stride, padding, dilation, groups, needs)
    return dx, _weight_gradient(dz, weight, words, (needs[1], dense_grad), mask), db


for _name, _implementation in {
    "pack_mask": reference.pack_mask,
    "unpack_mask": reference.unpack_mask,
    "popcount": reference.popcount,
    "mask_counts": reference.mask_counts,
    "mask_weight": reference.mask_weight,
    "topk_mask": reference.topk_mask,
    "masked_linear": _masked_linear,
    "masked_linear_backward": masked_linear_backward,
    **{f"masked_conv{n}d": _masked_conv for n in (1, 2, 3)},
    **{f"masked_conv{n}d_backward": masked_conv_backward for n in (1, 2, 3)},
}.items():
    LIBRARY.impl(_name, _implementation, DEFAULT)


def _fake_pack(mask: Tensor) -> Tensor:
    return mask.new_empty(reference.words_shape(mask.shape), dtype=torch.int32)


def _fake_unpack(words: Tensor, shape: Sequence[int]) -> Tensor:
    return words.new_empty(tuple(shape), dtype=torch.bool)


def _fake_popcount(words: Tensor) -> Tensor:
    return words.new_empty((), dtype=torch.int64)


def _fake_mask_counts(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    return before[0].new_empty((len(before), 3), dtype=torch.int64)


def _fake_mask_weight(weight: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(weight, dtype=dtype)


def _fake_topk(
    scores: Sequence[Tensor],
    kept: Sequence[int],
    key: str,
    scope: str,
    nan: str,
    warm: Tensor | None = None,
    method: str = "bracket",
) -> tuple[list[Tensor], Tensor, Tensor]:
    words = [s.new_empty(reference.words_shape(s.shape), dtype=torch.int32) for s in scores]
    flag = scores[0].new_empty((), dtype=torch.bool) if scores else torch.empty((), dtype=torch.bool)
    return words, flag, reference.next_warm(warm, flag)


for _name, _fake in {
    "pack_mask": _fake_pack,
    "unpack_mask": _fake_unpack,
    "popcount": _fake_popcount,
    "mask_counts": _fake_mask_counts,
    "mask_weight": _fake_mask_weight,
    "topk_mask": _fake_topk,
    # The formulas call only ops with fakes, so shapes and strides of the fake are those of the real thing.
    "masked_linear": _masked_linear,
    "masked_linear_backward": masked_linear_backward,
    **{f"masked_conv{n}d": _masked_conv for n in (1, 2, 3)},
    **{f"masked_conv{n}d_backward": masked_conv_backward for n in (1, 2, 3)},
}.items():
    torch.library.register_fake(f"sparsekit::{_name}", _fake, lib=LIBRARY)


@register_flop_formula(torch.ops.sparsekit.masked_linear)
def _linear_flops(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(x_shape[:-1]) * math.prod(weight_shape)


@register_flop_formula(torch.ops.sparsekit.masked_linear_backward)
def _linear_backward_flops(dy_shape, x_shape, weight_shape, words_shape, needs, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(x_shape[:-1]) * math.prod(weight_shape) * (int(needs[0]) + int(needs[1]))


def _conv_flops(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return conv_flop_count(x_shape, weight_shape, out_shape)  # pyright: ignore[reportArgumentType]


def _conv_backward_flops(dy_shape, x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    needs = args[5]
    return conv_flop_count(x_shape, weight_shape, dy_shape) * (int(needs[0]) + int(needs[1]))


for _n in (1, 2, 3):
    register_flop_formula(getattr(torch.ops.sparsekit, f"masked_conv{_n}d"))(_conv_flops)
    register_flop_formula(getattr(torch.ops.sparsekit, f"masked_conv{_n}d_backward"))(_conv_backward_flops)
