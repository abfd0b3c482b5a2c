# SPDX-License-Identifier: Apache-2.0
"""The ops on a GPU: bit for bit where bits are meant, within the yardstick where numbers are, and without waiting."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from oracles import DenseMasked, assert_within_yardstick, topk_oracle
from torch import Tensor, nn

from sparsekit import ops
from sparsekit.ops import structured_native

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
SHAPES = [(), (0,), (33,), (3, 32), (5, 65), (0, 4), (4, 0), (64, 32, 3, 3), (300, 1031)]


def random_mask(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Raises where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_words(shape: tuple[int, ...]) -> None:
    mask, weight = random_mask(shape), torch.randn(shape)
    words = ops.pack_mask(mask)
    on_device = ops.pack_mask(mask.to(DEVICE))
    assert on_device.is_cuda and torch.equal(on_device.cpu(), words)
    assert torch.equal(ops.unpack_mask(on_device, shape).cpu(), mask)
    assert ops.popcount(on_device).item() == mask.sum().item()
    others = ops.pack_mask(~mask.to(DEVICE))
    counts = ops.mask_counts([on_device, others], [others, others])
    assert counts.is_cuda and torch.equal(counts.cpu(), ops.mask_counts([words, others.cpu()], [others.cpu()] * 2))
    poisoned = torch.where(mask, weight, torch.nan)
    for target in (torch.float32, torch.bfloat16):
        got = ops.mask_weight(poisoned.to(DEVICE), on_device, target)
        assert torch.equal(got.cpu(), torch.where(mask, weight, 0.0).to(target))


def test_channels_last_strides() -> None:
    mask, weight = random_mask((8, 4, 3, 3)), torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    got = ops.mask_weight(weight.to(DEVICE), ops.pack_mask(mask.to(DEVICE)))
    assert got.stride() == weight.stride() and torch.equal(got.cpu(), torch.where(mask, weight, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("nan", ["error", "drop", "keep"])
@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
def test_topk_mask(scope: str, nan: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = [
        torch.randn(s, generator=generator).mul(4).round().div(4).to(dtype) for s in ((40, 70), (900,), (8, 4, 3, 3))
    ]
    scores[0][3, 5:9], scores[1][7], scores[2][1] = torch.nan, -torch.inf, -0.0
    kept = 1500 if scope == "global" else [s.numel() // 2 if scope == "tensor" else 5 for s in scores]
    for key in ("value", "magnitude"):
        expected, invalid = topk_oracle(scores, kept, key, scope, nan)
        got = ops.topk_mask([s.to(DEVICE) for s in scores], kept, key=key, scope=scope, nan=nan, out="bool")
        assert all(torch.equal(m.cpu(), e) for m, e in zip(got.masks, expected, strict=True))
        assert got.invalid.is_cuda and bool(got.invalid) == invalid


def test_selection_does_not_wait_for_the_device(no_waiting: None) -> None:
    scores = [torch.randn(50, 60, device=DEVICE), torch.randn(500, device=DEVICE)]
    for nan in ("error", "drop", "keep"):
        ops.topk_mask(scores, 700, nan=nan)
        ops.topk_mask(scores, [300, 20], scope="tensor", nan=nan)


def test_comparing_masks_does_not_wait_for_the_device(no_waiting: None) -> None:
    before, after = ([ops.pack_mask(torch.rand(50, 60, device=DEVICE) < 0.5) for _ in range(3)] for _ in range(2))
    ops.mask_iou(before, after), ops.regrow_count(before, after), ops.flip_rate(before, after, numel=9000)


def layers() -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    yield nn.Linear(96, 40), (64, 96)
    yield nn.Conv1d(16, 32, 3, padding=1, groups=2), (4, 16, 30)
    yield nn.Conv2d(16, 32, 3, stride=2, padding=1), (4, 16, 14, 14)
    yield nn.Conv2d(16, 16, 3, padding="same", groups=16), (4, 16, 14, 14)
    yield nn.Conv3d(4, 8, 2), (2, 4, 6, 6, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("layer", "shape"), list(layers()), ids=lambda v: str(v)[:12])
def test_masked_layers_within_the_yardstick(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    sizes = (shape, layer.weight.shape, layer.bias.shape)
    x, weight, bias = (torch.randn(s, generator=generator).to(dtype) for s in sizes)
    mask = random_mask(tuple(weight.shape))
    plain, words = DenseMasked(layer), ops.pack_mask(mask.to(DEVICE))

    def fused(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if isinstance(layer, nn.Linear):
            return ops.masked_linear(x, w, words, b)
        options = {n: getattr(layer, n) for n in ("stride", "padding", "dilation", "groups")}
        return getattr(ops, f"masked_conv{weight.ndim - 2}d")(x, w, words, b, **options)

    def results(function, *tensors: Tensor) -> list[Tensor]:
        leaves = [t.requires_grad_() for t in tensors]
        y = function(*leaves)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y)
        return [t.detach().cpu() for t in (y, *torch.autograd.grad(y, leaves, dy.to(dtype).to(y.dtype)))]

    poisoned = torch.where(mask, weight, torch.tensor(torch.nan, dtype=dtype))
    got = results(fused, *(t.detach().to(DEVICE) for t in (x, poisoned, bias)))
    peer = results(
        lambda *a: plain(a[0], a[1], mask.to(DEVICE), a[2]), *(t.detach().to(DEVICE) for t in (x, weight, bias))
    )
    truth = results(lambda *a: plain(a[0], a[1], mask, a[2]), *(t.detach().double() for t in (x, weight, bias)))
    for g, p, t in zip(got, peer, truth, strict=True):
        assert_within_yardstick(g, p, t)
    assert not got[2][~mask].any()


def test_layers_do_not_wait_for_the_device(no_waiting: None) -> None:
    x, weight = torch.randn(8, 64, device=DEVICE), torch.randn(32, 64, device=DEVICE, requires_grad=True)
    words = ops.pack_mask(torch.rand(32, 64, device=DEVICE) < 0.5)
    ops.masked_linear(x, weight, words).sum().backward()


def _scores(shape: tuple[int, ...], dtype: torch.dtype, special: bool) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    values = torch.tensor([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0] + [torch.nan, torch.inf, -torch.inf] * special)
    normal = torch.randn(shape, generator=generator)
    return torch.where(normal > 1, values[torch.randint(len(values), shape, generator=generator)], normal).to(dtype)


def _bits(x: Tensor) -> Tensor:
    return x.cpu().view(torch.int64 if x.dtype == torch.float64 else torch.int32)


@pytest.fixture
def structured_kernels() -> dict[str, Callable[..., Any]]:
    if not ops.native_info()["cuda"]:
        pytest.skip("sparsekit._C was built without nvcc")
    return structured_native.CUDA_IMPLEMENTATIONS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_structured_kernels_give_the_bits_of_the_cpu(
    dtype: torch.dtype, structured_kernels: dict[str, Callable[..., Any]]
) -> None:
    for shape in ((64, 32, 3, 3), (300, 1031), (1024, 4096), (8, 40004), (9000, 8)):
        for special in (False, True):
            scores = _scores(shape, dtype, special)
            there = scores.to(DEVICE)
            for groups in ("filter", "channel", (4, 4), (1, 16), (33, 70), (3, 300)):
                unit_shape, grid, unit = ops.structured.units_of("test", shape, groups)
                for key, p in (("value", 2.0), ("magnitude", 1.0), ("magnitude", 2.0), ("magnitude", torch.inf)):
                    expected = ops.group_scores(scores, groups, p=p, key=key)
                    found = structured_kernels["group_scores"](there, grid, unit, p, key).reshape(unit_shape)
                    assert torch.equal(_bits(found), _bits(expected))
                words = ops.pack_mask(torch.rand(unit_shape, generator=torch.Generator().manual_seed(5)) < 0.5)
                found = structured_kernels["expand_units"](words.to(DEVICE), shape, grid, unit)
                assert torch.equal(found.cpu(), ops.expand_units(words, shape, groups))


@pytest.mark.parametrize("nan", ["error", "drop", "keep"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_n_of_m_kernels_give_the_masks_of_the_cpu(
    dtype: torch.dtype, nan: str, structured_kernels: dict[str, Callable[..., Any]]
) -> None:
    for shape, special in itertools.product(((64, 32, 3, 3), (300, 1032), (1024, 4096), (12, 64, 1, 1)), (False, True)):
        scores = [_scores(shape, dtype, special)]
        there = [scores[0].to(DEVICE)]
        for key in ("value", "magnitude"):
            for n, m in ((2, 4), (4, 8), (1, 2), (5, 8)):
                words, invalid = structured_kernels["nm_mask"](there, n, m, key, nan)
                expected = ops.nm_mask(scores, n, m, key=key, nan=nan)
                assert torch.equal(words[0].cpu(), expected.masks[0]) and bool(invalid) == bool(expected.invalid)
            words, invalid = structured_kernels["transposable_nm_mask"](there, key, nan)
            expected = ops.transposable_nm_mask(scores, key=key, nan=nan)
            assert torch.equal(words[0].cpu(), expected.masks[0]) and bool(invalid) == bool(expected.invalid)


def test_structured_kernels_are_captured_and_do_not_wait(
    no_waiting: None, structured_kernels: dict[str, Callable[..., Any]]
) -> None:
    scores = torch.randn(64, 32, 3, 3, device=DEVICE)
    units = ops.structured.units_of("test", scores.shape, "channel")

    def project() -> list[Tensor]:
        found = structured_kernels["group_scores"](scores, units.grid, units.unit, 2.0, "magnitude")
        groups, _ = structured_kernels["nm_mask"]([scores], 2, 4, "magnitude", "error")
        tiles, _ = structured_kernels["transposable_nm_mask"]([scores], "magnitude", "error")
        kept = torch.full((1, 1), 0x55555555, dtype=torch.int32, device=DEVICE)
        return [found, *groups, *tiles, structured_kernels["expand_units"](kept, scores.shape, units.grid, units.unit)]

    project()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = project()
    scores.mul_(scores.roll(1))
    graph.replay()
    expected = project()
    torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
