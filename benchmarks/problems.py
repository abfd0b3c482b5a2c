# SPDX-License-Identifier: Apache-2.0
"""The one list of sizes that kernel benchmarks work on: weight shapes of known networks, convolutions, matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ConvProblem:
    """One square convolution with padding kernel // 2 and without groups.

    Args:
        inputs: input channels.
        outputs: output channels.
        size: height and width of the input in pixels.
        kernel: height and width of the filter.
        stride: step of the filter in pixels.
    """

    inputs: int
    outputs: int
    size: int
    kernel: int = 3
    stride: int = 1

    @property
    def weight_shape(self) -> Shape:
        """Shape (outputs, inputs, kernel, kernel)."""
        return (self.outputs, self.inputs, self.kernel, self.kernel)

    def input_shape(self, batch: int) -> Shape:
        """Shape (batch, inputs, size, size)."""
        return (batch, self.inputs, self.size, self.size)


@dataclass(frozen=True)
class LinearProblem:
    """y[rows, outputs] = x[rows, inputs] @ weight[outputs, inputs].T"""

    rows: int
    outputs: int
    inputs: int

    @property
    def weight_shape(self) -> Shape:
        """Shape (outputs, inputs)."""
        return (self.outputs, self.inputs)


def linear_problems(rows: Sequence[int] = (16, 128, 512, 1024, 4096, 16384)) -> tuple[LinearProblem, ...]:
    """Square layers of width 1024, 4096 and 8192, and two feed-forward layers, for each number of rows."""
    weights = ((1024, 1024), (4096, 4096), (8192, 8192), (14336, 4096), (28672, 8192))
    return tuple(LinearProblem(m, outputs, inputs) for outputs, inputs in weights for m in rows)


def _stages(inputs: int, size: int, widths: Sequence[int], depths: Sequence[int], *, wide: bool) -> list[ConvProblem]:
    """Convolutions of residual stages; the first block of every stage but the first halves the image.

    `wide`: blocks 1x1, 3x3, 1x1 with four times the width at their end instead of two 3x3.
    """
    found: list[ConvProblem] = []
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        outputs = 4 * width if wide else width
        for block in range(depth):
            stride = 2 if stage and not block else 1
            if wide:
                found.append(ConvProblem(inputs, width, size, kernel=1))
            found.append(ConvProblem(width if wide else inputs, width, size, stride=stride))
            found.append(ConvProblem(width, outputs, size // stride, kernel=1 if wide else 3))
            if inputs != outputs:
                found.append(ConvProblem(inputs, outputs, size, kernel=1, stride=stride))
            inputs, size = outputs, size // stride
    return found


def resnet18_convs() -> tuple[ConvProblem, ...]:
    """The 20 convolutions of ResNet-18 on 224 x 224 images, in module order (torchvision's form)."""
    stem = ConvProblem(3, 64, 224, kernel=7, stride=2)
    return (stem, *_stages(64, 56, (64, 128, 256, 512), (2, 2, 2, 2), wide=False))


def resnet50_convs() -> tuple[ConvProblem, ...]:
    """The 53 convolutions of ResNet-50 on 224 x 224 images, in module order (torchvision's form)."""
    stem = ConvProblem(3, 64, 224, kernel=7, stride=2)
    return (stem, *_stages(64, 56, (64, 128, 256, 512), (3, 4, 6, 3), wide=True))


def resnet20_convs() -> tuple[ConvProblem, ...]:
    """The 19 convolutions of ResNet-20 with parameter-free shortcuts on 32 x 32 images, in module order."""
    convs = (ConvProblem(3, 16, 32), *_stages(16, 32, (16, 32, 64), (3, 3, 3), wide=False))
    return tuple(conv for conv in convs if conv.kernel == 3)


def vgg16_convs() -> tuple[ConvProblem, ...]:
    """The 13 convolutions of VGG-16 on 32 x 32 images, in module order."""
    found: list[ConvProblem] = []
    inputs, size = 3, 32
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            found.append(ConvProblem(inputs, width, size))
            inputs = width
        size //= 2
    return tuple(found)


def _shapes(convs: Sequence[ConvProblem], classifier: Shape) -> tuple[Shape, ...]:
    """Weight shapes of the convolutions and of the classifier behind them."""
    return (*(conv.weight_shape for conv in convs), classifier)


def decoder_shapes(width: int, depth: int) -> tuple[Shape, ...]:
    """Weights of the linear layers of a decoder-only transformer in module order: 12 * width^2 for each block.

    A block has one projection to queries, keys and values, one out of the attention, and a feed-forward part four times as
    wide as the stream.
    """
    block = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
    return block * depth


RESNET18_SHAPES: tuple[Shape, ...] = _shapes(resnet18_convs(), (1000, 512))
"""21 weight tensors of ResNet-18 for ImageNet: 11,678,912 weights."""

RESNET50_SHAPES: tuple[Shape, ...] = _shapes(resnet50_convs(), (1000, 2048))
"""54 weight tensors of ResNet-50 for ImageNet: 25,502,912 weights."""

RESNET20_SHAPES: tuple[Shape, ...] = _shapes(resnet20_convs(), (10, 64))
"""20 weight tensors of ResNet-20 (option A) for CIFAR-10: 268,336 weights."""

VGG16_SHAPES: tuple[Shape, ...] = _shapes(vgg16_convs(), (10, 512))
"""14 weight tensors of VGG-16 with a single linear classifier for CIFAR-10: 14,715,584 weights."""

RESNET50_PARAMETER_SHAPES: tuple[Shape, ...] = (
    *(shape for conv in resnet50_convs() for shape in (conv.weight_shape, (conv.outputs,), (conv.outputs,))),
    *((1000, 2048), (1000,)),
)
"""All 161 parameter tensors of ResNet-50 (each convolution with the two vectors of its norm): 25,557,032 entries."""

TRANSFORMER_1B_SHAPES: tuple[Shape, ...] = decoder_shapes(width=2048, depth=20)
"""80 linear weights of a decoder-only transformer of width 2048 and depth 20, without its embedding: 1,006,632,960."""

NETWORK_SHAPES: dict[str, tuple[Shape, ...]] = {
    "resnet18": RESNET18_SHAPES,
    "resnet50": RESNET50_SHAPES,
    "resnet20": RESNET20_SHAPES,
    "vgg16": VGG16_SHAPES,
}
