# SPDX-License-Identifier: Apache-2.0
"""The command line: doctor, compare, prune, speed, bench. The roof: it may import everything, nothing imports it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sparsekit.bench_cli import bench_app
from sparsekit.console import ERR, OUT, Json, reported
from sparsekit.speed_cli import speed

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pruning for PyTorch: compare methods, prune a network, see what is installed.",
)
app.add_typer(bench_app, name="bench")
app.command()(speed)

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
Device = Annotated[str | None, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default 1 for digits, whose networks are tiny.")]
Root = Annotated[Path, typer.Option(help="Where data sets and the cache of decoded images lie.")]


def _list(argument: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{argument}: expected comma-separated {kind.__name__} values, got {text!r}") from None


def _recipe(options: dict[str, Any]) -> Any:
    """The recipe that a command's options describe: what is not given stays as the data set has it. Sets the threads."""
    from dataclasses import fields

    from sparsekit.benchmarks.recipe import Recipe, recipe_for

    changes = {field.name: options[field.name] for field in fields(Recipe) if field.name in options}
    changes["skip"] = tuple(_list("--skip", options.get("skip", ""), str)) or None
    recipe = recipe_for(changes.pop("data"), **changes)
    _set_threads(options["threads"], recipe.data)
    return recipe


def _set_threads(threads: int | None, data: str) -> None:
    import torch

    if threads is not None and threads < 1:
        raise ValueError(f"--threads: expected an int >= 1, got {threads}")
    # Handing out work on 8x8 images costs more than the work itself.
    chosen = threads or (1 if data == "digits" else None)
    if chosen:
        torch.set_num_threads(chosen)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What is installed, what serves each op, and what is missing."""
    from sparsekit.doctor import diagnose

    facts = diagnose()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table("what", "value", title="sparsekit doctor")
    table.add_row("python", facts["python"])
    for name, version in facts["packages"].items():
        table.add_row(name, version or "[yellow]missing[/yellow]")
    table.add_row("threads", str(facts["threads"]))
    native = facts["native"]
    built = f"yes, CUDA code {'in' if native['cuda'] else 'not in'}, CPU: {', '.join(native['cpu_features'])}"
    table.add_row("sparsekit._C", built if native["built"] else "[yellow]not built[/yellow]")
    for gpu in facts["gpus"] or [{"name": "none", "capability": "-", "memory_gib": "-"}]:
        table.add_row("GPU", f"{gpu['name']} (capability {gpu['capability']}, {gpu['memory_gib']} GiB)")
    OUT.print(table)
    served = Table("op", "CPU tensors", "CUDA tensors", title="what serves each op")
    for name, by in facts["ops"].items():
        served.add_row(name, by["cpu"], by["cuda"])
    OUT.print(served)
    choice = Table("what", "value", title="which kernel serves on a GPU")
    for name, value in facts["dispatch"].items():
        choice.add_row(name, value)
    OUT.print(choice)
    for line in facts["advice"]:
        OUT.print(f"[yellow]advice:[/yellow] {line}")


@app.command()
def compare(
    context: typer.Context,
    methods: Annotated[str, typer.Option(help="Comma-separated methods.")] = "imp,omp,bip,spode",
    sparsity: Annotated[str, typer.Option(help="Comma-separated fractions removed.")] = "0.893,0.945,0.972",
    seeds: Annotated[int, typer.Option(help="Seeds 0 .. N-1, each with its own dense network.")] = 3,
    data: Data = "digits",
    network: NetworkName = None,
    limit: Limit = None,
    dense_epochs: DenseEpochs = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the weights.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay of the weights.")] = None,
    upper_lr: Annotated[float | None, typer.Option(help="BiP: learning rate of the scores.")] = None,
    gamma: Annotated[float | None, typer.Option(help="BiP: lower regulariser; inf for none.")] = None,
    ode_steps: Annotated[int | None, typer.Option(help="SpODE: Euler steps.")] = None,
    ode_batch: Annotated[int | None, typer.Option(help="SpODE: images per step.")] = None,
    radius: Annotated[float | None, typer.Option(help="SpODE: radius r >= 1.")] = None,
    imp_rate: Annotated[float | None, typer.Option(help="IMP: fraction of the rest removed per round.")] = None,
    budget_epochs: Annotated[int | None, typer.Option(help="imp-budget: retraining epochs over all rounds.")] = None,
    skip: Annotated[str, typer.Option(help="Comma-separated globs of layers never pruned.")] = "",
    device: Device = None,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Folder for rows, report and dense networks.")] = Path("runs/compare"),
    root: Root = Path(".data"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only predict cost and time.")] = False,
    as_json: Json = False,
) -> None:
    """Compare pruning methods at equal sparsity from the same dense networks, and report cost and speed-up over IMP."""
    with reported():
        from sparsekit.benchmarks import compare as job

        recipe = _recipe(context.params)
        configs = job.grid(_list("--methods", methods, str), _list("--sparsity", sparsity, float), seeds, recipe)
        bench = job.Workbench(recipe, out, root)
        if dry_run:
            _show_forecast(configs, bench, as_json)
        else:
            _run(configs, bench, out, as_json)


def _run(configs: list[Any], bench: Any, out: Path, as_json: bool) -> None:
    from sparsekit.benchmarks.compare import compare as run_all
    from sparsekit.benchmarks.progress import TerminalProgress

    with TerminalProgress(ERR, configs, bench.epoch_images) as progress:
        rows = run_all(configs, out, progress, bench)
    _show(rows, out, as_json)
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def _show(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    from sparsekit.benchmarks.report import render_table, write_report

    report = write_report(rows, out / "report.html") if any("result" in row for row in rows) else None
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for table in render_table(rows):
        OUT.print(table)
    OUT.print(f"rows:   {out / 'rows.jsonl'}\nreport: {report or 'none, as no run has finished'}", highlight=False)


def _show_forecast(configs: list[Any], bench: Any, as_json: bool) -> None:
    from sparsekit.benchmarks.forecast import forecast

    rows, dense = forecast(configs, bench)
    seeds = len({row.config.seed for row in rows})
    total = dense * seeds + sum(row.seconds for row in rows)
    if as_json:
        runs = [
            {"method": r.config.method, "sparsity": r.config.sparsity, "seed": r.config.seed}
            | {"dense_epochs": r.dense_epochs, "seconds": r.seconds}
            for r in rows
        ]
        print(json.dumps({"dense_seconds_per_seed": dense, "total_seconds": total, "runs": runs}, indent=2))
        return
    table = Table("method", "sparsity", "seed", "dense-equivalent epochs", "predicted seconds", title="dry run")
    for r in rows:
        c = r.config
        table.add_row(c.method, f"{c.sparsity:.1%}", str(c.seed), f"{r.dense_epochs:.1f}", f"{r.seconds:.1f}")
    OUT.print(table)
    OUT.print(f"dense training: {dense:.1f} s for each of {seeds} seeds; all together about {total / 60:.1f} minutes")


@app.command()
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

        config = job.RunConfig(method, sparsity, seed, _recipe(context.params))
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


def main() -> None:
    """Entry point of the ``sparsekit`` command."""
    sys.exit(app())
