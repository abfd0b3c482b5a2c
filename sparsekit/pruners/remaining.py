# SPDX-License-Identifier: Apache-2.0
"""Magnitudes of what is left, for pruners that never take anything back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import shards, unpack_mask
from sparsekit.patterns import Key, Unstructured
from sparsekit.projection import Projection

# In float64: below every positive float32, yet its fifth power, as of a norm, is not zero.
_LEAST = 1e-60


def remaining_magnitudes(layers: Mapping[str, MaskedLayer], projection: Projection) -> tuple[dict[str, Tensor], Key]:
    """|theta| of the kept weights, and the key to rank by; pruned ones rank below all, kept zeros included.

    Returns:
        layer name -> scores of the weight's shape, spread as the weight is; "value" for single weights, else "magnitude".
    """
    single = isinstance(projection.pattern, Unstructured)
    scores = {}

    def of_part(weight: Tensor, words: Tensor) -> Tensor:
        theta = weight.abs()
        if not single:
            # A norm cannot be negative, so for units it is the kept zeros that rise above what is pruned.
            theta = theta.double().clamp(min=_LEAST)
        return torch.where(unpack_mask(words, weight.shape), theta, -1.0 if single else 0.0)

    for name, layer in layers.items():
        weight = layer.weight.detach()
        scores[name] = shards.on_parts(of_part, weight, layer.spread_words, shape=weight.shape)
    return scores, "value" if single else "magnitude"
