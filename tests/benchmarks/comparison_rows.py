# SPDX-License-Identifier: Apache-2.0
"""Rows of a comparison that never happened, with known ratios."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ENVIRONMENT: dict[str, Any] = {
    "timestamp": "2026-11-21T03:00:00+00:00",
    "sparsekit": "0.1.0",
    "torch": "2.15.0",
    "cpu": {"model": "Example <9000> & co", "cores": 16, "threads": 8},
    "gpu": None,
    "git": {"commit": "abc1234", "dirty": False},
}
CONFIG: dict[str, Any] = {"data": "digits", "network": "convnet", "epochs": 4, "dense_epochs": 10, "batch_size": 50}
IMAGES = 1000

SHAPES = {
    # method: (epochs of steps, passes per step, seconds per dense-equivalent epoch, seconds of selection, loss)
    "imp": (40, 1.0, 0.5, 1.0, 0.010),
    "bip": (10, 2.0, 0.6, 2.0, 0.011),
    "omp": (4, 1.0, 0.5, 0.0, 0.030),
    "slow": (80, 1.0, 0.5, 0.0, 0.010),
}


def row(method: str, sparsity: float = 0.9, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """One finished run; `changes` replace top-level keys."""
    epochs, passes, pace, selection, loss = SHAPES[method]
    work = epochs * passes
    seconds = work * pace + selection + 0.01 * seed
    steps = epochs * IMAGES // 50
    wobble = ((seed * 7 + len(method)) % 5 - 2) * 2e-4
    found = {
        "schema": 1,
        "kind": "compare",
        "id": f"{method}{sparsity}{seed}",
        "method": method,
        "sparsity": sparsity,
        "seed": seed,
        "config": CONFIG,
        "dense": {
            "val_accuracy": 0.98,
            "test_accuracy": 0.97 + 0.001 * seed,
            "epochs": 10,
            "seconds": 5.0,
            "passes": 200,
        },
        "result": {
            "kept": 1000,
            "total": 10000,
            "sparsity": 0.9,
            "val_accuracy": 0.96,
            "test_accuracy": 0.97 + 0.001 * seed - loss + wobble,
            "test_accuracy_before": 0.5 if method == "omp" else None,
        },
        "cost": {
            "steps": steps,
            "epochs": epochs,
            "passes": int(steps * passes),
            "dense_epochs": work,
            "passes_per_step": passes,
            "seconds": seconds,
            "selection_seconds": selection,
        },
        "environment": ENVIRONMENT,
    }
    return found | changes


def failed(method: str, sparsity: float = 0.9, seed: int = 0, error: str = "diverged") -> dict[str, Any]:
    """One failed run."""
    whole = row(method, sparsity, seed)
    return {key: value for key, value in whole.items() if key not in ("dense", "result", "cost")} | {"error": error}


def comparison(
    methods: Iterable[str] = ("imp", "bip", "omp"), sparsities: Iterable[float] = (0.9,), seeds: int = 5
) -> list[dict[str, Any]]:
    """All runs of a grid."""
    return [row(m, s, seed) for seed in range(seeds) for s in sparsities for m in methods]
