# SPDX-License-Identifier: Apache-2.0
"""summary: the masks of a model and what no mask covers, for people."""

from __future__ import annotations

from torch import nn

from sparsekit.nn.access import masked_layers, masks
from sparsekit.nn.attach import unmasked


def summary(model: nn.Module) -> str:
    """Plain-text table of the model's masks, of its parameters that no mask covers, and why they are not covered.

    Every module that owns a matrix and is not masked has a line with its reason.
    """
    covered = {id(layer.weight) for layer in masked_layers(model).values()}
    free = sum(p.numel() for p in model.parameters() if id(p) not in covered)
    current = masks(model)
    total = free + current.numel
    overall = 1 - (free + current.count()) / total if total else 0.0
    lines = [current.table(), f"not masked: {free:,} parameters; sparsity over all {total:,} parameters: {overall:.2%}"]
    lines += [f"  not masked {name or '(the model itself)'}: {reason}" for name, reason in unmasked(model).items()]
    return "\n".join(lines)
