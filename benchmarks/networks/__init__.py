# SPDX-License-Identifier: Apache-2.0
"""The networks of the experiments: own definitions by name, plus timm, torchvision and any function of the user."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from sparsekit.benchmarks.networks.external import build_external
from sparsekit.benchmarks.networks.resnet import cifar_resnet, resnet
from sparsekit.benchmarks.networks.small import convnet, mlp
from sparsekit.benchmarks.networks.vgg import vgg

Builder = Callable[[int, int, int], nn.Module]
"""(classes, channels, image_size) -> network"""

NETWORKS: dict[str, Builder] = {
    "mlp": mlp,
    "convnet": convnet,
    "resnet8": partial(cifar_resnet, depth=8, shortcut="A"),
    "resnet20": partial(cifar_resnet, depth=20, shortcut="A"),
    "resnet20b": partial(cifar_resnet, depth=20, shortcut="B"),
    "resnet56": partial(cifar_resnet, depth=56, shortcut="A"),
    "wrn20": partial(cifar_resnet, depth=20, shortcut="B", width=32),
    "resnet18": partial(resnet, depth=18),
    "resnet34": partial(resnet, depth=34),
    "resnet50": partial(resnet, depth=50),
    "vgg16": partial(vgg, depth=16, classifier="linear"),
    "vgg16mlp": partial(vgg, depth=16, classifier="mlp"),
    "vgg19": partial(vgg, depth=19, classifier="dropout"),
}
"""Own networks. resnet20/56 have parameter-free shortcuts (option A); resnet20b and wrn20 (twice the width) have 1x1
convolutions (option B); resnet18/34/50 have a 3x3 stem of stride 1 and no max pooling. All convolutional networks are
batch-normalised."""


def build_network(name: str, *, classes: int, channels: int, image_size: int, seed: int) -> nn.Module:
    """A freshly initialised network on the CPU in fp32; the caller's random state is left as it was.

    Args:
        name: a key of NETWORKS, "timm:NAME", "torchvision:NAME" (never downloads weights), or "module:function" with a
            function of the user that is called with those of classes, channels, image_size that it names.
        classes: number of outputs, >= 1.
        channels: channels of the image, >= 1.
        image_size: height and width of the image in pixels, >= 1.
        seed: seeds torch's CPU generator for the initialisation.

    Raises:
        ValueError: unknown name, size out of range for the network, or a package that is not installed.
        TypeError: the user's function does not return a Module.
    """
    for argument, value in (("classes", classes), ("channels", channels), ("image_size", image_size)):
        if value < 1:
            raise ValueError(f"build_network: {argument}: expected an integer >= 1, got {value}")
    builder = NETWORKS.get(name)
    if builder is None and ":" not in name:
        known = ", ".join((*NETWORKS, "timm:NAME", "torchvision:NAME"))
        raise ValueError(f"build_network: name: expected one of {known} or module:function, got {name!r}")
    # devices=[] and the default generator alone: torch.manual_seed would reseed the GPUs for good.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        if builder is not None:
            return builder(classes, channels, image_size)
        return build_external(name, classes=classes, channels=channels, image_size=image_size)


__all__ = ["NETWORKS", "build_network"]
