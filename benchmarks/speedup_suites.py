# SPDX-License-Identifier: Apache-2.0
"""The suites of ``sparsekit speedup``: which methods, budgets, sparsities and seeds under which recipe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

from sparsekit.benchmarks.recipe import Recipe, RunConfig, recipe_for, split_name

ROUNDS = (3, 6, 9, 13)
LADDER = tuple(float(1 - Fraction(4, 5) ** rounds) for rounds in ROUNDS)
"""48.8, 73.8, 86.6 and 94.5 %: what rounds of iterative magnitude pruning at 20 % pass through, so one chain serves all."""

MATCHED_BUDGETS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Suite:
    """What one report is made of.

    name, summary: for people. recipe: shared by all runs. methods: names, with "@factor" where a method runs on another
    budget than the recipe's epochs. sparsities: fractions removed. seeds: 0 .. seeds - 1, paired over the methods.
    baseline: the method that cost is compared with.
    """

    name: str
    summary: str
    recipe: Recipe
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    seeds: int
    baseline: str = "imp"

    def configs(self) -> list[RunConfig]:
        """All runs; those of one seed and method follow each other by rising sparsity, as chains continue one another."""
        runs = [
            RunConfig(method, sparsity, seed, self.recipe)
            for seed in range(self.seeds)
            for method in self.methods
            for sparsity in self.levels(method)
        ]
        return list(dict.fromkeys(runs))

    def levels(self, method: str) -> tuple[float, ...]:
        """Sparsities at which a method runs: dense training knows one only, 0."""
        return (0.0,) if split_name(method)[0] == "dense" else tuple(sorted(self.sparsities))


def budgets(methods: Iterable[str], factors: Iterable[float]) -> tuple[str, ...]:
    """Every method on every budget, "name" for the factor 1 and "name@factor" for another."""
    levels = list(factors)
    return tuple(name if factor == 1 else f"{name}@{factor:g}" for name in methods for factor in levels)


_DIGITS = Recipe(dense_epochs=20, epochs=8)
_QUICK = recipe_for("cifar10", dense_epochs=16, epochs=8, lr=0.1)
_EVERY = ("imp", "imp-lth", "imp-budget", "omp", "gmp", "dpf", "random-erk", "bip", "bip-cubic", "bip-1pass", "spode")

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("smoke", "digits on a CPU, minutes", _DIGITS, (*_EVERY, "bip-released", "spode-bip", "dense"), LADDER, 5),
        Suite(
            "quick",
            "CIFAR-10, ResNet-20, 8 epochs per phase",
            _QUICK,
            ("dense", "imp", "imp-budget", "omp", "gmp", "bip", "bip-1pass", "spode"),
            LADDER,
            3,
        ),
        Suite(
            "match",
            "least cost at which each method is as accurate as the best IMP",
            _QUICK,
            ("imp", *budgets(("imp-budget", "gmp", "dpf", "bip", "bip-1pass", "spode"), MATCHED_BUDGETS)),
            LADDER[3:],
            10,
        ),
    )
}


def as_suite(name: str, **changes: object) -> Suite:
    """The suite called ``name`` with some settings of its recipe changed; raises ValueError listing the known ones."""
    if name not in SUITES:
        raise ValueError(f"speedup: suite: expected one of {', '.join(SUITES)}, got {name!r}")
    suite = SUITES[name]
    given = {key: value for key, value in changes.items() if value is not None}
    return replace(suite, recipe=replace(suite.recipe, **given))  # pyright: ignore[reportArgumentType]
