# SPDX-License-Identifier: Apache-2.0
"""Ops on raw tensors: packed masks, exact selection, masked linear and convolution. Nothing outside this package
touches ``torch.ops.sparsekit``."""

from __future__ import annotations

from sparsekit.ops import schemas  # isort: skip  (defines the ops that the modules below implement and call)
from sparsekit.ops import conv_routes, triton_linear  # noqa: F401  (add the Triton kernels to their ops)
from sparsekit.ops.counts import flip_rate, mask_counts, mask_iou, regrow_count
from sparsekit.ops.distributed import any_rank, dist_topk_mask
from sparsekit.ops.layers import (
    compute_dtype,
    effective_weight,
    masked_conv1d,
    masked_conv2d,
    masked_conv3d,
    masked_linear,
)
from sparsekit.ops.masks import (
    Selection,
    mask_weight,
    pack_mask,
    popcount,
    topk_mask,
    topk_mask_radix,
    unpack_mask,
    warm_start,
)
from sparsekit.ops.reference import rows_cols, words_shape
from sparsekit.ops.routes import dispatch, layer_route
from sparsekit.ops.serving import capabilities, native_info, prove_all
from sparsekit.ops.steps import bilevel_update_, bilinear_grads, mask_weights, masked_adamw_, masked_sgd_
from sparsekit.ops.structured import expand_units, group_scores, nm_mask, transposable_nm_mask

__all__ = [
    "Selection",
    "any_rank",
    "bilevel_update_",
    "bilinear_grads",
    "capabilities",
    "compute_dtype",
    "dispatch",
    "dist_topk_mask",
    "effective_weight",
    "expand_units",
    "flip_rate",
    "group_scores",
    "layer_route",
    "mask_counts",
    "mask_iou",
    "mask_weight",
    "mask_weights",
    "masked_adamw_",
    "masked_conv1d",
    "masked_conv2d",
    "masked_conv3d",
    "masked_linear",
    "masked_sgd_",
    "native_info",
    "nm_mask",
    "pack_mask",
    "popcount",
    "prove_all",
    "regrow_count",
    "rows_cols",
    "schemas",
    "topk_mask",
    "topk_mask_radix",
    "transposable_nm_mask",
    "unpack_mask",
    "warm_start",
    "words_shape",
]
