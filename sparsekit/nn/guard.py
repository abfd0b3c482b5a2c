# SPDX-License-Identifier: Apache-2.0
"""guard_: an optimizer that leaves pruned weights, and its state about them, bit-unchanged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsekit import ops
from sparsekit.nn.access import masked_layers
from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import shards


class Guard:
    """Handle of ``guard_``; ``remove()`` takes the protection away."""

    def __init__(self, optimizer: torch.optim.Optimizer, layers: list[MaskedLayer]) -> None:
        self._optimizer = optimizer
        self._layers = layers
        self._before: list[tuple[Tensor, Tensor | None, Tensor]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._save),
            optimizer.register_step_post_hook(self._restore),
        ]

    @torch.no_grad()
    def _save(self, *_: Any) -> None:
        self._before = [(tensor, tensor.clone(), words) for tensor, words in self._guarded()]

    @torch.no_grad()
    def _restore(self, *_: Any) -> None:
        known = {id(tensor): before for tensor, before, _ in self._before}
        for tensor, words in self._guarded():
            before = known.get(id(tensor))
            here = shards.part(tensor)
            kept = ops.unpack_mask(shards.part(shards.spread_as(words, tensor)), here.shape)
            # State made by this very step has no past: its pruned entries start, and so stay, at zero.
            here.copy_(torch.where(kept, here, here.new_zeros(()) if before is None else shards.part(before)))
        self._before = []

    def _guarded(self) -> list[tuple[Tensor, Tensor]]:
        """Every tensor with one entry per weight that the optimizer may write, with the mask of its layer."""
        found: list[tuple[Tensor, Tensor]] = []
        for layer in self._layers:
            found.append((layer.weight, layer.mask_words))
            for value in self._optimizer.state.get(layer.weight, {}).values():
                if isinstance(value, Tensor) and value.shape == layer.weight.shape:
                    found.append((value, layer.mask_words))
        return found

    def remove(self) -> None:
        """Stop guarding; calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def guard_(optimizer: torch.optim.Optimizer, model: nn.Module) -> Guard:
    """Keep the pruned entries of masked weights, and of their optimizer state, exactly as they are across steps.

    The forward pass never sees pruned entries, but momentum and weight decay still move them; a later regrowth would then
    start from a drifted value. Works with any optimizer (foreach, fused, capturable); a mask may change between steps.

    Args:
        optimizer: holds some or all of the model's masked weights.
        model: a sparsified model.

    Returns:
        A handle with ``remove()``.

    Raises:
        ValueError: the optimizer holds none of the masked weights.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    layers = [layer for layer in masked_layers(model).values() if id(layer.weight) in held]
    if not layers:
        raise ValueError("guard_: optimizer: expected an optimizer over masked weights of the model, got none of them")
    return Guard(optimizer, layers)
