# SPDX-License-Identifier: Apache-2.0
"""The methods that a comparison can run, by name; a family of methods is a file of ``families``."""

from __future__ import annotations

from sparsekit.benchmarks.builders import Start, make_sgd, projection_of
from sparsekit.benchmarks.families.ablations import ABLATIONS, SWEPT
from sparsekit.benchmarks.families.bilevel import BILEVEL
from sparsekit.benchmarks.families.criteria import CRITERION_METHODS, criterion_method
from sparsekit.benchmarks.families.iterative import ITERATIVE
from sparsekit.benchmarks.families.learned import LEARNED
from sparsekit.benchmarks.families.magnitude import MAGNITUDE
from sparsekit.benchmarks.families.regrowth import REGROWTH
from sparsekit.benchmarks.families.reparametrised import REPARAMETRISED
from sparsekit.benchmarks.families.second_order import SECOND_ORDER
from sparsekit.benchmarks.imported import imported
from sparsekit.benchmarks.method import Method
from sparsekit.benchmarks.recipe import Recipe, split_name
from sparsekit.pruners import Criterion

__all__ = [
    "ABLATIONS",
    "METHODS",
    "Method",
    "Start",
    "as_method",
    "check_method",
    "known_method",
    "make_sgd",
    "projection_of",
]

METHODS: dict[str, Method] = {
    **MAGNITUDE,
    **CRITERION_METHODS,
    **BILEVEL,
    **LEARNED,
    **SECOND_ORDER,
    **REPARAMETRISED,
    **REGROWTH,
    **ITERATIVE,
    **ABLATIONS,
    **SWEPT,
}
# Those of the user that this process has been asked for, by "module:name".
_IMPORTED: dict[str, Method] = {}


def as_method(name: str) -> Method:
    """The method called ``name``, without regard to a budget.

    Args:
        name: a key of METHODS, or "module:name" of a Criterion or Method of the user; a Criterion starts from the initial
            weights.

    Raises:
        ValueError: an unknown name; the known ones are listed. TypeError: what was imported is neither.
    """
    own, _ = split_name(name)
    if own not in METHODS and ":" in own:
        found = imported("method", own)
        if not isinstance(found, (Criterion, Method)):
            raise TypeError(f"method: expected {own!r} to be a Criterion or a Method, got {type(found).__name__}")
        return _IMPORTED.setdefault(own, criterion_method(found) if isinstance(found, Criterion) else found)
    if own not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)} or module:name, got {name!r}")
    return METHODS[own]


def known_method(name: str) -> Method | None:
    """The method called ``name``, if it is ours or was used in this process: nothing is imported for the name in a row."""
    own = name.partition("@")[0]
    return METHODS.get(own) or _IMPORTED.get(own)


def check_method(name: str, recipe: Recipe) -> None:
    """Raise ValueError for a method that is unknown, or that cannot prune what the recipe prunes together."""
    if not as_method(name).structured and recipe.structure != "unstructured":
        raise ValueError(f"structure: expected unstructured for {name}, got {recipe.structure!r}")
