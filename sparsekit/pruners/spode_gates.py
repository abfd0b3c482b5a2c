# SPDX-License-Identifier: Apache-2.0
"""Where SpODE's gates begin, and what its released code does with them and with BatchNorm at the end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsekit.gradients import Loss
from sparsekit.mask import Masks
from sparsekit.modes import kept_modes
from sparsekit.nn.batchnorm import batchnorms
from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import replicas
from sparsekit.projection import Projection
from sparsekit.pruners.remaining import kept_units
from sparsekit.unit_masks import over_units


def initial_gates(
    masks: Masks, projection: Projection, units: Mapping[str, int], sparsity: float
) -> tuple[dict[str, Tensor], float]:
    """Float32 gates equal to the present masks of the units, and the density of these.

    They are named after layers, or after groups of coupled ones.
    """
    dense = {name: mask.dense() for name, mask in masks.items()}
    gates = {name: bits.float() for name, bits in kept_units(dense, projection.pattern, "SpODE").items()}
    kept = sum(int(gate.count_nonzero()) for gate in gates.values())
    budget = projection.budget({name: tuple(mask.shape) for name, mask in masks.items()}, sparsity)
    final = budget if isinstance(budget, int) else sum(budget.values())
    if kept < max(final, 1):
        raise ValueError(f"SpODE: model: expected masks that keep at least {max(final, 1):,} units, got {kept:,} kept")
    return gates, max(kept / sum(units.values()), 1.0 - sparsity)


@torch.no_grad()
def fold(layers: Mapping[str, MaskedLayer], gates: Mapping[str, Tensor], projection: Projection, option: str) -> None:
    """Multiply what is kept of theta by its gate ("mask") or the sign of that ("sign")."""
    units = {name: gate if option == "mask" else gate.sign() for name, gate in gates.items()}
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    for name, factor in over_units(projection.pattern, units, weights).items():
        weight = weights[name]
        weight.copy_(torch.where(layers[name].mask.dense(), weight * factor.to(weight.dtype), weight))


@torch.no_grad()
def one_batch(model: nn.Module, batch: object, loss: Loss, reset: bool) -> None:
    """One pass moves the BatchNorm statistics with their own momentum, from where they are or from zero and one."""
    norms = batchnorms(model)
    before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    try:
        with kept_modes(model), replicas.quiet_buffers(model):
            model.eval()
            for norm in norms:
                norm.train()
                if reset:
                    norm.reset_running_stats()
            loss(model, batch)
    except BaseException:
        for norm, values in zip(norms, before, strict=True):
            for name, value in norm.named_buffers():
                value.copy_(values[name])
        raise
