# SPDX-License-Identifier: Apache-2.0
"""sparsekit: pruning for PyTorch."""

from __future__ import annotations

__version__ = "0.1.0"

from sparsekit.gradients import dense_gradients, gradients_at
from sparsekit.mask import Mask, Masks
from sparsekit.nn import *  # noqa: F403
