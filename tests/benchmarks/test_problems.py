# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from math import prod

import pytest
import torch
from torch import nn

from sparsekit.benchmarks import problems
from sparsekit.benchmarks.problems import NETWORK_SHAPES


@pytest.mark.parametrize(
    "name, tensors, weights",
    [
        ("resnet18", 21, 11_678_912),
        ("resnet50", 54, 25_502_912),
        ("resnet20", 20, 268_336),
        ("vgg16", 14, 14_715_584),
    ],
)
def test_sizes(name: str, tensors: int, weights: int):
    shapes = NETWORK_SHAPES[name]
    assert len(shapes) == tensors and sum(map(prod, shapes)) == weights


def test_parameters_of_resnet50_are_torchvisions() -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        network = models.resnet50(weights=None)
    shapes = [tuple(p.shape) for p in network.parameters()]
    assert len(problems.RESNET50_PARAMETER_SHAPES) == 161
    assert sorted(shapes) == sorted(problems.RESNET50_PARAMETER_SHAPES)


def test_linear_weights_of_the_decoder_are_torchs() -> None:
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(64, 4, dim_feedforward=256)
    shapes = [tuple(p.shape) for p in layer.parameters() if p.ndim > 1]
    assert list(problems.decoder_shapes(64, 2)) == shapes * 2


def test_the_decoder_has_a_thousand_million_weights() -> None:
    shapes = problems.TRANSFORMER_1B_SHAPES
    assert len(shapes) == 80 and sum(map(prod, shapes)) == 1_006_632_960 == 12 * 2048**2 * 20


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_imagenet_shapes_are_torchvisions(name: str):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        network = models.get_model(name, weights=None)
    assert [tuple(p.shape) for p in network.parameters() if p.ndim > 1] == list(NETWORK_SHAPES[name])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_convolutions_have_the_input_sizes_of_the_network(name: str):
    models = pytest.importorskip("torchvision.models")
    seen: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen[module] = (*inputs[0].shape, *output.shape[2:])

    with torch.device("meta"):
        network = models.get_model(name, weights=None)
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        for module in convolutions:
            module.register_forward_hook(note)
        network(torch.empty(2, 3, 224, 224))
    problem_list = getattr(problems, f"{name}_convs")()
    assert [seen[module] for module in convolutions] == [
        (*conv.input_shape(2), conv.size // conv.stride, conv.size // conv.stride) for conv in problem_list
    ]


def test_linear_problems():
    found = problems.linear_problems(rows=(1, 64))
    assert len(found) == 10 and found[0].weight_shape == (1024, 1024) and {p.rows for p in found} == {1, 64}
