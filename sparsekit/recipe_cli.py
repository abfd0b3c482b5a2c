# SPDX-License-Identifier: Apache-2.0
"""Options that the commands running recipes share, and the recipe that they describe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[str, typer.Option(help="digits, cifar10, cifar100, or a folder of images (ImageFolder layout).")]
NetworkName = Annotated[
    str | None,
    typer.Option(
        help="mlp, convnet, resnet20, resnet56, resnet18, vgg16, timm:NAME, torchvision:NAME, module:function."
    ),
]
Limit = Annotated[int | None, typer.Option(help="At most this many images of each split.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of one retraining phase.")]
DenseEpochs = Annotated[int | None, typer.Option(help="Epochs of the dense training that all methods start from.")]
BatchSize = Annotated[int | None, typer.Option(help="Images per step.")]
Structure = Annotated[
    str | None,
    typer.Option(help="unstructured; filter (spares the last layer) or channel (spares the first), layer by layer."),
]
ImageSize = Annotated[int | None, typer.Option(help="Pixels per side that images are scaled to.")]
Precision = Annotated[str | None, typer.Option(help="fp32 or bf16 (autocast).")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default 1 for digits, whose networks are tiny.")]
Root = Annotated[Path, typer.Option(help="Where data sets and the cache of decoded images lie.")]


def parsed_list(argument: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """The comma-separated values of an option. Raises ValueError naming ``argument``."""
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{argument}: expected comma-separated {kind.__name__} values, got {text!r}") from None


def recipe_of(options: dict[str, Any]) -> Any:
    """The recipe that a command's options describe: what is not given stays as the data set has it. Sets the threads."""
    from dataclasses import fields

    from sparsekit.benchmarks.recipe import Recipe, recipe_for

    changes = {field.name: options[field.name] for field in fields(Recipe) if field.name in options}
    changes["skip"] = tuple(parsed_list("--skip", options.get("skip", ""), str)) or None
    recipe = recipe_for(changes.pop("data"), **changes)
    set_threads(options["threads"], recipe.data)
    return recipe


def set_threads(threads: int | None, data: str) -> None:
    """Threads of torch; by default one for data whose networks are tiny. Raises ValueError for none, or for too many."""
    import torch

    from sparsekit.benchmarks.recipe import MAX_THREADS

    if threads is not None and not 1 <= threads <= MAX_THREADS:
        bound = ">= 1" if threads < 1 else f"<= {MAX_THREADS}"
        raise ValueError(f"--threads: expected an int {bound}, got {threads}")
    # Handing out work on 8x8 images costs more than the work itself.
    chosen = threads or (1 if data == "digits" else None)
    if chosen:
        torch.set_num_threads(chosen)
