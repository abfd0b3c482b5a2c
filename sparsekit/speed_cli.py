# SPDX-License-Identifier: Apache-2.0
"""``sparsekit speed``: will a masked network be faster, layer by layer, and why not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from sparsekit.console import OUT, Json, print_json, reported

NETWORKS = "mlp, convnet, resnet20, resnet56, resnet18, vgg16, timm:NAME, torchvision:NAME, module:function."


def speed(
    network: Annotated[str, typer.Argument(metavar="MODEL", help=NETWORKS)],
    sparsity: Annotated[float, typer.Option(help="Fraction removed, in [0, 1).")] = 0.9,
    pattern: Annotated[
        str, typer.Option(help="unstructured, filter, channel, 2:4, 2:4-transposable, block4x4 or alike.")
    ] = "unstructured",
    batch: Annotated[int, typer.Option(help="Images of the example.")] = 32,
    image_size: Annotated[int, typer.Option(help="Height and width of an image.")] = 32,
    channels: Annotated[int, typer.Option(help="Channels of an image.")] = 3,
    classes: Annotated[int, typer.Option(help="Outputs of the network.")] = 10,
    backward: Annotated[bool, typer.Option("--backward", help="Time the backward pass too.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Under autocast to bfloat16.")] = False,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Images and weights in channels-last.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.")] = 10,
    as_json: Json = False,
) -> None:
    """Time every masked layer of a network against the same without a mask, and say what is gained."""
    with reported("nothing was written"):
        import torch

        from sparsekit.benchmarks.networks import build_network
        from sparsekit.layer_speed import speed as measure

        if batch < 1:
            raise ValueError(f"--batch: expected an int >= 1, got {batch}")
        if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
            raise ValueError(f"--device: expected cpu, or cuda where there is one, got {device!r}")
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = build_network(network, classes=classes, channels=channels, image_size=image_size, seed=0)
        model = model.to(device=device, memory_format=layout)
        images = torch.randn(batch, channels, image_size, image_size).to(device=device, memory_format=layout)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            report = measure(model, images, sparsity=sparsity, pattern=pattern, backward=backward, repeats=repeats)
        if as_json:
            print_json(asdict(report))
        else:
            _show(report, network)


def _show(report: Any, network: str) -> None:
    from sparsekit.layer_speed import CUT, DENSE, EAGER, OWN, REASON

    table = Table(
        title=f"{network}: {'forward and backward' if report.backward else 'forward'}",
        caption="own: this layer; w*m: masked by PyTorch; cut: without its empty outputs and inputs; each as a multiple of "
        "the dense layer's time, the median of interleaved rounds",
    )
    for name, justify in (("layer", "left"), ("weight", "left"), ("kept", "right"), ("dense", "right")):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    for name in ("own", "w*m", "cut"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for x in report.layers:
        shape, multiples = (
            "x".join(map(str, x.shape)),
            [f"{x.ratios[k]:.2f}" if k in x.ratios else "-" for k in (OWN, EAGER, CUT)],
        )
        table.add_row(x.name, shape, f"{x.kept:.1%}", f"{x.seconds[DENSE] * 1e3:.3f} ms", *multiples, x.verdict)
    OUT.print(table)
    for name in report.idle:
        OUT.print(f"{name}: not reached by the example", highlight=False)
    OUT.print(REASON, highlight=False)
    whole = f"whole network: dense {report.seconds[DENSE] * 1e3:.2f} ms, masked {report.ratios[OWN]:.2f} of it"
    routes = sorted({x.route for x in report.layers})
    OUT.print(f"{whole}; served by {', '.join(routes)}", highlight=False)
