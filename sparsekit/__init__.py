# SPDX-License-Identifier: Apache-2.0
"""sparsekit: masked layers, exact mask projection, and the BiP, SpODE and magnitude pruners, for PyTorch."""

from __future__ import annotations

__version__ = "0.1.0"

from sparsekit.allocation import ERK, Global, PerLayer, Uniform, kept_count
from sparsekit.checkpoint import load_checkpoint, save_checkpoint
from sparsekit.compact import compact
from sparsekit.compact_file import load_compact, save_compact
from sparsekit.compact_report import CompactReport
from sparsekit.coupled import CoupledFilters
from sparsekit.coupling import coupled_filters
from sparsekit.doctor import diagnose
from sparsekit.effective import effective_masks
from sparsekit.export import ExportReport, export
from sparsekit.gradients import dense_gradients, gradients_at
from sparsekit.inspection import Inspection, inspect
from sparsekit.io import load, save
from sparsekit.layer_speed import SpeedReport, speed
from sparsekit.mask import Mask, Masks
from sparsekit.mask_diff import MaskDifference, diff
from sparsekit.mask_variants import inverted_choice, random_like, shuffled
from sparsekit.nn import *  # noqa: F403
from sparsekit.nn import __all__ as _layers
from sparsekit.ops import topk_mask
from sparsekit.optim import MaskedAdamW, MaskedSGD
from sparsekit.patterns import NM, Block, Channel, Filter, Unstructured
from sparsekit.projection import Projection
from sparsekit.pruners import *  # noqa: F403
from sparsekit.pruners import __all__ as _pruners
from sparsekit.schedules import Constant, Cubic, Geometric, Linear

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    *_layers,
    *_pruners,
    "ERK",
    "NM",
    "Block",
    "Channel",
    "CompactReport",
    "Constant",
    "CoupledFilters",
    "Cubic",
    "ExportReport",
    "Filter",
    "Geometric",
    "Inspection",
    "Global",
    "Linear",
    "Mask",
    "MaskDifference",
    "MaskedAdamW",
    "MaskedSGD",
    "Masks",
    "PerLayer",
    "Projection",
    "SpeedReport",
    "Uniform",
    "Unstructured",
    "compact",
    "coupled_filters",
    "dense_gradients",
    "diagnose",
    "diff",
    "effective_masks",
    "export",
    "gradients_at",
    "inspect",
    "inverted_choice",
    "kept_count",
    "load",
    "load_checkpoint",
    "load_compact",
    "random_like",
    "save",
    "save_checkpoint",
    "save_compact",
    "shuffled",
    "speed",
    "topk_mask",
]
