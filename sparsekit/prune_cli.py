# SPDX-License-Identifier: Apache-2.0
"""``sparsekit prune``: one network, one method, one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sparsekit.console import ERR, OUT, Json, reported
from sparsekit.recipe_cli import (
    BatchSize,
    Data,
    DenseEpochs,
    Device,
    Epochs,
    Limit,
    NetworkName,
    Root,
    Threads,
    recipe_of,
)


def prune(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the pruned model (model.safetensors, sparsity.json).")],
    method: Annotated[str, typer.Option(help="One method; see compare.")] = "bip",
    sparsity: Annotated[float, typer.Option(help="Fraction removed, in [0, 1).")] = 0.9,
    seed: Annotated[int, typer.Option(help="Seed of the network and of the data order.")] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="Dense safetensors to start from; trained here if absent.")
    ] = None,
    data: Data = "digits",
    network: NetworkName = None,
    limit: Limit = None,
    dense_epochs: DenseEpochs = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    device: Device = None,
    threads: Threads = None,
    root: Root = Path(".data"),
    as_json: Json = False,
) -> None:
    """Prune one network with one method and save it."""
    with reported():
        from sparsekit.benchmarks import compare as job
        from sparsekit.benchmarks.progress import TerminalProgress
        from sparsekit.io import save
        from sparsekit.nn import summary

        config = job.RunConfig(method, sparsity, seed, recipe_of(context.params))
        bench = job.Workbench(config.recipe, out, root)
        with TerminalProgress(ERR, [config], bench.epoch_images) as progress:
            if weights is not None:
                bench.adopt(seed, weights)
            model, row = job.run_model(config, bench, progress)
        save(model, out)
        if as_json:
            print(json.dumps(row, indent=2))
            return
        OUT.print(summary(model), highlight=False)
        OUT.print(f"test accuracy {row['result']['test_accuracy']:.2%} (dense {row['dense']['test_accuracy']:.2%})")
        OUT.print(f"saved: {out}", highlight=False)
