# SPDX-License-Identifier: Apache-2.0
"""Batch-normalised VGG networks for small images (Simonyan and Zisserman 2015, arXiv 1409.1556, table 1)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from sparsekit.benchmarks.networks.layers import conv_bn, init_convolutions

Classifier = Literal["linear", "mlp", "dropout"]

DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


def _classifier(kind: Classifier, classes: int) -> list[nn.Module]:
    """What follows the last convolution of width 512."""
    if kind == "linear":
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    hidden = 256 if kind == "mlp" else 1024
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    for inputs in (4 * 512, hidden):
        layers += [nn.Linear(inputs, hidden), nn.ReLU()]
        if kind == "dropout":
            layers.append(nn.Dropout(0.5))
    return [*layers, nn.Linear(hidden, classes)]


def vgg(
    classes: int, channels: int, image_size: int, *, depth: Literal[16, 19], classifier: Classifier
) -> nn.Sequential:
    """Sequential of `features` and `classifier`.

    Args:
        classes: number of outputs.
        channels: channels of the image.
        image_size: pixels per side; at least 32, or 16 for classifier "mlp", which has no pooling after the last stage.
        depth: 13 or 16 convolutions.
        classifier: "linear" 512-C on the mean; "mlp" 2048-256-256-C on a 2x2 mean; "dropout" 2048-1024-1024-C with
            dropout 0.5 on a 2x2 mean.
    """
    pools = 4 if classifier == "mlp" else 5
    if image_size < 2**pools:
        raise ValueError(f"build_network: image_size: expected at least {2**pools} for vgg{depth}, got {image_size}")
    features: list[nn.Module] = []
    inputs = channels
    for stage, (layers, width) in enumerate(zip(DEPTHS[depth], WIDTHS, strict=True)):
        for _ in range(layers):
            features += [*conv_bn(inputs, width), nn.ReLU()]
            inputs = width
        if stage < pools:
            features.append(nn.MaxPool2d(2))
    network = nn.Sequential()
    network.add_module("features", nn.Sequential(*features))
    network.add_module("classifier", nn.Sequential(*_classifier(classifier, classes)))
    init_convolutions(network)
    return network
