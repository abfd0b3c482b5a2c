# SPDX-License-Identifier: Apache-2.0
"""Masked layers on a GPU: graph replay sees new weights and masks, and guarded optimizers work captured."""

from __future__ import annotations

import copy

import pytest
import torch
from random_masks import remask_
from torch import Tensor, nn

import sparsekit as sk

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


def build() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    )
    sk.sparsify(model)
    remask_(model, 0)
    return model.to(DEVICE)


def plain_output(model: nn.Module, x: Tensor) -> Tensor:
    return sk.finalize(copy.deepcopy(model))(x)


@torch.no_grad()
def test_graph_replay_sees_weights_and_masks_change() -> None:
    model, x = build().eval(), torch.randn(4, 3, 8, 8, device=DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
    for seed in range(1, 4):
        remask_(model, seed)
        model[0].weight.data.mul_(-1.5)
        x.copy_(torch.randn(4, 3, 8, 8))
        graph.replay()
        torch.testing.assert_close(y, plain_output(model, x))


@pytest.mark.parametrize(
    "options", [{"foreach": True}, {"fused": True}, {"foreach": True, "capturable": True}], ids=str
)
def test_guard(options: dict) -> None:
    model, x = build(), torch.randn(4, 3, 8, 8, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, **options)
    sk.guard_(optimizer, model)
    start = {n: layer.weight.detach().clone() for n, layer in sk.masked_layers(model).items()}
    for _ in range(3):
        optimizer.zero_grad()
        with sk.dense_gradient(model):
            model(x).square().mean().backward()
        optimizer.step()
    for n, layer in sk.masked_layers(model).items():
        kept = layer.mask.dense()
        assert torch.equal(layer.weight[~kept], start[n][~kept]) and layer.weight[kept].ne(start[n][kept]).any()
        assert not optimizer.state[layer.weight]["exp_avg"][~kept].any()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_is_seen_in_eval(fused: bool) -> None:
    model, x = build().eval(), torch.randn(4, 3, 8, 8, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    model(x).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain_output(model, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_channels_last(dtype: torch.dtype) -> None:
    model = build().to(memory_format=torch.channels_last)
    plain = sk.finalize(copy.deepcopy(model))
    x = torch.randn(4, 3, 8, 8, device=DEVICE).to(memory_format=torch.channels_last)
    with torch.autocast(DEVICE, dtype=dtype):
        y, z = model(x), plain(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, z)
    y.float().square().sum().backward()
    assert all(not m.weight.grad[~m.mask.dense()].any() for m in sk.masked_layers(model).values())


def test_compile() -> None:
    model, x = build().eval(), torch.randn(4, 3, 8, 8, device=DEVICE)
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    with torch.no_grad():
        for seed in range(4):
            remask_(model, seed)
            torch.testing.assert_close(compiled(x).clone(), plain_output(model, x), rtol=1e-4, atol=1e-4)


def test_moving_between_devices_keeps_the_masks() -> None:
    model = build()
    masks = sk.masks(model)
    assert masks["4"].words.is_cuda
    model.cpu()
    assert sk.masks(model).hash() == masks.hash() and not model[0].mask_words.is_cuda
    sk.set_masks(model, masks)  # from another device
    assert sk.masks(model).hash() == masks.hash()
