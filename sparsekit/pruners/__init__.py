# SPDX-License-Identifier: Apache-2.0
"""One algorithm per file behind one protocol."""

from __future__ import annotations

from sparsekit.pruners.bip import BiP
from sparsekit.pruners.bip_options import BiPOptions
from sparsekit.pruners.capture import captured
from sparsekit.pruners.dpf import DPF
from sparsekit.pruners.gmp import GMP
from sparsekit.pruners.gradual import Gradual
from sparsekit.pruners.imp import IMP, IMPOptions
from sparsekit.pruners.iterative import Iterative
from sparsekit.pruners.metrics import CollapseWarning, Metrics
from sparsekit.pruners.one_shot import OMP, OneShotMagnitude
from sparsekit.pruners.protocol import Pruner
from sparsekit.pruners.random_pruning import RandomPruning
from sparsekit.pruners.rigl import RigL
from sparsekit.pruners.set_pruning import SET
from sparsekit.pruners.spode import SpODE
from sparsekit.pruners.spode_options import SpODEOptions

__all__ = [
    "DPF",
    "GMP",
    "IMP",
    "OMP",
    "SET",
    "BiP",
    "BiPOptions",
    "CollapseWarning",
    "Gradual",
    "IMPOptions",
    "Iterative",
    "Metrics",
    "OneShotMagnitude",
    "Pruner",
    "RandomPruning",
    "RigL",
    "SpODE",
    "SpODEOptions",
    "captured",
]
