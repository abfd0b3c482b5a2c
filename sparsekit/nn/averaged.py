# SPDX-License-Identifier: Apache-2.0
"""Averages of models (EMA, SWA) whose masks are those of the model, not averages of bits.

``torch.optim.swa_utils.AveragedModel(model, use_buffers=True)``, which Lightning's callbacks use by default, averages
every buffer. An average of packed masks is no mask, and nothing about it tells so afterwards. Therefore an AveragedModel
that takes up a model with masked layers changes its class, as layers do in ``sparsify``.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim import swa_utils

from sparsekit.nn.masked import MaskedLayer


def _layers(model: nn.Module) -> list[MaskedLayer]:
    return [module for module in model.modules() if isinstance(module, MaskedLayer)]


class AveragedModel(swa_utils.AveragedModel):
    """torch's AveragedModel over a model with masked layers: weights are averaged, masks are the model's latest."""

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average in the present weights of ``model`` and take over its masks.

        Raises:
            ValueError: the model has other masked layers than the average; nothing has changed then.
        """
        own, theirs = _layers(self.module), _layers(model)
        if [layer.weight.shape for layer in own] != [layer.weight.shape for layer in theirs]:
            expected = f"the {len(own)} masked layers of the average"
            raise ValueError(
                f"update_parameters: model: expected {expected}, got {len(theirs)}; sparsify and finalize both alike"
            )
        super().update_parameters(model)
        for layer, source in zip(own, theirs, strict=True):
            layer.mask_words.copy_(source.mask_words)


def _adopt(parent: nn.Module, name: str, child: nn.Module) -> None:
    """Called by torch for every module that is made part of another one."""
    if type(parent) is swa_utils.AveragedModel and isinstance(child, nn.Module) and _layers(child):
        parent.__class__ = AveragedModel


register_module_module_registration_hook(_adopt)  # pyright: ignore[reportArgumentType]
