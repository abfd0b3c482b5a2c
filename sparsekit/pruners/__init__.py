# SPDX-License-Identifier: Apache-2.0
"""One algorithm per file behind one protocol."""

from __future__ import annotations

from sparsekit.pruners.bip import BiP
from sparsekit.pruners.bip_options import BiPOptions
from sparsekit.pruners.capture import captured
from sparsekit.pruners.dpf import DPF
from sparsekit.pruners.gmp import GMP
from sparsekit.pruners.gradual import Gradual
from sparsekit.pruners.grasp import GraSP
from sparsekit.pruners.hydra import Hydra
from sparsekit.pruners.imp import IMP, IMPOptions
from sparsekit.pruners.iterative import Iterative
from sparsekit.pruners.metrics import CollapseWarning, Metrics
from sparsekit.pruners.movement import Movement
from sparsekit.pruners.one_shot import OMP, OneShotMagnitude
from sparsekit.pruners.powerprop import Powerprop
from sparsekit.pruners.probmask import ProbMask, ProbMaskOptions
from sparsekit.pruners.protocol import Pruner
from sparsekit.pruners.random_pruning import RandomPruning
from sparsekit.pruners.rigl import RigL
from sparsekit.pruners.scored import CriterionPruning
from sparsekit.pruners.scoring import Criterion, criterion
from sparsekit.pruners.set_pruning import SET
from sparsekit.pruners.snip import SNIP
from sparsekit.pruners.soft_threshold import STR
from sparsekit.pruners.spode import SpODE
from sparsekit.pruners.spode_options import SpODEOptions
from sparsekit.pruners.synflow import SynFlow
from sparsekit.pruners.woodfisher import WoodFisher

__all__ = [
    "DPF",
    "GMP",
    "IMP",
    "OMP",
    "SNIP",
    "STR",
    "SET",
    "BiP",
    "BiPOptions",
    "CollapseWarning",
    "Criterion",
    "CriterionPruning",
    "GraSP",
    "Gradual",
    "Hydra",
    "IMPOptions",
    "Iterative",
    "Metrics",
    "Movement",
    "OneShotMagnitude",
    "ProbMask",
    "ProbMaskOptions",
    "Powerprop",
    "Pruner",
    "RandomPruning",
    "RigL",
    "SpODE",
    "SpODEOptions",
    "SynFlow",
    "WoodFisher",
    "captured",
    "criterion",
]
