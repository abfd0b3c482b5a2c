# SPDX-License-Identifier: Apache-2.0
"""What a channel may pass through and still be removed: layers and operations that treat every channel on its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
WITH_FILTERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
LAYERS = (*WITH_FILTERS, *NORMS, nn.PReLU)
# Names of autograd functions. Reductions over channels and reshapes that mix them are not told apart from harmless ones
# by their name; the proof that follows every removal finds them.
_APART = """
Abs AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D AdaptiveMaxPool3D Add Addmm Alias Amax AvgPool2D
AvgPool3D Cat Celu Clamp ClampMax ClampMin Clone ConstantPadNd Div Elu Erf Exp Expm1 Gelu Hardsigmoid Hardswish Hardtanh
LeakyRelu LogSigmoid MaxPool2DWithIndices MaxPool3DWithIndices Mean Minimum Maximum Mish Mm Mul NativeDropout Neg Permute Pow
PreluKernel ReflectionPad1D ReflectionPad2D ReflectionPad3D Relu ReplicationPad1D ReplicationPad2D ReplicationPad3D Rsqrt Selu
Sigmoid Silu Sin Slice Softplus Split SplitWithSizes Sqrt Squeeze Sub Sum T Tanh Threshold ToCopy Transpose UnsafeSplit
UnsafeView Unsqueeze UpsampleBicubic2D UpsampleBilinear2D UpsampleLinear1D UpsampleNearest1D UpsampleNearest2D
UpsampleNearest3D UpsampleTrilinear3D View
"""
APART = frozenset(_APART.split())


@runtime_checkable
class PadsChannels(Protocol):
    """A module that puts so many channels of zeros before and behind those of its input (a parameter-free shortcut)."""

    before: int
    behind: int


class Pad(NamedTuple):
    """What a module that pads does: so many channels of zeros before and behind those of its input."""

    before: int
    channels: int
    behind: int


@dataclass(frozen=True)
class Traced:
    """What one pass through the network showed, beside Torch-Pruning's graph of it.

    names: of all modules. calls: how often each ran. sources, sinks: autograd functions that gave the network's inputs and
    outputs. pads: by the names of the modules that pad channels. shared: modules whose parameters another module has too.
    """

    names: Mapping[nn.Module, str]
    calls: Mapping[nn.Module, int]
    sources: frozenset[Any]
    sinks: frozenset[Any]
    pads: Mapping[str, Pad]
    shared: frozenset[nn.Module]


def is_depthwise(module: nn.Module) -> bool:
    """Is it a convolution with as many groups as channels, more than one?"""
    return type(module) in CONVOLUTIONS and module.groups == module.out_channels == module.in_channels > 1  # pyright: ignore


def obstacle(node: Any, output: bool, traced: Traced) -> str:
    """Why no channel at this side of a node of the graph can be removed, or "".

    Args:
        node: of Torch-Pruning's graph: a layer, or an operation by the name of its autograd function.
        output: are they its outputs? What a node does not mix is both input and output.
    """
    if output and node.grad_fn in traced.sinks:
        return "it is an output of the network"
    if node.grad_fn in traced.sources:
        return "it is joined with an input of the network"
    if node.module in traced.names:
        return _of_layer(node.module, traced)
    if not isinstance(node.module, nn.Module) or not hasattr(node.grad_fn, "name"):
        return "it meets a parameter or an operation that no known layer owns"
    return _of_operation(node.grad_fn, traced)


def _of_layer(module: nn.Module, traced: Traced) -> str:
    kind, name = type(module), traced.names[module]
    if name in traced.pads:
        return ""
    if kind not in LAYERS:
        return f"it passes through `{name}` ({kind.__name__}), which is not known to treat channels apart"
    if traced.calls.get(module, 0) > 1:
        return f"it passes through `{name}`, which is called more than once"
    if module in traced.shared:
        return f"it passes through `{name}`, which shares a parameter with another layer"
    if kind in TRANSPOSED and module.groups > 1:  # pyright: ignore[reportOperatorIssue]
        return f"it passes through `{name}`, a grouped {kind.__name__}"
    if kind in CONVOLUTIONS and 1 < module.groups == module.out_channels != module.in_channels:  # pyright: ignore
        return f"it passes through `{name}`, with as many groups as outputs and more inputs"
    return ""


def _of_operation(function: Any, traced: Traced) -> str:
    name = re.sub(r"Backward\d*$", "", function.name())
    if name not in APART:
        return f"it passes through the operation {name}, which is not known to treat channels apart"
    if name == "ConstantPadNd" and any(function._saved_pad[4:]):
        return "it passes through a padding of channels that no module with `before` and `behind` owns"
    return ""
