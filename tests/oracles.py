# SPDX-License-Identifier: Apache-2.0
"""What the tests compare with: numpy selections and packings, PyTorch's own masked layers, and the yardstick for error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def rows_cols(shape: Sequence[int]) -> tuple[int, int]:
    """The [rows, cols] view of a weight: dim 0 against the rest; vectors and scalars are one row."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def pack_oracle(mask: np.ndarray) -> np.ndarray:
    """int32 words of a bool array by numpy's own bit packing, little end first."""
    rows, cols = rows_cols(mask.shape)
    width = -(-cols // 32)
    padded = np.zeros((rows, 32 * width), dtype=bool)
    padded[:, :cols] = mask.reshape(rows, cols)
    return np.packbits(padded, axis=1, bitorder="little").reshape(rows, 4 * width).view("<i4").astype(np.int32)


def _best(values: np.ndarray, kept: int, nan: str) -> np.ndarray:
    """Bool [n]: the ``kept`` best by (NaN class, value, lowest index), by a stable lexicographic sort."""
    missing = np.isnan(values)
    ranked = np.where(missing, 0.0, values)
    order = np.lexsort((np.arange(len(values)), -ranked, ~missing if nan == "keep" else missing))
    if nan != "keep":
        kept = min(kept, int((~missing).sum()))
    mask = np.zeros(len(values), dtype=bool)
    mask[order[:kept]] = True
    return mask


def topk_oracle(
    scores: Sequence[Tensor],
    kept: int | Sequence[int],
    key: str = "magnitude",
    scope: str = "global",
    nan: str = "error",
) -> tuple[list[Tensor], bool]:
    """Bool masks and the invalid flag of ``topk_mask``, by sorting in float64."""
    arrays = [s.detach().double().numpy() for s in scores]
    keys = [(np.abs(a) if key == "magnitude" else a + 0.0).reshape(-1) for a in arrays]
    if scope == "global":
        chosen = _best(np.concatenate(keys), kept, nan)  # pyright: ignore[reportArgumentType]
        parts = np.split(chosen, np.cumsum([len(k) for k in keys])[:-1])
    elif scope == "tensor":
        parts = [_best(k, n, nan) for k, n in zip(keys, kept, strict=True)]  # pyright: ignore[reportArgumentType]
    else:
        parts = []
        for values, array, n in zip(keys, arrays, kept, strict=True):  # pyright: ignore[reportArgumentType]
            rows = values.reshape(rows_cols(array.shape))
            parts.append(np.stack([_best(row, n, nan) for row in rows]) if len(rows) else rows.astype(bool))
    invalid = nan == "error" and any(bool(np.isnan(a).any()) for a in arrays)
    return [torch.from_numpy(p.reshape(a.shape).copy()) for p, a in zip(parts, arrays, strict=True)], invalid


class DenseMasked:
    """PyTorch's own layer on ``where(m, weight, 0)``: the yardstick, and in float64 the truth."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __call__(self, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        # A mask in the layout of the weight, so that z keeps the weight's strides and the same kernel runs.
        mask = torch.empty_like(weight, dtype=torch.bool).copy_(mask)
        z = torch.where(mask, weight, torch.zeros((), dtype=weight.dtype))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # padding="same" with an even kernel makes PyTorch speak of a copy
            if isinstance(self._layer, nn.Linear):
                return F.linear(x, z, bias)
            return self._layer._conv_forward(x, z, bias)  # pyright: ignore[reportCallIssue]


def assert_within_yardstick(got: Tensor, peer: Tensor, truth: Tensor) -> None:
    """Error against the float64 ``truth``: at most 2x (max) and 1.1x (RMS) that of ``peer``, PyTorch in the same dtype."""
    assert got.dtype == peer.dtype and got.shape == peer.shape
    if not got.numel():
        return
    eps = torch.finfo(got.dtype).eps
    error, allowed = (got.double() - truth).abs(), (peer.double() - truth).abs()
    assert error.max() <= 2 * allowed.max() + 0.05 * eps * truth.abs().max()
    assert (
        error.square().mean().sqrt() <= 1.1 * allowed.square().mean().sqrt() + 0.02 * eps * truth.square().mean().sqrt()
    )
