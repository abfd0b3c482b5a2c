# SPDX-License-Identifier: Apache-2.0
"""MaskedLinear: nn.Linear through a mask."""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import masked_linear

torch.fx.wrap("masked_linear")  # torch.fx records a call instead of looking inside, where shapes decide


class MaskedLinear(MaskedLayer, nn.Linear):
    """``nn.Linear`` whose forward uses ``where(m, weight, 0)``; same arguments, parameters and names."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._init_mask()

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in] -> [..., out]."""
        if (weight := self._stand_in(input)) is not None:
            return F.linear(input, weight, self.bias)
        return masked_linear(input, self.weight, self.mask_words, self.bias, dense_grad=self.dense_grad)
