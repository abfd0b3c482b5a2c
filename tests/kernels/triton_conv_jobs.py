# SPDX-License-Identifier: Apache-2.0
"""The CUDA implementation of masked_conv2d from dispatch to kernel, on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from masked_conv2d_jobs import Errors, build, case, effective, plain
from torch import Tensor

from sparsekit.kernels import masked_conv2d as kernels
from sparsekit.kernels import masked_conv2d_configs as configs
from sparsekit.kernels.masked_conv2d import Geometry
from sparsekit.ops import conv_problems, conv_routes, formulas, proofs, schemas, triton_linear
from sparsekit.ops.reference import pack_mask

BF16, FP32 = torch.bfloat16, torch.float32
HOPPER = (9, 0)


def winners(x: Tensor, weight: Tensor, geometry: Geometry, *products: str) -> dict[Any, str]:
    """A table that names this problem for these products."""
    problem = conv_routes._problem("y", x, weight, plain(geometry))
    return {(product, problem.kind, HOPPER, problem.shape): "fused" for product in products}


@contextmanager
def hopper(table: dict[Any, str], capturing: bool = False) -> Iterator[None]:
    """CPU tensors count as those of a small Hopper device, and ``table`` says what was measured there."""
    with ExitStack() as stack:
        for target, name, value in (
            (conv_routes, "hardware", lambda device: (HOPPER, 8)),
            (triton_linear, "hardware", lambda device: (HOPPER, 8)),
            (triton_linear, "SMALLEST_WEIGHT", 1),
            (configs, "WINNERS", table),
            (proofs, "_proofs", {}),
            (torch.cuda, "is_current_stream_capturing", lambda: capturing),
            (torch.cuda, "get_sync_debug_mode", lambda: 0),
            (torch.cuda, "set_sync_debug_mode", lambda mode: None),
        ):
            stack.enter_context(patch.object(target, name, value))
        yield


def both(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, dy: Tensor, g: Geometry, dense: bool = False):
    words, needs = pack_mask(mask), [True, True, True]
    y = conv_routes.masked_conv2d(x, weight, words, bias, *plain(g))
    return [y, *conv_routes.masked_conv2d_backward(dy, x, weight, words, *plain(g), needs, dense)]


def expected(operands: tuple, dense: bool, dtype: torch.dtype | None = None) -> list[Tensor]:
    x, weight, mask, bias, dy, g = operands
    z = effective(weight, mask, x.dtype)
    x, z, bias, dy = (t.to(dtype or t.dtype) for t in (x, z, bias, dy))
    dx, dz, db = formulas.conv_backward(dy, x, z, *plain(g), [True, True, True])
    dz = dz.to(dtype or weight.dtype)
    return [formulas.conv(x, z, bias, *plain(g)), dx, dz if dense else torch.where(mask, dz, 0), db]


def job_every_product_of_a_winner() -> None:
    for types in ((BF16, FP32), (FP32, FP32)):
        errors = Errors()
        for name in ("3x3", "strided", "groups"):
            operands = case(name, types)
            for dense in (False, True):
                with hopper(winners(operands[0], operands[1], operands[5], "y", "dx", "dw")):
                    found = both(*operands, dense)
                    assert len(proofs._proofs) == 3 and all(proofs._proofs.values())
                for got, peer, truth in zip(
                    found, expected(operands, dense), expected(operands, dense, torch.float64), strict=True
                ):
                    errors.add(got, peer, truth)
        errors.check()


def job_each_gradient_has_a_route_of_its_own() -> None:
    operands = case("3x3", (BF16, FP32))
    x, weight, mask, _, dy, g = operands
    for product, place in (("dx", 0), ("dw", 1)):
        with hopper(winners(x, weight, g, product)):
            both(*operands)
            assert [key[0] for key in proofs._proofs] == ["masked_conv2d_backward"]
            needs = [i == 1 - place for i in range(3)]
            found = conv_routes.masked_conv2d_backward(dy, x, weight, pack_mask(mask), *plain(g), needs, False)
            assert [t.numel() > 0 for t in found] == needs


def job_without_a_row_the_library_serves() -> None:
    operands = case("3x3", (BF16, FP32))
    with hopper({}):
        found = both(*operands)
        assert not proofs._proofs
    assert all(torch.equal(a, b) for a, b in zip(found, expected(operands, False), strict=True))


def job_other_layouts_go_to_the_library() -> None:
    x, weight, mask, bias, dy, g = case("3x3")
    with hopper(winners(x, weight, g, "y")):
        conv_routes.masked_conv2d(x.contiguous(), weight, pack_mask(mask), bias, *plain(g))
        assert not proofs._proofs


def job_one_by_one_goes_to_masked_linear() -> None:
    for stride in ((1, 1), (2, 1)):
        errors = Errors()
        operands = build((2, 36, 3, 4), (20, 1, 1), Geometry(stride=stride), (BF16, FP32))
        problem = conv_routes._problem("y", operands[0], operands[1], plain(operands[5]))
        with (
            hopper({}),
            patch.object(schemas, "_masked_conv", None),
            patch.object(schemas, "masked_conv_backward", None),
        ):
            assert conv_routes.route(problem, HOPPER) == "pointwise"
            many = replace(problem, shape=replace(problem.shape, batch=4096))
            assert conv_routes.route(many, HOPPER) == "hybrid"
            with patch.multiple(
                torch.ops.sparsekit,
                masked_linear=triton_linear.masked_linear,
                masked_linear_backward=triton_linear.masked_linear_backward,
            ):
                found = both(*operands)
            assert {key[0] for key in proofs._proofs} == {"masked_linear", "masked_linear_backward"}
        assert found[0].is_contiguous(memory_format=torch.channels_last)
        for got, peer, truth in zip(
            found, expected(operands, False), expected(operands, False, torch.float64), strict=True
        ):
            assert got.shape == peer.shape
            errors.add(got, peer, truth)


def job_a_kernel_that_is_wrong_does_not_serve() -> None:
    operands = case("3x3", (BF16, FP32))
    x, weight, mask, bias, _, g = operands
    right = kernels.masked_conv2d

    def wrong(*arguments, tiles):
        y = right(*arguments, tiles=tiles)
        y[-1, -1] += 0.5
        return y

    with hopper(winners(x, weight, g, "y")), patch.object(kernels, "masked_conv2d", wrong):
        with pytest.warns(RuntimeWarning, match="masked_conv2d: a Triton kernel failed its proof on cpu .*float64"):
            y = conv_routes.masked_conv2d(x, weight, pack_mask(mask), bias, *plain(g))
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            again = conv_routes.masked_conv2d(x, weight, pack_mask(mask), bias, *plain(g))
    assert torch.equal(y, expected(operands, False)[0]) and torch.equal(y, again)


def job_nothing_is_proven_or_served_inside_a_capture() -> None:
    operands = case("3x3", (BF16, FP32))
    with hopper(winners(operands[0], operands[1], operands[5], "y", "dx", "dw"), capturing=True):
        found = both(*operands)
        assert not proofs._proofs
    assert all(torch.equal(a, b) for a, b in zip(found, expected(operands, False), strict=True))


def job_the_sample_of_a_proof_is_of_the_same_variant() -> None:
    for shape, filters, geometry in (
        ((8, 64, 56, 56), (64, 3, 3), Geometry(padding=(1, 1))),
        ((8, 3, 224, 224), (64, 7, 7), Geometry((2, 2), (3, 3))),
        ((8, 192, 14, 14), (384, 3, 3), Geometry((2, 2), (1, 1), (1, 1), 3)),
        ((8, 40, 9, 9), (40, 5, 5), Geometry(padding=(2, 2), groups=40)),
    ):
        x, weight = torch.empty(shape, dtype=BF16), torch.empty(filters[0], shape[1] // geometry.groups, *filters[1:])
        problem = conv_routes._problem("y", x, weight, plain(geometry))
        sample = replace(problem, shape=conv_problems._sample(problem))
        tiles = conv_problems.tiles_for(problem, HOPPER, 132)
        assert conv_problems.variant(sample, tiles) == conv_problems.variant(problem, tiles)
        assert sample.shape.inputs * sample.shape.outputs <= 256 * 256 * 4 and sample.shape.batch <= 3


def job_proofs_of_all_winners() -> None:
    table: dict[Any, str] = {}
    for types in ((BF16, FP32), (FP32, FP32)):
        operands = case("3x3", types)
        table |= winners(operands[0], operands[1], operands[5], "y", "dw")
    with hopper(table):
        conv_routes.prove(torch.device("cpu"))
        assert len(proofs._proofs) == 4 and all(proofs._proofs.values())


def job_autotuning_takes_the_faster_of_the_kernel_and_the_library() -> None:
    operands = case("3x3", (BF16, FP32))
    x, weight, mask, bias, _, g = operands
    tuner = conv_routes.autotune
    for times, fused in (((2.0, 1.0), True), ((1.0, 2.0), False)):
        left = list(times)

        def seconds(run, device, left=left) -> float:
            run()
            return left.pop(0)

        settings = {"wanted": lambda: True, "place": lambda device: "a GPU", "seconds": seconds, "_chosen": {}}
        with hopper({}), patch.multiple(tuner, save=lambda *entry: None, load=dict, **settings):
            for _ in range(2):
                y = conv_routes.masked_conv2d(x, weight, pack_mask(mask), bias, *plain(g))
            assert left == [] and len(proofs._proofs) == 1
            (choice,) = tuner._chosen.values()
            assert isinstance(choice, configs.ProductTiles if fused else conv_routes.Library)
        assert fused or torch.equal(y, expected(operands, False)[0])
        errors = Errors()
        errors.add(y, expected(operands, False)[0], expected(operands, False, torch.float64)[0])
