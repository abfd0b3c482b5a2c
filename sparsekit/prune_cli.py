# SPDX-License-Identifier: Apache-2.0
"""``sparsekit prune`` and ``resume``: one network, one method, one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsekit.console import ERR, OUT, Json, print_json, reported
from sparsekit.recipe_cli import Every, Root, Threads, checked_every, recipe_of, set_threads, takes_recipe

KEPT = "the run is kept in its folder, `sparsekit resume {}` goes on from there"


@takes_recipe
def prune(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the pruned model (model.safetensors, sparsity.json).")],
    method: Annotated[str, typer.Option(help="One method, or module:name of your own; see compare.")] = "bip",
    sparsity: Annotated[float, typer.Option(help="Fraction removed, in [0, 1).")] = 0.9,
    seed: Annotated[int, typer.Option(help="Seed of the network and of the data order.")] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="Dense safetensors to start from; trained here if absent.")
    ] = None,
    threads: Threads = None,
    root: Root = Path(".data"),
    checkpoint_every: Every = 60.0,
    as_json: Json = False,
) -> None:
    """Prune one network with one method and save it; interrupted, it goes on with the same command or with resume."""
    with reported(KEPT.format(out)):
        from sparsekit.benchmarks import compare as job
        from sparsekit.benchmarks.methods import check_method
        from sparsekit.benchmarks.recipe import RunConfig
        from sparsekit.benchmarks.run_folder import RunFile, check_free, digest_of

        config = RunConfig(method, sparsity, seed, recipe_of(context.params))
        check_method(method, config.recipe)
        bench = job.Workbench(config.recipe, out, root, checked_every(checkpoint_every))
        if weights is not None:
            bench.adopt(seed, weights)
        run = RunFile(config, threads, str(root.resolve()), digest_of(weights) if weights else None)
        check_free(out, run)
        run.write(out)
        if weights is not None:
            bench.keep_adopted(seed)
        _finish(run, bench, out, as_json)


def resume(
    folder: Annotated[Path, typer.Argument(help="What prune was given as --out.")],
    checkpoint_every: Every = 60.0,
    as_json: Json = False,
) -> None:
    """Go on with a run of prune that was interrupted or killed: on a CPU bit by bit as if nothing had happened."""
    with reported(KEPT.format(folder)):
        from sparsekit.benchmarks import compare as job
        from sparsekit.benchmarks.run_folder import FILE as RUN
        from sparsekit.benchmarks.run_folder import RunFile
        from sparsekit.io import FILE

        run = RunFile.read(folder)
        if run.row is not None:
            if not (folder / FILE).is_file():
                ways = f"remove {folder / RUN} and prune again"
                raise ValueError(
                    f"resume: folder: expected {FILE} of the finished run, got none in {str(folder)!r}; {ways}"
                )
            if as_json:
                print_json(run.row)
            else:
                OUT.print(f"finished: {folder}", highlight=False, soft_wrap=True)
            return
        set_threads(run.threads, run.config.recipe.data)
        bench = job.Workbench(run.config.recipe, folder, run.root, checked_every(checkpoint_every))
        if run.weights is not None:
            bench.adopt_again(run.config.seed)
        _finish(run, bench, folder, as_json)


def _finish(run: Any, bench: Any, out: Path, as_json: bool) -> None:
    """Take the run to its end, save the model, then say in the folder that it is done."""
    from dataclasses import replace

    from sparsekit.benchmarks.one_run import keeper_of, run_model
    from sparsekit.benchmarks.progress import TerminalProgress
    from sparsekit.io import save
    from sparsekit.nn import summary

    with TerminalProgress(ERR, [run.config], bench.epoch_images) as progress, bench.stop.installed():
        model, row = run_model(run.config, bench, progress)
    save(model, out)
    replace(run, row=row).write(out)
    keeper_of(run.config, bench).remove()
    if as_json:
        print_json(row)
        return
    OUT.print(summary(model), highlight=False)
    OUT.print(f"test accuracy {row['result']['test_accuracy']:.2%} (dense {row['dense']['test_accuracy']:.2%})")
    OUT.print(f"saved: {out}", highlight=False)
