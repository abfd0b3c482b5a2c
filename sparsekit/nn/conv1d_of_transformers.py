# SPDX-License-Identifier: Apache-2.0
"""MaskedConv1D: the Conv1D of Hugging Face transformers (GPT-2's projections) through a mask.

It is a linear layer that stores its weight as [in, out]. This module is imported once a model has such a layer, because
transformers is not required.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import effective_weight


class MaskedConv1D(MaskedLayer, Conv1D):
    """transformers' ``Conv1D`` whose forward uses ``where(m, weight, 0)``; same arguments, parameters and names.

    weight is [in, out] and so is the mask: rows of the words are inputs. Single weights can be pruned; patterns that
    speak of outputs or inputs are refused by the pruners, as they would take one for the other.
    """

    transposed = True

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__(nf, nx)
        self._init_mask()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        weight = self._stand_in(x)
        if weight is None:
            weight = effective_weight(x, self.weight, self.mask_words, dense_grad=self.dense_grad)
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], self.nf)
