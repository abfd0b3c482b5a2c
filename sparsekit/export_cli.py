# SPDX-License-Identifier: Apache-2.0
"""``sparsekit export``: a pruned checkpoint for elsewhere, proven to give what the model gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsekit.console import ERR, OUT, Json, print_json, reported

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsekit.export import ExportReport

# (classes, channels, image size) of the data sets that need not lie there.
SIZES = {"digits": (10, 1, 8), "cifar10": (10, 3, 32), "cifar100": (100, 3, 32), "imagenet": (1000, 3, 224)}
SIZES |= {"cifar10-full": SIZES["cifar10"], "cifar100-full": SIZES["cifar100"]}
SIZES |= {"imagenet-spode": SIZES["imagenet"]}
SIZES |= dict.fromkeys(("tiny-imagenet", "tiny-imagenet-bip"), (200, 3, 64))
Size = Annotated[int | None, typer.Option(help="If no recorded recipe says so, or to say otherwise.")]


def export(
    source: Annotated[Path, typer.Argument(help="A folder of prune or sk.save, or a .safetensors file.")],
    out: Annotated[Path, typer.Argument(help="File to write; for hub and compact the folder.")],
    to: Annotated[
        str | None, typer.Option(help="safetensors, torch-export, onnx, hub or compact; by default as OUT ends.")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option("--network", "--model", help="The plain network, if no recorded recipe names it; as in prune."),
    ] = None,
    classes: Size = None,
    channels: Size = None,
    image_size: Size = None,
    input_shape: Annotated[
        str | None, typer.Option(help="Shape of one input without the batch, such as 3,224,224, if it is no image.")
    ] = None,
    silence_batchnorm: Annotated[
        bool, typer.Option(help="For compact: silence BatchNorm behind masked filters, which changes outputs.")
    ] = False,
    root: Annotated[Path, typer.Option(help="Where data sets lie.")] = Path(".data"),
    as_json: Json = False,
) -> None:
    """Write a pruned checkpoint as dense safetensors, a torch.export program, ONNX, a hub folder or a smaller model."""
    with reported("nothing was written under the final name"):
        from sparsekit.benchmarks.runs import read_run, row_of
        from sparsekit.export import export as write
        from sparsekit.inspection import inspect

        run = read_run(source)
        if run.checkpoint is None:
            raise ValueError(f"export: source: expected a checkpoint, got rows alone in {str(source)!r}")
        row = row_of(run, inspect(run.checkpoint).mask_hash)
        sizes = {"classes": classes, "channels": channels, "image_size": image_size}
        settings = _settings(row, network, sizes, root)
        model = _model(run.checkpoint, settings)
        if silence_batchnorm and to != "compact":
            raise ValueError(f"--silence-batchnorm: expected --to compact with it, got {to or 'none'}")
        try:
            options: dict[str, Any] = {
                "config": settings,
                "results": _results(row),
                "silence_batchnorm": silence_batchnorm,
            }
            report = write(model, out, to, example=_example(settings, input_shape), **options)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            ERR.print(f"failed: {lines[0] if lines else type(error).__name__}", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
    _show(report, as_json)


def _settings(
    row: dict[str, Any] | None, network: str | None, sizes: Mapping[str, int | None], root: Path
) -> dict[str, Any]:
    """Network and sizes: what is given, else what the row records."""
    recorded: dict[str, Any] = {"network": row["config"].get("network")} | _sizes_of(row, root) if row else {}
    given = {name: value for name, value in {"network": network, **sizes}.items() if value is not None}
    settings = {**recorded, **given}
    if settings.get("network") is None:
        raise ValueError("--network: expected the network of the checkpoint, as no recipe is recorded there, got none")
    if lacking := [name for name in sizes if name not in settings and ":" not in settings["network"]]:
        raise ValueError(f"--{lacking[0].replace('_', '-')}: expected a number, as no recipe is recorded, got none")
    # A function of the user takes what it needs; the rest is there for the example.
    return {"classes": 10, "channels": 3, "image_size": 32} | settings | _origin(row)


def _origin(row: dict[str, Any] | None) -> dict[str, Any]:
    if row is None:
        return {}
    return {"method": row["method"], "target_sparsity": row["sparsity"], "seed": row["seed"], "recipe": row["config"]}


def _sizes_of(row: dict[str, Any], root: Path) -> dict[str, int]:
    name = str(row["config"].get("data"))
    if name in SIZES:
        values = SIZES[name]
    else:
        from sparsekit.benchmarks.data import load_data

        data = load_data(name, seed=0, limit=1, root=root)
        values = (data.classes, data.channels, data.image_size)
    return dict(zip(("classes", "channels", "image_size"), values, strict=True))


def _model(checkpoint: Path, settings: dict[str, Any]) -> nn.Module:
    from sparsekit.benchmarks.networks import build_network
    from sparsekit.inspection import inspect
    from sparsekit.io import load

    sizes = {name: settings[name] for name in ("classes", "channels", "image_size")}
    model = build_network(settings["network"], **sizes, seed=0)
    return load(model, checkpoint, masks="infer" if inspect(checkpoint).inferred else "stored")


def _example(settings: dict[str, Any], shape: str | None) -> Tensor:
    import torch

    from sparsekit.recipe_cli import parsed_list

    size = settings["image_size"]
    dims = [settings["channels"], size, size] if shape is None else parsed_list("--input-shape", shape, int)
    if not dims or min(dims) < 1:
        raise ValueError(f"--input-shape: expected integers >= 1, got {shape!r}")
    return torch.randn(2, *dims, generator=torch.Generator().manual_seed(0))


def _results(row: dict[str, Any] | None) -> dict[str, float]:
    if row is None:
        return {}
    values = {
        "test accuracy": row["result"].get("test_accuracy"),
        "validation accuracy": row["result"].get("val_accuracy"),
        "test accuracy of the dense network": row.get("dense", {}).get("test_accuracy"),
        "sparsity": row["result"].get("sparsity"),
        "dense-equivalent epochs": row["cost"].get("dense_epochs"),
    }
    return {name: value for name, value in values.items() if value is not None}


def _show(report: ExportReport, as_json: bool) -> None:
    small = report.compact
    if as_json:
        facts = {name: getattr(report, name) for name in ("path", "format", "file_bytes", "difference", "batches")}
        print_json({"schema": 1, "kind": "export"} | (small.to_dict() if small else {}) | facts)
        return
    if small:
        OUT.print(small.table())
        for name, (before, after) in (("parameters", small.parameters), ("FLOPs", small.flops)):
            OUT.print(f"{name}: {before:,} -> {after:,} ({after / max(before, 1):.1%} stay)", highlight=False)
    if report.difference is not None:
        sizes = ", ".join(map(str, report.batches))
        text = f"largest difference from the eager model {report.difference:.2g}, batches of {sizes}"
        OUT.print(f"checked: {text}", highlight=False, soft_wrap=True)
    kind = f"{report.format}, {report.file_bytes:,} bytes{'; sk.load_compact reads it' if small else ''}"
    OUT.print(f"wrote:   {report.path} ({kind})", highlight=False, soft_wrap=True)
