# SPDX-License-Identifier: Apache-2.0
"""The papers' recipes as files: options of ``sparsekit prune``, and in a table [paper] where they come from.

The packaged ones lie in ``recipes``, one for each row of a table or curve of a figure; rows of SpODE's tables that differ in
the method alone share one. A file of the user is read in the same way, with or without [paper].
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sparsekit.benchmarks.config import Setting, checked_values, parsed

FOLDER = Path(__file__).parent / "recipes"
PAPER = "paper"


@dataclass(frozen=True)
class Paper:
    """Where a recipe comes from.

    work, place, row: the publication, the table or figure, the row. sparsities: fractions removed that it shows.
    dense: accuracy of its dense network in percent, NaN if not known. accuracy: percent at each of the sparsities, by the
    name of the method here; NaN where it shows none, empty where nothing is known. notes: what is unknown, or different here.
    """

    work: str
    place: str
    row: str
    sparsities: tuple[float, ...]
    dense: float = math.nan
    accuracy: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    notes: str = ""

    def accuracy_of(self, method: str, sparsity: float) -> float:
        """Percent, NaN if not known."""
        known = dict(zip(self.sparsities, self.accuracy.get(method, ()), strict=False))
        return known.get(sparsity, math.nan)


@dataclass(frozen=True)
class RecipeFile:
    """name: of the file, without its ending. values: options of prune, as the file has them. paper: None in a user's own."""

    name: str
    values: dict[str, Any]
    paper: Paper | None


def recipe_names() -> list[str]:
    """Names of the packaged recipes, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def find_recipe(name: str) -> Path:
    """The file of a packaged recipe, or the file that ``name`` is. Raises ValueError with close names if there is neither."""
    names = recipe_names()
    if name in names:
        return FOLDER / f"{name}.toml"
    if Path(name).is_file():
        return Path(name)
    close = ", ".join(difflib.get_close_matches(name, names, n=3)) or f"one of {len(names)}"
    raise ValueError(f"recipe: expected a file or a name ({close}; see `sparsekit recipes`), got {name!r}")


def read_recipe(file: Path) -> RecipeFile:
    """What a file holds: [paper] checked, the rest as it is. Raises ValueError that names the file and the key."""
    content = parsed(file)
    paper = content.pop(PAPER, None)
    return RecipeFile(file.stem, content, None if paper is None else _paper(file, paper))


def recipe_values(file: Path, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The options that a file gives, checked like those of any configuration.

    Of the method only that it is a text: whether there is such a method, the command says that is to run it.

    Raises:
        ValueError: "config FILE: key: expected ..., got ...".
    """
    content = read_recipe(file).values
    method = content.pop("method", None)
    if method is not None and not isinstance(method, str):
        raise ValueError(f"config {file}: method: expected a text, got {method!r}")
    return checked_values(file, content, settings) | ({} if method is None else {"method": method})


def _paper(file: Path, content: Any) -> Paper:
    known = {f.name for f in fields(Paper)}
    if not isinstance(content, dict) or not {"work", "place", "row", "sparsities"} <= content.keys() <= known:
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"config {file}: {PAPER}: expected work, place, row, sparsities and perhaps more, got {got}")
    for name in ("work", "place", "row", "notes"):
        if not isinstance(content.get(name, ""), str):
            raise ValueError(f"config {file}: {PAPER}.{name}: expected a text, got {content[name]!r}")
    accuracy = content.get("accuracy", {})
    lists = {"sparsities": content["sparsities"], "dense": [content.get("dense", math.nan)]}
    lists |= {f"accuracy.{name}": value for name, value in accuracy.items()} if isinstance(accuracy, dict) else {}
    for name, values in lists.items():
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise ValueError(f"config {file}: {PAPER}.{name}: expected numbers, got {values!r}")
        if name not in ("sparsities", "dense") and len(values) != len(content["sparsities"]):
            count = len(content["sparsities"])
            raise ValueError(f"config {file}: {PAPER}.{name}: expected {count} numbers, got {len(values)}")
    if not isinstance(accuracy, dict):
        raise ValueError(f"config {file}: {PAPER}.accuracy: expected lists of numbers by method, got {accuracy!r}")
    changes = {"sparsities": tuple(content["sparsities"]), "accuracy": {n: tuple(v) for n, v in accuracy.items()}}
    return Paper(**{**content, **changes})
