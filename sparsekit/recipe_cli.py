# SPDX-License-Identifier: Apache-2.0
"""Options that the commands running recipes share, and the recipe that they describe."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[
    str,
    typer.Option(
        help="digits, cifar10, cifar100, tiny-imagenet, imagenet, the papers' variants cifar10-full, cifar100-full, "
        "tiny-imagenet-bip, imagenet-spode, or a folder of images (ImageFolder layout)."
    ),
]
NetworkName = Annotated[
    str | None,
    typer.Option(
        help="mlp, convnet, resnet20, resnet56, resnet18, vgg16 and more, timm:NAME, torchvision:NAME, module:function."
    ),
]
Limit = Annotated[int | None, typer.Option(help="At most this many images of each split.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of one retraining phase.")]
DenseEpochs = Annotated[int | None, typer.Option(help="Epochs of the dense training that all methods start from.")]
BatchSize = Annotated[int | None, typer.Option(help="Images per step.")]
Lr = Annotated[float | None, typer.Option(help="Learning rate of the weights.")]
Momentum = Annotated[float | None, typer.Option(help="Momentum of the weights.")]
Nesterov = Annotated[bool, typer.Option("--nesterov/--no-nesterov", help="Nesterov's form of the momentum.")]
WeightDecay = Annotated[float | None, typer.Option(help="Weight decay of the weights.")]
CurveText = Annotated[
    str | None,
    typer.Option(
        help="Learning rate in a phase: cosine, linear, constant, step, or KIND:SHARE[:END] joined by +, as "
        "warmup:20+cosine:70:1e-4+constant:10."
    ),
]
LabelSmoothing = Annotated[float | None, typer.Option(help="Label smoothing of the loss.")]
Mixup = Annotated[
    float | None, typer.Option(help="Mixup of training batches: alpha of Beta(alpha, alpha), 0 for none.")
]
DenseLr = Annotated[float | None, typer.Option(help="Dense training: learning rate, by default --lr.")]
DenseBatchSize = Annotated[int | None, typer.Option(help="Dense training: images per step, by default --batch-size.")]
DenseWeightDecay = Annotated[
    float | None, typer.Option(help="Dense training: weight decay, by default --weight-decay.")
]
DenseCurve = Annotated[str | None, typer.Option(help="Dense training: learning rate in it, by default cosine.")]
LowerLr = Annotated[float | None, typer.Option(help="BiP: learning rate of the weights, by default --lr.")]
UpperLr = Annotated[float | None, typer.Option(help="BiP: learning rate of the scores.")]
Gamma = Annotated[float | None, typer.Option(help="BiP: lower regulariser; inf for none.")]
_TUNING = "Fine-tuning (SpODE, oneshot; the last training of iter-*)"
FinetuneLr = Annotated[float | None, typer.Option(help=f"{_TUNING}: learning rate, by default --lr.")]
FinetuneCurve = Annotated[str | None, typer.Option(help=f"{_TUNING}: learning rate in it, by default --curve.")]
OdeSteps = Annotated[int | None, typer.Option(help="SpODE: Euler steps.")]
OdeBatch = Annotated[int | None, typer.Option(help="SpODE: images per step.")]
Radius = Annotated[float | None, typer.Option(help="SpODE: radius r >= 1.")]
Polariser = Annotated[str | None, typer.Option(help="SpODE: oh, ohm, ohh, ohhm, qt, qtm, gau or gaum.")]
ScoreMomentum = Annotated[float | None, typer.Option(help="SpODE: momentum of the scores.")]
ImpRate = Annotated[float | None, typer.Option(help="IMP: fraction of the rest removed per round.")]
BudgetEpochs = Annotated[int | None, typer.Option(help="imp-budget: retraining epochs over all rounds.")]
Skip = Annotated[str, typer.Option(help="Comma-separated globs of layers never pruned.")]
ChannelsLast = Annotated[bool, typer.Option("--channels-last", help="Memory format of convolutions.")]
Graphs = Annotated[bool, typer.Option("--graphs", help="Replay training steps as CUDA graphs.")]
Structure = Annotated[
    str | None,
    typer.Option(help="unstructured; filter (spares the last layer) or channel (spares the first), layer by layer."),
]
ImageSize = Annotated[int | None, typer.Option(help="Pixels per side that images are scaled to.")]
Precision = Annotated[str | None, typer.Option(help="fp32 or bf16 (autocast).")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default 1 for digits, whose networks are tiny.")]
Every = Annotated[
    float, typer.Option(help="Seconds between checkpoints of what is unfinished; 0 for one after each step.")
]
Root = Annotated[Path, typer.Option(help="Where data sets and the cache of decoded images lie.")]


def _options(
    data: Data = "digits",
    network: NetworkName = None,
    limit: Limit = None,
    dense_epochs: DenseEpochs = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    momentum: Momentum = None,
    nesterov: Nesterov = True,
    weight_decay: WeightDecay = None,
    curve: CurveText = None,
    label_smoothing: LabelSmoothing = None,
    mixup: Mixup = None,
    dense_lr: DenseLr = None,
    dense_batch_size: DenseBatchSize = None,
    dense_weight_decay: DenseWeightDecay = None,
    dense_curve: DenseCurve = None,
    finetune_lr: FinetuneLr = None,
    finetune_curve: FinetuneCurve = None,
    lower_lr: LowerLr = None,
    upper_lr: UpperLr = None,
    gamma: Gamma = None,
    ode_steps: OdeSteps = None,
    ode_batch: OdeBatch = None,
    radius: Radius = None,
    polariser: Polariser = None,
    score_momentum: ScoreMomentum = None,
    imp_rate: ImpRate = None,
    budget_epochs: BudgetEpochs = None,
    skip: Skip = "",
    structure: Structure = None,
    image_size: ImageSize = None,
    precision: Precision = None,
    channels_last: ChannelsLast = False,
    graphs: Graphs = False,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """The options of ``takes_recipe``."""


def takes_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that make up a recipe, behind its own; ``recipe_of(context.params)`` reads them.

    Args:
        command: a function for typer that takes a ``context: typer.Context``, and by name what it needs of the options itself.
    """
    own = inspect.signature(command, eval_str=True)
    shared = inspect.signature(_options, eval_str=True).parameters

    @functools.wraps(command)
    def run(**options: Any) -> None:
        command(**{name: value for name, value in options.items() if name in own.parameters})

    parameters = {**own.parameters, **{name: p for name, p in shared.items() if name not in own.parameters}}
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters.values()]
    run.__signature__ = own.replace(parameters=keyword)  # pyright: ignore[reportAttributeAccessIssue]
    return run


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


def checked_every(seconds: float) -> float:
    """The value of ``--checkpoint-every``. Raises ValueError if it is none."""
    if not seconds >= 0:
        raise ValueError(f"--checkpoint-every: expected seconds >= 0, got {seconds}")
    return seconds


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
