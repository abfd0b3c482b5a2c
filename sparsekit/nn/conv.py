# SPDX-License-Identifier: Apache-2.0
"""MaskedConv1d, MaskedConv2d, MaskedConv3d: the torch convolutions through a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.fx
from torch import Tensor, nn

from sparsekit.nn.compacted import spread
from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import masked_conv1d, masked_conv2d, masked_conv3d

# torch.fx records a call of these instead of looking inside, where shapes decide.
for _name in ("masked_conv1d", "masked_conv2d", "masked_conv3d"):
    torch.fx.wrap(_name)


def _masked_forward(layer: Any, input: Tensor, masked_conv: Callable[..., Tensor]) -> Tensor:
    rows = None if layer._filters is None else layer._filters.of(layer, input)
    if rows is not None and layer._effective is None:
        weight, words = layer.weight.index_select(0, rows), layer.mask_words.index_select(0, rows)
        bias = None if layer.bias is None else layer.bias.index_select(0, rows)
        return spread(_convolved(layer, input, weight, words, bias, masked_conv), rows, layer.bias, len(layer.weight))
    if (weight := layer._stand_in(input)) is not None:
        return layer._conv_forward(input, weight, layer.bias)
    return _convolved(layer, input, layer.weight, layer.mask_words, layer.bias, masked_conv)


def _convolved(
    layer: Any, input: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, masked_conv: Callable[..., Tensor]
) -> Tensor:
    return masked_conv(
        input,
        weight,
        words,
        bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        padding_mode=layer.padding_mode,
        dense_grad=layer.dense_grad,
    )


class MaskedConv1d(MaskedLayer, nn.Conv1d):
    """``nn.Conv1d`` whose forward uses ``where(m, weight, 0)``; same arguments, parameters and names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._init_mask()

    def forward(self, input: Tensor) -> Tensor:
        """input [N, C, L] or [C, L]."""
        return _masked_forward(self, input, masked_conv1d)


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """``nn.Conv2d`` whose forward uses ``where(m, weight, 0)``; same arguments, parameters and names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._init_mask()

    def forward(self, input: Tensor) -> Tensor:
        """input [N, C, H, W] or [C, H, W]."""
        return _masked_forward(self, input, masked_conv2d)


class MaskedConv3d(MaskedLayer, nn.Conv3d):
    """``nn.Conv3d`` whose forward uses ``where(m, weight, 0)``; same arguments, parameters and names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._init_mask()

    def forward(self, input: Tensor) -> Tensor:
        """input [N, C, D, H, W] or [C, D, H, W]."""
        return _masked_forward(self, input, masked_conv3d)
