# SPDX-License-Identifier: Apache-2.0
"""Sparsified models in the Hugging Face hub's save_pretrained and from_pretrained, without a network."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsekit as sk

hub = pytest.importorskip("huggingface_hub")


class Plain(nn.Module, hub.PyTorchModelHubMixin):
    """Two of its layers share a weight."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.one, self.two = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, width)
        self.two.weight = self.one.weight
        self.norm, self.head = nn.BatchNorm1d(width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.two(self.one(self.first(x)))))


class Sparse(Plain):
    """Sparsified by its constructor, as a model is that the hub is to build."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        sk.sparsify(self)


def pruned(kind: type[Plain]) -> Plain:
    torch.manual_seed(0)
    model = kind(width=6)
    if kind is Plain:
        sk.sparsify(model)
    sk.set_masks(model, {n: sk.Mask.from_dense(torch.rand(m.shape) < 0.4) for n, m in sk.masks(model).items()})
    return model.eval()


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def test_a_model_that_its_constructor_sparsifies(tmp_path: Path) -> None:
    model = pruned(Sparse)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"width": 6}
    again = Sparse.from_pretrained(tmp_path, local_files_only=True).eval()
    assert sk.masks(again) == sk.masks(model) and torch.equal(again(X), model(X))
    again = Sparse.from_pretrained(tmp_path, local_files_only=True, strict=True)
    assert sk.masks(again).hash() == sk.masks(model).hash()


def test_a_model_that_was_sparsified_later(tmp_path: Path) -> None:
    model = pruned(Plain)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mask_words"):
        Plain.from_pretrained(tmp_path, local_files_only=True, strict=True)  # it does not lose masks in silence
    again = sk.load(Plain(width=6), tmp_path).eval()
    assert sk.masks(again) == sk.masks(model) and torch.equal(again(X), model(X))
    assert again.two.weight is again.one.weight


def test_a_finalized_model_is_a_plain_one(tmp_path: Path) -> None:
    model = pruned(Plain)
    sk.finalize(model)
    expected = model(X)
    model.save_pretrained(tmp_path)
    assert torch.equal(Plain.from_pretrained(tmp_path, local_files_only=True, strict=True).eval()(X), expected)


def test_an_exported_folder_is_the_hubs_own(tmp_path: Path) -> None:
    model = pruned(Plain)
    sk.export(model, tmp_path, "hub", config={"width": 6})
    expected = sk.finalize(copy.deepcopy(model))(X)
    for strict in (False, True):
        again = Plain.from_pretrained(tmp_path, local_files_only=True, strict=strict).eval()
        assert torch.equal(again(X), expected) and again.two.weight is again.one.weight
    again = sk.load(Plain(width=6), tmp_path, masks="infer").eval()
    assert sk.masks(again) == sk.masks(model)
    torch.testing.assert_close(again(X), expected)
    found = sk.inspect(tmp_path)
    assert found.inferred and found.mask_hash
