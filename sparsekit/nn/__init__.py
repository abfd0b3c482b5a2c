# SPDX-License-Identifier: Apache-2.0
"""Drop-in masked layers, and attaching them to a model."""

from __future__ import annotations

from sparsekit.nn.access import (
    dense_gradient,
    dense_state_dict,
    effective_weights,
    masked_layers,
    masks,
    set_masks,
)
from sparsekit.nn.attach import SparsifyReport, finalize, sparsify
from sparsekit.nn.averaged import AveragedModel as _AveragedModel  # noqa: F401  (its import installs a hook)
from sparsekit.nn.batchnorm import frozen_batchnorm, recalibrate_batchnorm
from sparsekit.nn.cached import cached_weights
from sparsekit.nn.compacted import compacted_filters
from sparsekit.nn.conv import MaskedConv1d, MaskedConv2d, MaskedConv3d
from sparsekit.nn.guard import guard_
from sparsekit.nn.linear import MaskedLinear
from sparsekit.nn.masked import MaskedLayer
from sparsekit.nn.prepared import prepared_weights
from sparsekit.nn.ranks import check_ranks
from sparsekit.nn.silence import silence_batchnorm_
from sparsekit.nn.summary import summary

__all__ = [
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedConv3d",
    "MaskedLayer",
    "MaskedLinear",
    "SparsifyReport",
    "cached_weights",
    "check_ranks",
    "compacted_filters",
    "dense_gradient",
    "dense_state_dict",
    "effective_weights",
    "finalize",
    "frozen_batchnorm",
    "guard_",
    "masked_layers",
    "masks",
    "prepared_weights",
    "recalibrate_batchnorm",
    "set_masks",
    "silence_batchnorm_",
    "sparsify",
    "summary",
]
