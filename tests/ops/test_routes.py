# SPDX-License-Identifier: Apache-2.0
"""What is said of a layer's route is what the dispatch does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sparsekit import ops
from sparsekit.kernels import masked_conv2d_configs as configs
from sparsekit.ops import native, reference, routes, triton_linear
from sparsekit.ops.native import formulas

GEOMETRY = ((1, 1), (1, 1), (1, 1), 1)


@pytest.mark.parametrize("tokens", [1, 8, 9, 64])
def test_a_linear_layer_on_a_cpu(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(tokens, 40), torch.randn(30, 40)
    calls: list[str] = []
    products = SimpleNamespace(linear=lambda *a: calls.append("plain") or formulas.linear(*a))
    monkeypatch.setattr(native, "formulas", products)
    native._masked_linear(x, weight, reference.pack_mask(torch.rand(30, 40) < 0.5), None)
    assert (ops.layer_route(x, weight) == routes.FEW) == (calls == [])
    assert ops.layer_route(x.double(), weight.double()) == "masked weight, then PyTorch"


def test_a_convolution_on_a_cpu() -> None:
    assert ops.layer_route(torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), GEOMETRY) == "masked weight, then PyTorch"


def test_layers_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "hardware", lambda device: ((9, 0), 132))
    x, weight = torch.randn(16, 2048, dtype=torch.bfloat16), torch.randn(2048, 2048)
    assert triton_linear.route(16, 2048, 2048, x.dtype, x.dtype, (9, 0)) == "fused"
    with torch.autocast("cpu", torch.bfloat16):
        assert routes._on_cuda(x, weight, ()) == routes.FUSED
        assert routes._on_cuda(x[:, :64], weight[:, :64], ()) == "masked weight, then cuBLAS"
        image = torch.randn(1, 2048, 4, 4).to(memory_format=torch.channels_last)
        pointwise, filters = weight[..., None, None], torch.randn(8, 2048, 3, 3)
        assert routes._on_cuda(image, pointwise, ((1, 1), (0, 0), (1, 1), 1)) == f"{routes.FUSED}, on pixels"
        assert routes._on_cuda(image, filters, GEOMETRY) == "masked weight, then cuDNN"
        shape = configs.Shape(1, 2048, 8, (4, 4), (3, 3), padding=(1, 1))
        monkeypatch.setattr(configs, "WINNERS", {("y", "masters", (9, 0), shape): "fused"})
        assert routes._on_cuda(image, filters, GEOMETRY) == routes.FUSED
        assert routes._on_cuda(image.contiguous(), filters, GEOMETRY) == "masked weight, then cuDNN"


def test_what_the_dispatch_goes_by(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SPARSEKIT_AUTOTUNE", raising=False)
    facts = ops.dispatch()
    assert facts["autotuning"].startswith("off (") and facts["autotuning"].endswith(": 0 choices")
    monkeypatch.setenv("SPARSEKIT_KERNELS", "off")
    monkeypatch.setenv("SPARSEKIT_AUTOTUNE", "1")
    assert ops.dispatch()["Triton kernels"].startswith("off") and ops.dispatch()["autotuning"].startswith("on (")
