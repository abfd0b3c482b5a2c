# SPDX-License-Identifier: Apache-2.0
"""Residual networks for small images (He et al. 2016, arXiv 1512.03385, sections 4.1 and 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekit.benchmarks.networks.layers import conv_bn, init_convolutions

Shortcut = Literal["A", "B"]
Stem = Literal[3, 7]


class PadShortcut(nn.Module):
    """Option A: every stride-th pixel, missing channels filled with zeros in equal parts before and behind."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.behind = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))


def make_shortcut(inputs: int, outputs: int, stride: int, option: Shortcut) -> nn.Module:
    """The identity where the shapes agree, else option A (padding) or B (1x1 convolution)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if option == "A":
        return PadShortcut(inputs, outputs, stride)
    return nn.Sequential(*conv_bn(inputs, outputs, kernel=1, stride=stride))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, width, stride=stride)
        self.conv2, self.bn2 = conv_bn(width, width)
        self.shortcut = make_shortcut(inputs, width, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, width, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution, the last one four times as wide."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1, self.bn1 = conv_bn(inputs, width, kernel=1)
        self.conv2, self.bn2 = conv_bn(width, width, stride=stride)
        self.conv3, self.bn3 = conv_bn(width, outputs, kernel=1)
        self.shortcut = make_shortcut(inputs, outputs, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, inputs, H, W] -> [N, 4 * width, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, stages layer1, layer2, ... of which all but the first halve the image, mean, `fc`.

    stem: 3 for a 3x3 convolution of stride 1; 7 for a 7x7 one of stride 2 and 3x3 max pooling of stride 2.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[BottleneckBlock],
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        classes: int,
        channels: int,
        shortcut: Shortcut,
        stem: Stem = 3,
    ) -> None:
        super().__init__()
        inputs, self.stem = widths[0], stem
        self.conv1, self.bn1 = conv_bn(channels, inputs, kernel=stem, stride=2 if stem == 7 else 1)
        self.stages = [f"layer{i + 1}" for i in range(len(depths))]
        for i, (name, depth, width) in enumerate(zip(self.stages, depths, widths, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(depth):
                blocks.append(block(inputs, width, 2 if i and not j else 1, shortcut))
                inputs = block.expansion * width
            self.add_module(name, nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, channels, H, W] -> logits [N, classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self.stem == 7:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def cifar_resnet(
    classes: int, channels: int, _image_size: int, *, depth: int, shortcut: Shortcut, width: int = 16
) -> nn.Module:
    """Three stages of (depth - 2) / 6 basic blocks with widths w, 2w, 4w (He et al. section 4.2); any image size."""
    blocks = (depth - 2) // 6
    widths = (width, 2 * width, 4 * width)
    return ResNet(BasicBlock, (blocks,) * 3, widths, classes=classes, channels=channels, shortcut=shortcut)


def resnet(classes: int, channels: int, _image_size: int, *, depth: Literal[18, 34, 50], stem: Stem = 3) -> nn.Module:
    """Four stages of width 64, 128, 256, 512 (He et al. table 1); any image size. stem 3 is that of small images."""
    block = BottleneckBlock if depth == 50 else BasicBlock
    depths = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)
    widths = (64, 128, 256, 512)
    return ResNet(block, depths, widths, classes=classes, channels=channels, shortcut="B", stem=stem)
