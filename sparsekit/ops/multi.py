# SPDX-License-Identifier: Apache-2.0
"""Schemas and fakes of the ops on whole lists of layers, which take one launch where one per layer and call would do.

The names that end in an underscore write to their first arguments. ``steps.py`` has the public functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekit.ops import multi_reference
from sparsekit.ops.schemas import DEFAULT, LIBRARY, OP_NAMES

MULTI_OPS = ("mask_weights", "bilinear_grads", "bilevel_update_", "masked_sgd_", "masked_adamw_")

LIBRARY.define("mask_weights(Tensor[] weights, Tensor[] words, ScalarType dtype) -> Tensor[]")
LIBRARY.define("bilinear_grads(Tensor[] grads, Tensor[] weights, Tensor[] words) -> (Tensor[], Tensor[])")
LIBRARY.define(
    "bilevel_update_(Tensor(a!)[] scores, Tensor(b!)[] momenta, Tensor[] weights, Tensor[] grads, Tensor[] words,"
    " Tensor? rates, float lr, float momentum, float weight_decay, float gamma, str key, bool first) -> ()"
)
LIBRARY.define(
    "masked_sgd_(Tensor(a!)[] weights, Tensor(b!)[] momenta, Tensor[] grads, Tensor[] words, Tensor? rates, float lr,"
    " float momentum, float dampening, float weight_decay, bool nesterov, bool first) -> ()"
)
LIBRARY.define(
    "masked_adamw_(Tensor(a!)[] weights, Tensor(b!)[] first, Tensor(c!)[] second, Tensor[] grads, Tensor[] words,"
    " Tensor? rates, float[] factors, float beta1, float beta2, float eps) -> ()"
)
OP_NAMES += MULTI_OPS
for _name in MULTI_OPS:
    LIBRARY.impl(_name, getattr(multi_reference, _name), DEFAULT)


def _fake_mask_weights(weights: Sequence[Tensor], words: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [torch.empty_like(weight, dtype=dtype) for weight in weights]


def _fake_bilinear(
    grads: Sequence[Tensor], weights: Sequence[Tensor], words: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.empty_like(weight) for weight in weights], [torch.empty_like(weight) for weight in weights]


def _fake_in_place(*arguments: Any) -> None:
    return None


_FAKES = (_fake_mask_weights, _fake_bilinear, *[_fake_in_place] * 3)
for _name, _fake in zip(MULTI_OPS, _FAKES, strict=True):
    torch.library.register_fake(f"sparsekit::{_name}", _fake, lib=LIBRARY)
