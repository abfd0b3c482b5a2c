# SPDX-License-Identifier: Apache-2.0
"""Packed masks for tests, independent of the code under test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch


def layout(shape: Sequence[int]) -> tuple[int, int]:
    rows = shape[0] if len(shape) >= 2 else 1
    return rows, math.prod(shape) // max(rows, 1)


def new_words(shape: Sequence[int]) -> torch.Tensor:
    rows, cols = layout(shape)
    return torch.full((rows, -(-cols // 32)), -1, dtype=torch.int32)


def unpack(words: torch.Tensor, shape: Sequence[int]) -> np.ndarray:
    """The mask of `words`, after a check that its padding bits are zero."""
    rows, cols = layout(shape)
    bits = np.unpackbits(words.numpy().view(np.uint8).reshape(rows, 4 * words.shape[1]), axis=1, bitorder="little")
    assert not bits[:, cols:].any()
    return bits[:, :cols].astype(bool).reshape(shape)
