# SPDX-License-Identifier: Apache-2.0
"""Ops on raw tensors: packed masks, exact selection, masked linear and convolution. Nothing outside this package
touches ``torch.ops.sparsekit``."""

from __future__ import annotations

from sparsekit.ops import schemas  # isort: skip  (defines the ops that the modules below implement and call)
from sparsekit.ops.layers import masked_conv1d, masked_conv2d, masked_conv3d, masked_linear
from sparsekit.ops.masks import Selection, mask_weight, pack_mask, popcount, topk_mask, unpack_mask
from sparsekit.ops.native import capabilities, native_info
from sparsekit.ops.reference import rows_cols, words_shape
from sparsekit.ops.structured import expand_units, group_scores, nm_mask, transposable_nm_mask

from sparsekit.ops import structured_native  # isort: skip  (implements what structured defines)

__all__ = [
    "Selection",
    "capabilities",
    "expand_units",
    "group_scores",
    "mask_weight",
    "masked_conv1d",
    "masked_conv2d",
    "masked_conv3d",
    "masked_linear",
    "native_info",
    "nm_mask",
    "pack_mask",
    "popcount",
    "rows_cols",
    "schemas",
    "structured_native",
    "topk_mask",
    "transposable_nm_mask",
    "unpack_mask",
    "words_shape",
]
