# SPDX-License-Identifier: Apache-2.0
"""Contexts that serve layers stand aside while a program is recorded, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import sparsekit as sk
from sparsekit.nn import compacted

CONTEXTS = [sk.cached_weights, sk.prepared_weights, sk.compacted_filters]


def build(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setitem(compacted.LEAST_PRODUCTS, "cpu", 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3))
    sk.sparsify(model)
    mask = torch.rand(8, 2, 3, 3) < 0.5
    mask[:5] = False
    model[0].mask = sk.Mask.from_dense(mask)
    return model


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_traced_graph_follows_the_mask(context: Callable[[nn.Module], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build(monkeypatch), torch.randn(1, 2, 5, 5)
    with torch.no_grad(), context(model):
        model(x)
        graph = make_fx(lambda x: model(x))(x)
    model[0].mask = sk.Mask.full(model[0].mask.shape)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_model_finalized_inside_is_as_any_other(
    context: Callable[[nn.Module], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(monkeypatch)
    with context(model):
        model(torch.randn(1, 2, 5, 5))
        sk.finalize(model)
    assert vars(model[0]).keys() == vars(nn.Conv2d(2, 8, 3)).keys()
