# SPDX-License-Identifier: Apache-2.0
"""One finished or failed run of a comparison, read from its row; which rows belong together and which are void."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsekit.benchmarks.methods import known_method
from sparsekit.benchmarks.rows import Row

PER_RUN_KEYS = frozenset({"method", "sparsity", "seed", "options"})
"""Config keys that may differ between runs that are compared with each other."""

VOLATILE_KEYS = frozenset({"timestamp", "git"})
"""Environment keys that may differ between two runs whose times are compared."""

RESOURCES = ("flops", "peak_memory", "energy")
"""What a row may hold beside its costs, where the machine can measure it."""

OUTSIDE = ("warm_up_seconds", "capture_seconds", "evaluation_seconds")
"""Seconds that no clock of a row holds, where the row knows them."""


@dataclass(frozen=True)
class Run:
    """The numbers of one finished run.

    Args:
        id, method, sparsity, seed: which run; sparsity is the wanted one.
        recipe: canonical text of the config without PER_RUN_KEYS; runs are compared only within one recipe.
        config, environment: as in the row.
        dense_accuracy: test accuracy of the dense network before pruning, in [0, 1].
        dense_epochs, dense_seconds: cost of the pretraining.
        kept, total: counts of prunable weights.
        accuracy, val_accuracy: of the final network, in [0, 1]; accuracy is on the test set.
        accuracy_before: test accuracy right after the final mask, before fine-tuning; None if there is no such moment.
        steps, epochs: optimiser iterations, and passes over the training set in batches of one per step.
        work: dense-equivalent epochs: samples that went forward and backward, over the training set's size.
        seconds, selection_seconds: wall time of pruning and retraining, and the part spent on scores and masks.
        flops, peak_memory, energy: of pruning and retraining, in operations, bytes and joules; None if not measured.
        dense_flops, dense_peak_memory, dense_energy: the same of the pretraining.
        warm_up_seconds, capture_seconds, evaluation_seconds: outside of every clock; None in rows that do not know them.
    """

    id: str
    method: str
    sparsity: float
    seed: int
    recipe: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    dense_accuracy: float
    dense_epochs: float
    dense_seconds: float
    kept: int
    total: int
    accuracy: float
    val_accuracy: float | None
    accuracy_before: float | None
    steps: int
    epochs: float
    work: float
    seconds: float
    selection_seconds: float
    flops: float | None = None
    peak_memory: float | None = None
    energy: float | None = None
    dense_flops: float | None = None
    dense_peak_memory: float | None = None
    dense_energy: float | None = None
    warm_up_seconds: float | None = None
    capture_seconds: float | None = None
    evaluation_seconds: float | None = None

    @property
    def pretraining_epochs(self) -> float:
        """Dense-equivalent epochs before the method; none for one that starts from the initial weights and needs no others."""
        return self.dense_epochs if _needs_dense(self.method) else 0.0

    @property
    def pretraining_seconds(self) -> float:
        """Likewise in seconds."""
        return self.dense_seconds if _needs_dense(self.method) else 0.0

    @property
    def machine(self) -> str:
        """Canonical text of the environment without VOLATILE_KEYS; times are paired only within one machine."""
        return canonical({key: value for key, value in self.environment.items() if key not in VOLATILE_KEYS})


@dataclass(frozen=True)
class Failure:
    """A run that ended in an error. `recovered`: another row of the same run finished."""

    method: str
    sparsity: float
    seed: int
    error: str
    recovered: bool


@dataclass(frozen=True)
class Runs:
    """What a set of rows holds.

    Args:
        finished: one Run per (recipe, method, sparsity, seed), the last row written, in order of first appearance.
        failed: every row with an error, by recipe.
        superseded: number of finished rows that a later row of the same run replaced.
    """

    finished: tuple[Run, ...]
    failed: Mapping[str, tuple[Failure, ...]]
    superseded: int

    def recipes(self) -> tuple[str, ...]:
        """Recipes in order of first appearance."""
        return tuple(dict.fromkeys([*(run.recipe for run in self.finished), *self.failed]))


def canonical(mapping: Mapping[str, Any]) -> str:
    """Text that is equal for equal mappings."""
    return json.dumps(mapping, sort_keys=True, default=str)


def recipe_of(row: Row) -> str:
    """Canonical text of the config of a row without PER_RUN_KEYS."""
    config = row.get("config", {})
    return canonical({key: value for key, value in config.items() if key not in PER_RUN_KEYS})


def collect(rows: Iterable[Row]) -> Runs:
    """Reads all rows of kind "compare"; rows of other kinds are passed over.

    Raises:
        ValueError: a row lacks a number; the text names the row and the key.
    """
    finished: dict[tuple[str, str, float, int], Run] = {}
    broken: list[tuple[tuple[str, str, float, int], str]] = []
    count = 0
    for row in rows:
        if row.get("kind") != "compare":
            continue
        key = _key(row)
        if "error" in row:
            broken.append((key, str(row["error"])))
        else:
            finished[key] = read(row)
            count += 1
    failed: dict[str, tuple[Failure, ...]] = {}
    for key, error in broken:
        failed[key[0]] = (*failed.get(key[0], ()), Failure(*key[1:], error, key in finished))
    return Runs(tuple(finished.values()), failed, count - len(finished))


def read(row: Row) -> Run:
    """The Run of one finished row.

    Raises:
        ValueError: the row lacks a number; the text names the row and the key.
    """
    try:
        dense, result, cost = row["dense"], row["result"], row["cost"]
        recipe, method, sparsity, seed = _key(row)
        return Run(
            id=str(row["id"]),
            method=method,
            sparsity=sparsity,
            seed=seed,
            recipe=recipe,
            config=row["config"],
            environment=row.get("environment", {}),
            dense_accuracy=float(dense["test_accuracy"]),
            dense_epochs=float(dense["epochs"]),
            dense_seconds=float(dense["seconds"]),
            kept=int(result["kept"]),
            total=int(result["total"]),
            accuracy=float(result["test_accuracy"]),
            val_accuracy=_optional(result.get("val_accuracy")),
            accuracy_before=_optional(result.get("test_accuracy_before")),
            steps=int(cost["steps"]),
            epochs=float(cost["epochs"]),
            work=float(cost["dense_epochs"]),
            seconds=float(cost["seconds"]),
            selection_seconds=float(cost["selection_seconds"]),
            **{name: _optional(cost.get(name)) for name in (*RESOURCES, *OUTSIDE)},
            **{f"dense_{name}": _optional(dense.get(name)) if _needs_dense(method) else 0.0 for name in RESOURCES},
        )
    except KeyError as error:
        raise ValueError(f"read: row {row.get('id', '?')}: expected key {error}, got none") from error
    except TypeError as error:
        raise ValueError(f"read: row {row.get('id', '?')}: expected numbers, got null or text: {error}") from error


def _key(row: Row) -> tuple[str, str, float, int]:
    try:
        return recipe_of(row), str(row["method"]), round(float(row["sparsity"]), 9), int(row["seed"])
    except KeyError as error:
        raise ValueError(f"read: row {row.get('id', '?')}: expected key {error}, got none") from error


def _needs_dense(method: str) -> bool:
    known = known_method(method)
    return known is None or known.pretrained


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)
