# SPDX-License-Identifier: Apache-2.0
"""Arguments on which the compiled ops on lists of layers prove themselves (serving.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekit.ops.reference import pack_mask


def samples(device: torch.device) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments by op, as native_cuda.samples: joined rows, odd rows, channels-last, unaligned, empty; two dtypes."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def alike(dtype: torch.dtype = torch.float32) -> list[Tensor]:
        flat = draw(7 * 33 + 1).to(dtype).to(device)[1:].view(7, 33)
        last = draw(6, 5, 3, 3).to(memory_format=torch.channels_last)
        return [x.to(dtype).to(device) for x in (draw(40, 64), draw(9, 147), last)] + [flat, flat[:0]]

    double = torch.float64
    weights, grads = alike(), alike()
    words = [pack_mask(w.cpu() > 0).to(device) for w in weights]
    poisoned = [torch.where(w > 0, w, torch.nan) for w in weights]
    narrow, positive = [g.bfloat16() for g in grads], [[v.square() for v in alike()] for _ in range(2)]
    rates = torch.tensor([0.03], dtype=double, device=device)
    factors = [0.999, 0.01, 0.3]
    return {
        "mask_weights": [(poisoned, words, torch.bfloat16), (alike(double), words, double)],
        "bilinear_grads": [(narrow, weights, words), (alike(double), alike(double), words)],
        "bilevel_update_": [
            (alike(), alike(), weights, grads, words, None, 0.1, 0.9, 5e-4, 0.7, "magnitude", False),
            (alike(), alike(), weights, narrow, words, rates, 0.0, 0.9, 0.0, 2.0, "value", True),
            (alike(double), [], alike(double), alike(double), words, None, 0.1, 0.0, 0.0, 9.0, "released", False),
        ],
        "masked_sgd_": [
            (alike(), alike(), grads, words, None, 0.1, 0.9, 0.2, 5e-4, False, False),
            (alike(), alike(), narrow, words, rates, 0.0, 0.9, 0.0, 0.0, True, True),
        ],
        "masked_adamw_": [
            (alike(), alike(), positive[0], grads, words, None, factors, 0.9, 0.999, 1e-8),
            (alike(), alike(), positive[1], narrow, words, rates.new_tensor(factors), [0.0] * 3, 0.3, 0.99, 1e-6),
        ],
    }
