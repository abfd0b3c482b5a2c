# SPDX-License-Identifier: Apache-2.0
"""What the convolutional networks share."""

from __future__ import annotations

from torch import nn


def conv_bn(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution with padding kernel // 2 and the batch normalisation behind it, which makes a bias redundant."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs)


def init_convolutions(network: nn.Module) -> None:
    """Normal initialisation of every convolution with variance 2 / fan-out (He et al. 2015, eq. 14)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
