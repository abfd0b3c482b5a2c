# SPDX-License-Identifier: Apache-2.0
"""Rows of a suite that never ran, with accuracies and costs by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsekit.benchmarks.recipe import Recipe, as_json, split_name
from sparsekit.benchmarks.speedup_suites import Suite

RECIPE = Recipe(data="cifar10", network="resnet20", dense_epochs=16, epochs=8, device="cuda")

GPU: dict[str, Any] = {
    "timestamp": "2026-11-21T03:00:00+00:00",
    "sparsekit": "0.1.0",
    "torch": "2.15.0",
    "cpu": {"model": "Example 9000", "cores": 16, "threads": 8},
    "gpu": {"name": "NVIDIA H200", "capability": "9.0", "driver": "580.65"},
    "git": {"commit": "abc1234", "dirty": False},
}

COSTS: dict[str, tuple[float, float, float, float]] = {
    # own name: (epochs of steps on the recipe's budget, passes per step, seconds per dense-equivalent epoch, selection)
    "imp": (104, 1.0, 1.0, 0.5),
    "imp-lth": (104, 1.0, 1.0, 0.5),
    "imp-budget": (16, 1.0, 1.0, 0.5),
    "omp": (8, 1.0, 1.0, 0.1),
    "random-erk": (8, 1.0, 1.0, 0.1),
    "gmp": (8, 1.0, 1.0, 0.3),
    "bip": (8, 2.0, 1.1, 1.0),
    "bip-1pass": (8, 1.0, 1.2, 1.0),
    "spode": (8, 1.2, 1.0, 2.0),
    "dense": (16, 1.0, 1.0, 0.0),
}
DENSE_SECONDS = 16.0


def suite(
    methods: Sequence[str] = ("imp", "imp-budget", "bip"),
    sparsities: Sequence[float] = (0.9,),
    seeds: int = 5,
    **changes: Any,
) -> Suite:
    """A suite over RECIPE."""
    values = {"name": "made-up", "summary": "nothing", "recipe": RECIPE, "baseline": "imp"} | changes
    return Suite(methods=tuple(methods), sparsities=tuple(sparsities), seeds=seeds, **values)


def row(method: str, accuracy: float, sparsity: float = 0.9, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """One finished run; `changes` replace top-level keys."""
    own, factor = split_name(method)
    epochs, passes, pace, selection = COSTS[own]
    work = epochs * factor * passes
    found = {
        "schema": 1,
        "kind": "compare",
        "id": f"{method}-{sparsity}-{seed}",
        "method": method,
        "sparsity": sparsity,
        "seed": seed,
        "config": as_json(RECIPE),
        "dense": {"val_accuracy": 0.9, "test_accuracy": 0.9, "epochs": 16, "seconds": DENSE_SECONDS, "passes": 200},
        "result": {
            "kept": 1000,
            "total": 10000,
            "sparsity": 0.9,
            "val_accuracy": accuracy,
            "test_accuracy": accuracy,
            "test_accuracy_before": None,
        },
        "cost": {
            "steps": int(epochs * factor * 100),
            "epochs": epochs * factor,
            "passes": int(work * 100),
            "dense_epochs": work,
            "passes_per_step": passes,
            "seconds": work * pace + selection,
            "selection_seconds": selection,
        },
        "environment": GPU,
    }
    return found | changes


def failed(method: str, sparsity: float = 0.9, seed: int = 0, error: str = "loss is not finite") -> dict[str, Any]:
    """One failed run."""
    whole = row(method, 0.5, sparsity, seed)
    return {key: value for key, value in whole.items() if key not in ("dense", "result", "cost")} | {"error": error}


WOBBLE = (-0.0004, 0.0002, 0.0, -0.0002, 0.0004, 0.0001, -0.0001, 0.0003, -0.0003, 0.0)
"""What a seed adds to the paired difference; the mean over the first five is 0."""


def campaign(found: Mapping[str, float], seeds: int = 5, sparsity: float = 0.9, **changes: Any) -> list[dict[str, Any]]:
    """Rows of all methods by their mean accuracy; the IMP variants do not wobble, so that differences are known."""
    return [
        row(m, a + (0.0 if m.startswith("imp") else WOBBLE[seed % 10]), sparsity, seed, **changes)
        for seed in range(seeds)
        for m, a in found.items()
    ]
