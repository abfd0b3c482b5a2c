# SPDX-License-Identifier: Apache-2.0
"""Surgery on the networks of the experiments: half of the filters of every layer, masked with and without coupling."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import surgery_nets as nets
import torch
from torch import Tensor, nn

import sparsekit as sk
from sparsekit.benchmarks.networks import build_network

pytest.importorskip("torch_pruning")
pytestmark = pytest.mark.slow


def assert_numbers(report: sk.CompactReport, plain: nn.Module, small: nn.Module, x: Tensor) -> None:
    """What the report says of each layer and of the whole, counted anew in the two models."""
    for cut in report.layers:
        old, new = (m.get_submodule(cut.name).weight for m in (plain, small))
        assert isinstance(old, Tensor) and isinstance(new, Tensor)
        empty = [int((old.transpose(0, dim).flatten(1) == 0).all(1).sum()) for dim in (0, 1)]
        assert [cut.outputs.asked, cut.inputs.asked] == empty and [cut.outputs.total, cut.inputs.total] == [
            *old.shape[:2]
        ]
        assert [cut.outputs.removed, cut.inputs.removed] == [old.shape[d] - new.shape[d] for d in (0, 1)]
    assert report.parameters == (sum(p.numel() for p in plain.parameters()), sum(p.numel() for p in small.parameters()))
    assert report.flops == (multiplications(plain, x), multiplications(small, x))


def multiplications(model: nn.Module, x: Tensor) -> int:
    """Two operations for each product of a weight with an entry."""
    counts = []

    def ran(module: Any, given: Any, output: Tensor) -> None:
        counts.append(2 * output.numel() * module.weight[0].numel())

    hooks = [m.register_forward_hook(ran) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return sum(counts)


@pytest.mark.parametrize(
    ("name", "size", "asked", "residual"),
    [("resnet20", 8, 344, True), ("resnet20b", 8, 392, True), ("resnet18", 8, 2400, True), ("vgg16", 32, 2112, False)],
)
def test_half_of_the_filters(name: str, size: int, asked: int, residual: bool) -> None:
    network = build_network(name, classes=10, channels=3, image_size=size, seed=0)
    model, x = nets.settled(network, (2, 3, size, size))
    last = list(dict(model.named_modules()))[-1]
    sk.sparsify(model, skip=[last])
    weights = {n: layer.weight.detach() for n, layer in sk.masked_layers(model).items()}
    for pattern in ("filter", sk.coupled_filters(model, x)):
        sk.set_masks(model, sk.Projection(pattern, "uniform")(weights, 0.5).masks)
        small, report = sk.compact(model, x, silence_batchnorm=True)
        sides = [layer.outputs for layer in report.layers]
        removed = sum(s.removed for s in sides)
        assert sum(s.asked for s in sides) == asked and sum(s.removable for s in sides) == removed
        assert removed < asked if residual and pattern == "filter" else removed == asked
        before = {k: v.clone() for k, v in model.state_dict().items()}
        assert sk.silence_batchnorm_(model, x) == report.silenced and sum(report.silenced.values()) == asked
        assert_numbers(report, sk.finalize(copy.deepcopy(model)), small, x)
        with torch.no_grad():
            torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)
        model.load_state_dict(before)
    assert report.parameters[1] < 0.3 * report.parameters[0] and report.flops[1] < 0.3 * report.flops[0]
