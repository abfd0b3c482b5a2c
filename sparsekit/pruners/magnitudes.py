# SPDX-License-Identifier: Apache-2.0
"""Magnitudes of the weights that are left: scores under which what is pruned stays pruned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import shards, unpack_mask
from sparsekit.patterns import Key, Pattern, Unstructured

# In float64: below every positive float32, yet its fifth power, as of a norm, is not zero.
_LEAST = 1e-60


def remaining_magnitudes(layers: Mapping[str, MaskedLayer], pattern: Pattern) -> tuple[dict[str, Tensor], Key]:
    """|theta| of the kept weights, and the key to rank by; pruned ones rank below all, kept zeros included."""
    single = isinstance(pattern, Unstructured)
    scores = {}

    def of_part(weight: Tensor, words: Tensor) -> Tensor:
        theta = weight.abs()
        if not single:
            # A norm cannot be negative, so for units it is the kept zeros that rise above what is pruned.
            theta = theta.double().clamp(min=_LEAST)
        return torch.where(unpack_mask(words, weight.shape), theta, -1.0 if single else 0.0)

    for name, layer in layers.items():
        scores[name] = shards.on_parts(of_part, layer.weight, layer.spread_words, shape=layer.weight.shape)
    return scores, "value" if single else "magnitude"
