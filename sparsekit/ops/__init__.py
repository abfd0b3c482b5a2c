# SPDX-License-Identifier: Apache-2.0
"""Ops on raw tensors: packed masks, exact selection, masked linear and convolution. Nothing outside this package
touches ``torch.ops.sparsekit``."""

from __future__ import annotations

from sparsekit.ops import schemas  # isort: skip  (defines the ops that the modules below implement and call)
from sparsekit.ops.counts import flip_rate, mask_counts, mask_iou, regrow_count
from sparsekit.ops.layers import masked_conv1d, masked_conv2d, masked_conv3d, masked_linear
from sparsekit.ops.masks import Selection, mask_weight, pack_mask, popcount, topk_mask, unpack_mask
from sparsekit.ops.native import capabilities, native_info
from sparsekit.ops.reference import rows_cols, words_shape

__all__ = [
    "Selection",
    "capabilities",
    "flip_rate",
    "mask_counts",
    "mask_iou",
    "mask_weight",
    "masked_conv1d",
    "masked_conv2d",
    "masked_conv3d",
    "masked_linear",
    "native_info",
    "pack_mask",
    "popcount",
    "regrow_count",
    "rows_cols",
    "schemas",
    "topk_mask",
    "unpack_mask",
    "words_shape",
]
