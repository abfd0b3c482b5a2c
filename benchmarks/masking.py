# SPDX-License-Identifier: Apache-2.0
"""Which layers of a network a recipe prunes."""

from __future__ import annotations

from torch import nn

from sparsekit.benchmarks.recipe import Recipe
from sparsekit.nn import finalize, masked_layers, sparsify


def sparsify_for(model: nn.Module, recipe: Recipe) -> None:
    """Mask the layers that the recipe prunes, in place.

    Filters of the last layer are the classes, channels of the first are the colours: nobody can do without them, so that
    layer is left alone.

    Raises:
        ValueError: nothing is left to mask.
    """
    sparsify(model, skip=recipe.skip)
    if recipe.structure == "unstructured":
        return
    layers = list(masked_layers(model).values())
    if len(layers) < 2:
        spared = "but the last" if recipe.structure == "filter" else "but the first"
        raise ValueError(f"structure: expected a layer to prune by {recipe.structure} {spared}, got none")
    finalize(layers[-1] if recipe.structure == "filter" else layers[0])
