# SPDX-License-Identifier: Apache-2.0
"""Defaults that are a source's numbers: a run without arguments is the source's."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Any

import pytest

import sparsekit as sk

PUBLISHED: dict[str, dict[str, Any]] = {
    "SNIP": {"batches": 1, "rounds": 1, "batchnorm": "train"},
    "GraSP": {"batches": 1, "rounds": 1, "batchnorm": "train", "temperature": 200.0},
    "SynFlow": {"rounds": 100, "batchnorm": "eval", "double": True},
    "Hydra": {"score_lr": 0.1, "score_momentum": 0.9, "score_weight_decay": 1e-4, "start": "scaled", "score_curve": "cosine"},
    "Movement": {"warm_up": 0.1, "ramp": 0.8, "schedule": "cubic", "score_curve": "constant"},
    "ProbMask": {"score_lr": 6e-3, "score_curve": "cosine"},
    "WoodFisher": {"fisher_batches": 400, "block": 2000, "damping": 1e-5, "update": "sum", "ramp": 0.4, "schedule": "cubic"},
    "STR": {"first": -3200.0, "scope": "layer", "ramp": None},
    "Powerprop": {"alpha": 2.0, "ramp": None},
    "RigL": {"every": 100, "until": 0.75, "alpha": 0.3, "decay": "cosine"},
    "SET": {"every": 100, "until": 0.75, "alpha": 0.3, "decay": "cosine"},
    "GMP": {"schedule": "cubic"},
    "DPF": {"every": 16, "schedule": "cubic"},
    "Iterative": {"rounds": 10},
    "SpODE": {"steps": 100, "radius": 1.1, "energy": "l2", "polariser": "ohh"},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_of_a_source(name: str) -> None:
    parameters = inspect.signature(getattr(sk, name)).parameters
    assert {key: parameters[key].default for key in PUBLISHED[name]} == PUBLISHED[name]


def test_defaults_of_options() -> None:
    published = {"samples": 2, "clip": 3.0, "warm_up": 0.16, "ramp": 0.6, "coolest": 0.03, "finetune_rate": 0.01}
    assert published.items() <= asdict(sk.ProbMaskOptions()).items()
    published = {"step_schedule": "exp", "radius_schedule": "fix", "ratio": 0.9, "eps": 0.9, "mask_option": "one"}
    assert published.items() <= asdict(sk.SpODEOptions()).items()
