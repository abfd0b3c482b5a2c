# SPDX-License-Identifier: Apache-2.0
"""The CUDA implementations on the emulator, and how they come to serve a device."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from emulator import emulated
from selections import draw, draw_kept
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sparsekit import ops
from sparsekit.ops import multi_native, native_cuda, reference, serving, structured_native

CPU = torch.device("cpu")
NAMES = sorted(native_cuda.CUDA_IMPLEMENTATIONS)


@pytest.fixture
def on_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA implementations take CPU tensors, which the emulated module works on."""
    for module in (native_cuda, structured_native, multi_native):
        monkeypatch.setattr(module, "_C", emulated())


def same(got: object, want: object) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_op_passes_its_proof(name: str, on_emulator: None) -> None:
    assert native_cuda.samples(CPU)[name]
    assert serving._differs(name, CPU) == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_kernel_fails_its_proof(name: str, on_emulator: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments):
        result = serving._oracle(name)(*arguments)
        first = serving._tensors((result, arguments))[0]  # what it returns, or else writes to
        first.view(-1)[-1] = ~first.view(-1)[-1] if first.dtype == torch.bool else first.view(-1)[-1] + 1
        return result

    monkeypatch.setitem(native_cuda.CUDA_IMPLEMENTATIONS, name, wrong)
    assert "sample 0" in serving._differs(name, CPU)


def test_selections_of_every_scope(on_emulator: None) -> None:
    rng = np.random.default_rng(7)
    for _ in range(60):
        scores = draw(rng, 30)
        key, nan = str(rng.choice(["value", "magnitude"])), str(rng.choice(["error", "drop", "keep"]))
        for scope in ("global", "tensor", "row"):
            cols = [reference.rows_cols(s.shape)[1] for s in scores]
            limits = [sum(s.numel() for s in scores)] if scope == "global" else cols
            limits = [s.numel() for s in scores] if scope == "tensor" else limits
            arguments = scores, [draw_kept(rng, limit) for limit in limits], key, scope, nan
            assert same(native_cuda.topk_mask(*arguments), reference.topk_mask(*arguments)), (scope, key, nan)


def test_strides_mixed_dtypes_and_warm_starts(on_emulator: None) -> None:
    a, b = torch.randn(40, 30).t(), torch.randn(9, 4, 3, 3).to(memory_format=torch.channels_last).half()
    assert same(
        native_cuda.topk_mask([a, b], [500, 30], "value", "tensor", "error"),
        reference.topk_mask([a, b], [500, 30], "value", "tensor", "error"),
    )
    assert same(
        native_cuda.topk_mask([a, b], [500], "value", "global", "error"),
        reference.topk_mask([a, b], [500], "value", "global", "error"),
    )
    scores, warm = [torch.randn(300, 100), torch.randn(5000)], torch.zeros(1, 3, dtype=torch.int64)
    for _ in range(3):
        words, _, warm = native_cuda.topk_mask(scores, [9000], "magnitude", "global", "error", warm)
        assert same(words, reference.topk_mask(scores, [9000], "magnitude", "global", "error")[0])
    assert warm[0, 2] == 1


def test_a_failed_proof_is_told_once_and_pytorch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(mask: Tensor) -> Tensor:
        raise RuntimeError("CUDA error 999")

    monkeypatch.setattr(serving, "_proofs", {})
    monkeypatch.setitem(native_cuda.CUDA_IMPLEMENTATIONS, "pack_mask", broken)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    serve, mask = serving._proven("pack_mask"), torch.rand(3, 40) < 0.5
    with pytest.warns(
        RuntimeWarning, match="pack_mask: the compiled CUDA code failed its proof on cpu .*CUDA error 999"
    ):
        words = serve(mask)
    assert torch.equal(words, reference.pack_mask(mask))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        serve(mask)
    assert ops.capabilities()["pack_mask"]["cuda"] == "torch (native failed its proof)"


def test_a_proof_without_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(mask: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(serving, "_proofs", {})
    monkeypatch.setitem(native_cuda.CUDA_IMPLEMENTATIONS, "pack_mask", hungry)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    with pytest.raises(torch.OutOfMemoryError):
        serving.serves("pack_mask", CPU)
    assert serving._proofs == {}


def test_inside_a_capture_nothing_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_proofs", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert serving.serves("pack_mask", CPU) and serving._proofs == {}


def test_kernels_can_be_switched_off() -> None:
    code = "from sparsekit import ops; print(ops.native_info()['built'], ops.capabilities()['topk_mask'])"
    environment = {**os.environ, "SPARSEKIT_KERNELS": "off"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split(maxsplit=1) == ["False", "{'cpu': 'torch', 'cuda': 'torch'}\n"]
