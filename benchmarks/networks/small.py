# SPDX-License-Identifier: Apache-2.0
"""Networks that train in seconds on a CPU."""

from __future__ import annotations

from torch import nn

from sparsekit.benchmarks.networks.layers import conv_bn, init_convolutions


def mlp(classes: int, channels: int, image_size: int) -> nn.Module:
    """Perceptron with hidden widths 256 and 128; 64-256-128-10 on the digits."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * image_size * image_size, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def convnet(classes: int, channels: int, image_size: int) -> nn.Module:
    """Three 3x3 convolutions of width 32, 64, 128 (the last two of stride 2), global average pooling, linear layer."""
    if image_size < 4:
        raise ValueError(f"build_network: image_size: expected at least 4 for convnet, got {image_size}")
    network = nn.Sequential(
        *conv_bn(channels, 32),
        nn.ReLU(),
        *conv_bn(32, 64, stride=2),
        nn.ReLU(),
        *conv_bn(64, 128, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, classes),
    )
    init_convolutions(network)
    return network
