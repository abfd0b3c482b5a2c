# SPDX-License-Identifier: Apache-2.0
"""The CUDA implementation of masked_linear from dispatch to kernel, on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
import torch
from masked_linear_jobs import case, effective
from oracles import assert_within_yardstick
from torch import Tensor
from torch.nn import functional as F

from sparsekit.kernels import masked_linear as kernels
from sparsekit.ops import proofs, schemas, triton_linear
from sparsekit.ops.reference import pack_mask

BF16, FP32 = torch.bfloat16, torch.float32
CPU = torch.device("cpu")


@contextmanager
def hopper(capturing: bool = False) -> Iterator[None]:
    """CPU tensors count as those of a small Hopper device, and every weight is worth a kernel."""
    with ExitStack() as stack:
        for target, name, value in (
            (triton_linear, "hardware", lambda device: ((9, 0), 8)),
            (triton_linear, "SMALLEST_WEIGHT", 1),
            (proofs, "_proofs", {}),
            (torch.cuda, "is_current_stream_capturing", lambda: capturing),
            (torch.cuda, "get_sync_debug_mode", lambda: 0),
            (torch.cuda, "set_sync_debug_mode", lambda mode: None),
        ):
            stack.enter_context(patch.object(target, name, value))
        yield


def both(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor, dy: Tensor, dense: bool = False) -> list[Tensor]:
    y = triton_linear.masked_linear(x, weight, words, bias)
    return [y, *triton_linear.masked_linear_backward(dy, x, weight, words, [True, True, True], dense)]


def job_forward_and_backward() -> None:
    for types in ((BF16, FP32), (FP32, FP32)):
        x, weight, mask, bias, dy = case(6, 70, 150, *types)
        words, z = pack_mask(mask), effective(weight, mask, x.dtype)
        for dense in (False, True):
            with hopper():
                found = both(x.view(2, 3, 150), weight, words, bias, dy.view(2, 3, 70), dense)
                assert len(proofs._proofs) == 3 and all(proofs._proofs.values())
            peers = [F.linear(x, z, bias), dy @ z, (dy.t() @ x).to(weight.dtype), dy.sum(0)]
            truth = [F.linear(x.double(), z.double(), bias.double()), dy.double() @ z.double()]
            truth += [dy.double().t() @ x.double(), dy.double().sum(0)]
            if not dense:
                peers[2], truth[2] = (torch.where(mask, dz, 0) for dz in (peers[2], truth[2]))
            shapes = [(2, 3, 70), (2, 3, 150), (70, 150), (70,)]
            assert [tuple(t.shape) for t in found] == shapes
            for got, peer, true in zip(found, peers, truth, strict=True):
                assert_within_yardstick(got.reshape(peer.shape), peer, true)


def job_only_what_is_needed() -> None:
    x, weight, mask, _, dy = case(6, 70, 150, BF16, FP32)
    with hopper():
        for index in range(3):
            needs = [i == index for i in range(3)]
            found = triton_linear.masked_linear_backward(dy, x, weight, pack_mask(mask), needs, False)
            assert [t.numel() > 0 for t in found] == needs
        assert len(proofs._proofs) == 2


def job_a_kernel_that_is_wrong_does_not_serve() -> None:
    x, weight, mask, bias, dy = case(6, 70, 150, BF16, FP32)
    words, right = pack_mask(mask), kernels.masked_linear

    def wrong(*arguments, config):
        y = right(*arguments, config=config)
        y[-1, -1] += 0.5
        return y

    def broken(*arguments, config):
        raise RuntimeError("CUDA error 999")

    expected = schemas._masked_linear(x, weight, words, bias)
    for fault, text in ((wrong, "error .* against float64"), (broken, "RuntimeError: CUDA error 999")):
        with hopper(), patch.object(kernels, "masked_linear", fault):
            with pytest.warns(RuntimeWarning, match=f"masked_linear: a Triton kernel failed its proof on cpu .*{text}"):
                y = triton_linear.masked_linear(x, weight, words, bias)
            assert torch.equal(y, expected) and proofs.status("masked_linear") == "triton failed its proof"
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                assert torch.equal(triton_linear.masked_linear(x, weight, words, bias), expected)
                triton_linear.masked_linear_backward(dy, x, weight, words, [True] * 3, False)
            assert proofs.status("masked_linear_backward") == "triton, proven"


def job_nothing_is_proven_or_served_inside_a_capture() -> None:
    x, weight, mask, bias, dy = case(6, 70, 150, BF16, FP32)
    words = pack_mask(mask)
    with hopper(capturing=True):
        found = both(x, weight, words, bias, dy)
        assert not proofs._proofs
    expected = [schemas._masked_linear(x, weight, words, bias)]
    expected += schemas.masked_linear_backward(dy, x, weight, words, [True] * 3, False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def job_every_default_of_the_table_passes_its_proof() -> None:
    with hopper():
        triton_linear.prove(CPU)
        assert len(proofs._proofs) == 20 and all(proofs._proofs.values())


def job_autotuning_takes_the_fastest_and_remembers() -> None:
    x, weight, mask, bias, _ = case(6, 70, 150, BF16, BF16)
    words, tuner = pack_mask(mask), triton_linear.autotune
    seen = []

    def seconds(run, device) -> float:
        run()
        seen.append(run)
        return 3.0 - len(seen)

    with (
        hopper(),
        patch.multiple(tuner, wanted=lambda: True, place=lambda device: "a GPU", seconds=seconds, _chosen={}),
    ):
        with patch.object(tuner, "save", lambda *entry: saved.append(entry)), patch.object(tuner, "load", dict):
            saved: list = []
            y = triton_linear.masked_linear(x, weight, words, bias)
            assert len(seen) == 3 and len(saved) == 1 and saved[0][2].depth == 64
            triton_linear.masked_linear(x, weight, words, bias)
        assert len(seen) == 3
    z = effective(weight, mask, BF16)
    assert_within_yardstick(y, F.linear(x, z, bias), F.linear(x.double(), z.double(), bias.double()))
