# SPDX-License-Identifier: Apache-2.0
"""The kernels of masked_linear and their dispatch on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from captures import check_replay
from oracles import assert_within_yardstick
from torch import Tensor
from torch.nn import functional as F

from sparsekit import ops
from sparsekit.kernels import masked_linear_configs as configs
from sparsekit.ops import proofs, triton_linear

pytestmark = pytest.mark.gpu
pytest.importorskip("triton")
TYPES = [
    *[(dtype, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)],
    *[(dtype, torch.float32) for dtype in (torch.float16, torch.bfloat16)],
]
SHAPES = [(1, 1, 1), (3, 11, 37), (33, 40, 65), (16, 512, 512), (130, 257, 1031), (700, 320, 640)]


@pytest.fixture(params=[False, True], ids=["ieee", "tf32"])
def tf32(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if request.param else "ieee"
    yield request.param
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.fixture
def every_weight_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_linear, "SMALLEST_WEIGHT", 1)


def case(shape: tuple[int, int, int], x_type: torch.dtype, weight_type: torch.dtype) -> tuple[Tensor, ...]:
    """x, weight with NaN under the zero bits, mask, bias, dy on the device."""
    tokens, out, inputs = shape
    generator = torch.Generator().manual_seed(0)
    sizes = (tokens, inputs), (out, inputs), (out,), (tokens, out)
    x, weight, bias, dy = (torch.randn(size, generator=generator) for size in sizes)
    mask = torch.rand(out, inputs, generator=generator) < 0.5
    weight = torch.where(mask, weight, torch.nan).to(weight_type)
    return tuple(t.cuda() for t in (x.to(x_type), weight, mask, bias.to(x_type), dy.to(x_type)))


def check(shape: tuple[int, int, int], types: tuple[torch.dtype, torch.dtype], config: object) -> None:
    from sparsekit.kernels import masked_linear as kernels

    x, weight, mask, bias, dy = case(shape, *types)
    words, z = ops.pack_mask(mask), torch.where(mask, weight, 0).to(x.dtype)
    if isinstance(config, configs.ProductConfig):
        y = kernels.masked_linear(x, weight, words, bias, config=config)
        assert_within_yardstick(y, F.linear(x, z, bias), F.linear(x.double(), z.double(), bias.double()))
        dx = kernels.masked_linear_dx(dy, weight, words, config=config)
        assert_within_yardstick(dx, dy @ z, dy.double() @ z.double())
        return
    assert isinstance(config, configs.GradientConfig)
    masked, dense = kernels.masked_linear_dw(dy, x, words, "both", dtype=weight.dtype, config=config)
    assert_within_yardstick(dense, (dy.t() @ x).to(weight.dtype), dy.double().t() @ x.double())
    assert torch.equal(masked, torch.where(mask, dense, 0))


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_every_line_of_the_tables(types: tuple[torch.dtype, torch.dtype], tf32: bool) -> None:
    capability = torch.cuda.get_device_capability()
    kind = configs.kind_of(*types, tf32)
    assert kind is not None
    for table in (configs.products(kind, capability), configs.gradients(kind, capability)):
        for config in dict.fromkeys(config for candidates in table.values() for config in candidates):
            for shape in SHAPES:
                check(shape, types, config)


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("dense_grad", [False, True])
def test_the_op_within_the_yardstick(
    types: tuple[torch.dtype, torch.dtype], dense_grad: bool, every_weight_is_worth_it: None
) -> None:
    for shape in SHAPES:
        x, weight, mask, bias, dy = case(shape, *types)
        words, z = ops.pack_mask(mask), torch.where(mask, weight, 0).to(x.dtype)
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        with torch.autocast("cuda", dtype=x.dtype, enabled=x.dtype != torch.float32):
            y = ops.masked_linear(leaves[0], leaves[1], words, leaves[2], dense_grad=dense_grad)
        found = [y, *torch.autograd.grad(y, leaves, dy)]
        peers = [F.linear(x, z, bias), dy @ z, (dy.t() @ x).to(weight.dtype), dy.sum(0)]
        wide = [t.double() for t in (x, z, bias, dy)]
        truth = [F.linear(*wide[:3]), wide[3] @ wide[1], wide[3].t() @ wide[0], wide[3].sum(0)]
        if not dense_grad:
            peers[2], truth[2] = (torch.where(mask, dz, 0) for dz in (peers[2], truth[2]))
        for got, peer, true in zip(found, peers, truth, strict=True):
            assert_within_yardstick(got.detach(), peer, true)
    assert all(passed for (name, *_), passed in proofs._proofs.items() if name.startswith("masked_linear"))


def test_a_captured_layer_follows_its_inputs_and_does_not_wait() -> None:
    x, weight, mask, bias, dy = case((16, 2048, 2048), torch.bfloat16, torch.float32)
    words = ops.pack_mask(mask)

    def step() -> list[Tensor]:
        y = torch.ops.sparsekit.masked_linear(x, weight, words, bias)
        return [y, *torch.ops.sparsekit.masked_linear_backward(dy, x, weight, words, [True] * 3, False)]

    check_replay(step, lambda: (x.mul_(-2), words.copy_(words.roll(1, 0)), weight.nan_to_num_(1.0)))
    assert proofs.status("masked_linear") == "triton, proven"


def test_a_first_call_inside_a_capture_takes_the_plain_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "_proofs", {})
    x, weight, mask, bias, _ = case((16, 2048, 2048), torch.bfloat16, torch.bfloat16)
    words, z = ops.pack_mask(mask), torch.where(mask, weight, 0)
    F.linear(x, z, bias)  # cuBLAS allocates its workspace with its first call
    ops.mask_weight(weight, words)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.masked_linear(x, weight, words, bias)
    graph.replay()
    assert not proofs._proofs
    torch.testing.assert_close(y, F.linear(x, z, bias))


def test_results_are_the_same_in_every_run() -> None:
    x, weight, mask, bias, _ = case((4, 2048, 2048), torch.bfloat16, torch.bfloat16)
    words = ops.pack_mask(mask)
    first = ops.masked_linear(x, weight, words, bias)
    assert all(torch.equal(first, ops.masked_linear(x, weight, words, bias)) for _ in range(20))


def test_memory_of_the_masked_weight_is_saved() -> None:
    x, weight, mask, bias, _ = case((16, 4096, 4096), torch.bfloat16, torch.bfloat16)
    words = ops.pack_mask(mask)
    ops.masked_linear(x, weight, words, bias)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.masked_linear(x, weight, words, bias)
    assert torch.cuda.max_memory_allocated() - before < weight.nbytes / 4


def test_autotuned_choices_are_right_and_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("SPARSEKIT_AUTOTUNE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(triton_linear.autotune, "_chosen", {})
    x, weight, mask, bias, _ = case((16, 2048, 2048), torch.bfloat16, torch.bfloat16)
    words, z = ops.pack_mask(mask), torch.where(mask, weight, 0)
    y = ops.masked_linear(x, weight, words, bias)
    assert_within_yardstick(y, F.linear(x, z, bias), F.linear(x.double(), z.double(), bias.double()))
    (remembered,) = triton_linear.autotune.load().values()
    assert len(remembered) == 1


def test_devices_that_do_not_fit_are_refused() -> None:
    x, weight, mask, bias, _ = case((4, 64, 64), torch.float32, torch.float32)
    with pytest.raises(ValueError, match="masked_linear: words: expected a tensor on cuda:0 .x's., got one on cpu"):
        torch.ops.sparsekit.masked_linear(x, weight, ops.pack_mask(mask).cpu(), bias)
