# SPDX-License-Identifier: Apache-2.0
"""``sparsekit recipes``: the papers' recipes that prune can run."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated, Any

import typer

from sparsekit.console import OUT, Json, plain_table, print_json, reported


def recipes(
    text: Annotated[str, typer.Argument(help="Only recipes whose name contains this; all if left out.")] = "",
    as_json: Json = False,
) -> None:
    """List the recipes of the papers' tables and figures; `sparsekit prune --recipe NAME` runs one."""
    with reported("nothing was written"):
        from sparsekit.benchmarks.methods import METHODS
        from sparsekit.benchmarks.recipe_files import find_recipe, read_recipe, recipe_names

        found = [read_recipe(find_recipe(name)) for name in recipe_names() if text in name]
        if not found:
            raise ValueError(f"recipes: text: expected a part of one of {len(recipe_names())} names, got {text!r}")
        if as_json:
            print_json([_entry(recipe) for recipe in found])
            return
        missing = {recipe.name for recipe in found if recipe.values["method"] not in METHODS}
        caption = "* for a method that this version does not have" if missing else ""
        table = plain_table("recipes", ("recipe", "where"), ("removed", "paper", "dense"), caption=caption)
        table.columns[0].no_wrap = True  # names are there to be copied
        for recipe in found:
            paper, method, sparsity = recipe.paper, recipe.values["method"], recipe.values["sparsity"]
            where = (paper.place if paper else "") + (" *" if recipe.name in missing else "")
            accuracy = paper.accuracy_of(method, sparsity) if paper else math.nan
            shown = (f"{sparsity:.1%}", _percent(accuracy), _percent(paper.dense if paper else math.nan))
            table.add_row(recipe.name, where, *shown)
        OUT.print(table)
        OUT.print("accuracies in percent; run one: sparsekit prune --recipe NAME --out FOLDER", highlight=False)


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _entry(recipe: Any) -> dict[str, Any]:
    return {"name": recipe.name, "options": recipe.values, "paper": asdict(recipe.paper) if recipe.paper else None}
