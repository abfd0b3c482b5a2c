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
    "resnet18-stem7": partial(resnet, depth=18, stem=7),
    "resnet50-stem7": partial(resnet, depth=50, stem=7),
    "vgg16": partial(vgg, depth=16, classifier="linear"),
    "vgg16mlp": partial(vgg, depth=16, classifier="mlp"),
    "vgg19": partial(vgg, depth=19, classifier="dropout"),
}
"""Own networks, all of them batch-normalised where they convolve. Parameters as the papers of BiP and SpODE (PSO) state them:

resnet20, resnet56: parameter-free shortcuts (option A); BiP's on CIFAR.
resnet20b: 1x1 convolutions as shortcuts (option B); SpODE's ResNet-20. It states 270,474 prunable parameters, all but the first
    convolution; 10 of them are the classifier's bias, which has no mask here: 270,464 masked weights. Its total of
    0.273 M is not 272,474: its released code has scales in identity shortcuts, and one for each channel, 240, would explain it.
wrn20: resnet20b of twice the width, SpODE's 1.085 M.
resnet18, resnet34, resnet50: 3x3 stem of stride 1, no max pooling. BiP's ResNet-18 on CIFAR (11.2 M); SpODE's ResNet-50 (23.9 M
    with 200 classes) and "WRN-34" (21.38 M with 200 classes) on Tiny-ImageNet: its released code ignores the width, so that
    this is a plain ResNet-34.
resnet18-stem7, resnet50-stem7: 7x7 stem of stride 2 and max pooling, BiP's on Tiny-ImageNet and ImageNet (25.56 M).
vgg16: one linear layer behind the mean, SpODE's 14.7 M. vgg16mlp: 2048-256-256-C behind a 2x2 mean, BiP's.
vgg19: 2048-1024-1024-C with dropout behind a 2x2 mean, SpODE's on Tiny-ImageNet. Neither paper states a count for these two."""


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
