# SPDX-License-Identifier: Apache-2.0
"""The kernels of masked_conv2d and their dispatch on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from captures import check_replay
from masked_conv2d_jobs import CASES, FP32, TYPES, build, effective, plain
from oracles import assert_within_yardstick
from torch import Tensor

from sparsekit import ops
from sparsekit.kernels import masked_conv2d_configs as configs
from sparsekit.kernels.masked_conv2d import Geometry, masked_conv2d, masked_conv2d_dw, masked_conv2d_dx
from sparsekit.kernels.masked_linear_configs import kind_of
from sparsekit.ops import conv_routes, formulas, proofs

pytestmark = pytest.mark.gpu
pytest.importorskip("triton")
LARGER: dict[str, tuple[tuple[int, ...], tuple[int, int, int], dict[str, Any]]] = {
    "64 channels": ((2, 64, 14, 14), (64, 3, 3), {"padding": (1, 1)}),
    "256 channels": ((2, 256, 14, 14), (256, 3, 3), {"padding": (1, 1)}),
    "halved": ((3, 128, 15, 15), (256, 3, 3), {"padding": (1, 1), "stride": (2, 2)}),
    "image": ((2, 3, 65, 65), (64, 7, 7), {"padding": (3, 3), "stride": (2, 2)}),
}


@pytest.fixture(autouse=True, params=["ieee", "tf32"])
def tf32(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    for part in (torch.backends.cudnn.conv, torch.backends.cuda.matmul):
        monkeypatch.setattr(part, "fp32_precision", request.param)
    return request.param == "tf32"


def on_device(name: str, types: tuple[torch.dtype, torch.dtype]) -> tuple[Any, ...]:
    torch.manual_seed(0)
    shape, filters, geometry = {**CASES, **LARGER}[name]
    *tensors, geometry = build(shape, filters, Geometry(**geometry), types)
    return *(t.cuda() for t in tensors), geometry


def by_pytorch(operands: tuple[Any, ...], dtype: torch.dtype | None = None) -> list[Tensor]:
    x, weight, mask, bias, dy, g = operands
    z = effective(weight, mask, x.dtype)
    x, z, bias, dy = (t.to(dtype or t.dtype) for t in (x, z, bias, dy))
    dx, dz, db = formulas.conv_backward(dy, x, z, *plain(g), [True, True, True])
    return [formulas.conv(x, z, bias, *plain(g)), dx, dz.to(dtype or weight.dtype), db]


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_every_line_of_the_tables(types: tuple[torch.dtype, torch.dtype], tf32: bool) -> None:
    kind, major = kind_of(*types, tf32), torch.cuda.get_device_capability()[0]
    assert kind is not None
    products = configs.HOPPER_PRODUCTS[kind] if major == 9 else configs.ELSEWHERE_PRODUCTS
    gradients = configs.HOPPER_GRADIENTS[kind] if major == 9 else configs.ELSEWHERE_GRADIENTS
    for name in [*CASES, *LARGER]:
        operands = on_device(name, types)
        x, weight, mask, bias, dy, g = operands
        words, peers, truth = ops.pack_mask(mask), by_pytorch(operands), by_pytorch(operands, torch.float64)
        for split in (1, 4):
            for tiles in (replace(t, split=split) for t in products.values()):
                y = masked_conv2d(x, weight, words, bias, g, tiles=tiles)
                dx = masked_conv2d_dx(dy, weight, words, x.shape[2:], g, tiles=tiles)
                assert_within_yardstick(y, peers[0], truth[0])
                assert_within_yardstick(dx, peers[1], truth[1])
            for tiles in (replace(t, split=split) for t in gradients.values()):
                masked, dense = masked_conv2d_dw(dy, x, words, weight, "both", g, tiles=tiles)
                assert_within_yardstick(dense, peers[2], truth[2])
                assert torch.equal(masked, torch.where(mask, dense, 0))


@pytest.mark.parametrize("types", [TYPES[2], TYPES[4], FP32], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_the_op_within_the_yardstick(types: Any, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fused:
        monkeypatch.setattr(configs, "winner", lambda *_: "fused")
    for name in [*CASES, *LARGER]:
        operands = on_device(name, types)
        x, weight, mask, bias, dy, g = operands
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        with torch.autocast("cuda", dtype=x.dtype, enabled=x.dtype != torch.float32):
            y = ops.masked_conv2d(leaves[0], leaves[1], ops.pack_mask(mask), leaves[2], *plain(g))
        found = [y, *torch.autograd.grad(y, leaves, dy)]
        peers, truth = by_pytorch(operands), by_pytorch(operands, torch.float64)
        peers[2], truth[2] = (torch.where(mask, dz, 0) for dz in (peers[2], truth[2]))
        for got, peer, true in zip(found, peers, truth, strict=True):
            assert_within_yardstick(got.detach(), peer, true)
    assert all(proofs._proofs.values())


def test_a_captured_layer_follows_its_inputs_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "winner", lambda *_: "fused")
    x, weight, mask, bias, dy, g = on_device("256 channels", TYPES[4])
    words = ops.pack_mask(mask)

    def step() -> list[Tensor]:
        y = conv_routes.masked_conv2d(x, weight, words, bias, *plain(g))
        return [y, *conv_routes.masked_conv2d_backward(dy, x, weight, words, *plain(g), [True] * 3, False)]

    check_replay(step, lambda: (x.mul_(-2), words.copy_(words.roll(1, 0)), weight.nan_to_num_(1.0)))


def test_one_by_one_goes_to_masked_linear() -> None:
    x, weight, mask, *_ = on_device("64 channels", TYPES[4])
    weight, mask = weight[:, :, :1, :1].repeat(32, 32, 1, 1), mask[:, :, :1, :1].repeat(32, 32, 1, 1)
    x = torch.randn(1, 2048, 4, 4, device="cuda", dtype=x.dtype).to(memory_format=torch.channels_last)
    weight = torch.where(mask, weight, torch.nan)
    problem = conv_routes._problem("y", x, weight, plain(Geometry()))
    assert conv_routes.route(problem, torch.cuda.get_device_capability()) == "pointwise"
    y = ops.masked_conv2d(x, weight, ops.pack_mask(mask))
    z = effective(weight, mask, x.dtype)
    truth = formulas.conv(x.double(), z.double(), None, *plain(Geometry()))
    assert_within_yardstick(y, formulas.conv(x, z, None, *plain(Geometry())), truth)


def test_autotuned_choices_are_right(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("SPARSEKIT_AUTOTUNE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(conv_routes.autotune, "_chosen", {})
    operands = on_device("64 channels", TYPES[4])
    x, weight, mask, bias, _, g = operands
    y = ops.masked_conv2d(x, weight.to(x.dtype), ops.pack_mask(mask), bias, *plain(g))
    assert_within_yardstick(y, by_pytorch(operands)[0], by_pytorch(operands, torch.float64)[0])
    assert len(conv_routes.autotune.load()) == 1
