# SPDX-License-Identifier: Apache-2.0
"""effective_masks: by hand, against a search through the graph of units and pixels, and by pruning what is not effective."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsekit as sk
from sparsekit.structure import dead_units


def sparse(model: nn.Module, density: float, seed: int) -> nn.Module:
    sk.sparsify(model)
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: torch.rand(m.shape, generator=generator) < density for n, m in sk.masks(model).items()}
    sk.set_masks(model, {name: sk.Mask.from_dense(bits) for name, bits in drawn.items()})
    return model


def chain(density: float, seed: int) -> nn.Module:
    layers = [nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)]
    return sparse(nn.Sequential(*layers), density, seed)


def test_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    sk.sparsify(model)
    # Unit 0 of the first layer is never read; unit 1 of it sees no input; unit 1 of the second reads only that one.
    kept = {
        "0": [[1, 1], [0, 0], [0, 1]],
        "2": [[0, 0, 1], [0, 1, 0], [0, 1, 1]],
        "4": [[1, 1, 0], [0, 1, 0]],
    }
    effective = {
        "0": [[0, 0], [0, 0], [0, 1]],
        "2": [[0, 0, 1], [0, 0, 0], [0, 0, 0]],
        "4": [[1, 0, 0], [0, 0, 0]],
    }
    sk.set_masks(model, {name: sk.Mask.from_dense(torch.tensor(rows) > 0) for name, rows in kept.items()})
    found = sk.effective_masks(model, torch.zeros(1, 2))
    assert {name: mask.dense().int().tolist() for name, mask in found.items()} == effective
    assert dead_units(found["2"].dense()) == (2, 2)


def searched(masks: sk.Masks) -> dict[str, Tensor]:
    """Effective weights of a chain of linear layers, by marking units from the front and from the back."""
    kept = [mask.dense() for mask in masks.values()]
    front = [torch.ones(kept[0].shape[1], dtype=torch.bool)]
    for bits in kept:
        front.append((bits & front[-1]).any(1))
    back = [torch.ones(len(kept[-1]), dtype=torch.bool)]
    for bits in reversed(kept):
        back.insert(0, (bits & back[0][:, None]).any(0))
    return {n: b & front[i] & back[i + 1][:, None] for i, (n, b) in enumerate(zip(masks, kept, strict=True))}


@pytest.mark.parametrize("density, seed", [*itertools.product((0.1, 0.2, 0.4, 1.0), range(5))])
def test_chains_against_a_search(density: float, seed: int) -> None:
    model = chain(density, seed)
    found, expected = sk.effective_masks(model, torch.randn(2, 5)), searched(sk.masks(model))
    assert all(torch.equal(found[name].dense(), bits) for name, bits in expected.items())


class Joined(nn.Module):
    """Groups, strides, padding, pooling, a shortcut, joined channels, and layers called twice; no shifts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.twice = nn.Conv2d(4, 4, 1, bias=False)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.fc = nn.Linear(6, 3, bias=False)
        self.linear = False

    def act(self, x: Tensor) -> Tensor:
        return x if self.linear else F.relu(self.norm(x))

    def pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.linear else F.max_pool2d(x, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.first(x)))
        x = x + self.act(self.second(x))
        x = self.act(self.twice(self.act(self.twice(x))))
        top = self.up(x).mean((2, 3))
        small = F.adaptive_avg_pool2d(x, 1) if self.linear else F.adaptive_max_pool2d(x, 1)
        return self.fc(torch.cat([small.flatten(1), top], 1))


def linearised(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Weights on whose product with something the outputs depend, were the network linear with positive weights."""
    network = sk.finalize(copy.deepcopy(model)).double()
    network.linear = True  # pyright: ignore[reportArgumentType]
    weights = {}
    for name, mask in sk.masks(model).items():
        drawn = torch.rand(mask.shape, dtype=torch.float64) + 0.5
        weights[f"{name}.weight"] = (drawn * mask.dense()).requires_grad_()
    output = torch.func.functional_call(network, weights, (torch.ones_like(x, dtype=torch.float64),))
    output.sum().backward()
    return {n.removesuffix(".weight"): (w.grad * w != 0).detach() for n, w in weights.items() if w.grad is not None}


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("density, seed", [*itertools.product((0.08, 0.2, 0.5), range(3))])
def test_networks_against_their_linear_form(density: float, seed: int, size: int) -> None:
    model, x = sparse(Joined(), density, seed), torch.zeros(2, 2, size, size)
    found, expected = sk.effective_masks(model, x), linearised(model, x)
    assert {name: mask.dense().tolist() for name, mask in found.items()} == {
        name: bits.tolist() for name, bits in expected.items()
    }


@pytest.mark.parametrize("seed", range(4))
def test_what_is_not_effective_can_be_pruned(seed: int) -> None:
    model, x = sparse(Joined(), 0.15, seed).eval(), torch.randn(8, 2, 6, 6)
    with torch.no_grad():
        before = model(x)
        found = sk.effective_masks(model, x)
        assert 0 < found.count() < sk.masks(model).count()
        sk.set_masks(model, found)
        assert torch.equal(model(x), before)
    assert sk.effective_masks(model, x) == found


def test_only_the_centre_of_a_filter_sees_a_single_pixel() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten())
    sk.sparsify(model)
    kept = [sk.effective_masks(model, torch.ones(1, 1, size, size)).count() for size in (1, 2)]
    assert kept == [1, 9]


def test_values_of_weights_do_not_matter_and_the_model_stays() -> None:
    model = chain(0.4, 1).train()
    expected = sk.effective_masks(model, torch.ones(1, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0 if parameter.ndim == 1 else -1e30)
        layers = [*sk.masked_layers(model).values()]
        layers[0].weight[0].fill_(torch.nan)
        layers[1].weight.zero_()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert sk.effective_masks(model, torch.full((1, 5), torch.nan)) == expected
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) or value.isnan().any() for name, value in model.state_dict().items())


def test_a_network_that_is_cut_through_has_no_effective_weight() -> None:
    model = chain(1.0, 0)
    masks = sk.masks(model)
    sk.set_masks(model, {"4": ~masks["4"]})
    assert sk.effective_masks(model, torch.ones(1, 5)).count() == 0


def test_depth_neither_overflows_nor_vanishes() -> None:
    # Some 6 inputs for each unit: the number of paths is far beyond the range of float64.
    model = sparse(nn.Sequential(*(nn.Linear(32, 32) for _ in range(420))), 0.2, 0)
    found, expected = sk.effective_masks(model, torch.ones(1, 32)), searched(sk.masks(model))
    assert all(torch.equal(found[name].dense(), bits) for name, bits in expected.items())
    assert 0 < found.count() < sk.masks(model).count()


class Attending(nn.Module):
    """Norms over features, products of values, embeddings, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.norm, self.group = nn.LayerNorm(8), nn.GroupNorm(2, 8)
        self.qkv, self.out, self.gate, self.unused = (nn.Linear(8, n) for n in (24, 8, 8, 8))

    def forward(self, tokens: Tensor, shift: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.embed(tokens)) + shift
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        x = self.group(x.transpose(1, 2)).transpose(1, 2) * torch.sigmoid(self.gate(x))
        return {"logits": F.softmax(x @ x.transpose(1, 2) / 8**0.5, dim=-1)}


def test_products_count_as_dependent_on_both() -> None:
    model = Attending()
    sk.sparsify(model)
    tokens, shift = torch.tensor([[1, 2, 3]]), torch.zeros(1, 3, 8)
    found = sk.effective_masks(model, {"tokens": tokens, "shift": shift})
    counts = {name: mask.count() for name, mask in found.items()}
    assert counts == {"qkv": 192, "out": 64, "gate": 64, "unused": 0}
    assert sk.effective_masks(model, (tokens, shift)) == found


class Doing(nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.fc, self.what = nn.Linear(4, 4), what

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self.fc(x))


@pytest.mark.parametrize(
    "what, text",
    [
        (torch.fft.fft, "expected functions whose dependences are known, got fft_fft"),
        (lambda x: x.long().float(), "expected functions whose dependences are known, got long"),
        (lambda x: x.to(torch.int32).float(), "expected functions whose dependences are known, got to"),
        (lambda x: torch.where(x > 0, x, 1.0), "expected functions whose dependences are known, got gt"),
        (lambda x: F.softmax(x), "expected a softmax along a named dim, got one without"),
        (lambda x: F.max_pool1d(x[None], 2, dilation=2), "expected pooling without dilation and indices"),
        (lambda x: x @ x[0], "expected products of matrices, got one of a vector"),
        (lambda x: F.interpolate(x[None, None], scale_factor=2, mode="bicubic"), "without negative weights"),
    ],
)
def test_functions_of_unknown_dependence_are_refused(what: Any, text: str) -> None:
    model = Doing(what)
    sk.sparsify(model)
    with pytest.raises(ValueError, match=f"effective_masks: model: .*{text}"):
        sk.effective_masks(model, torch.ones(3, 4))


@pytest.mark.parametrize(
    "what",
    [
        lambda x: x - x,
        lambda x: -x,
        lambda x: x * 0.0 - 1.0,
        lambda x: x.detach(),
        lambda x: torch.maximum(x, -x).clamp_(max=0),
        lambda x: F.instance_norm(x[None]),
        lambda x: F.glu(torch.cat([x, x], -1)),
        lambda x: x.half().float() + torch.ones(4),
        lambda x: x.type(torch.float32),
        lambda x: F.dropout(F.gelu(x), training=True),
        lambda x: torch.stack([x, x])[0].unsqueeze(0).expand(2, 3, 4).sum(0),
        lambda x: F.interpolate(x[None, None], scale_factor=2),
    ],
)
def test_functions_keep_their_dependences(what: Any) -> None:
    model = Doing(what)
    sk.sparsify(model)
    mask = sk.Mask.from_dense(torch.eye(4) > 0)
    sk.set_masks(model, {"fc": mask})
    assert sk.effective_masks(model, torch.ones(3, 4))["fc"] == mask
    assert sk.effective_masks(Doing2(model), torch.ones(3, 4)).count() == 0


class Doing2(nn.Module):
    """Nothing of the input comes through, so no constant may take its place."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.ones_like(x))


def test_tied_and_skipped_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    sk.sparsify(model, skip=["4"])
    # Unit 0 reads input 3, which only the network's input has.
    sk.set_masks(model, {"0": sk.Mask.from_dense(torch.tensor([[0, 0, 0, 1], *[[0] * 4] * 3]) > 0)})
    assert sk.effective_masks(model, torch.ones(1, 4)).count() == 0
    sk.set_masks(model, {"0": sk.Mask.from_dense(torch.tensor([[1, 0, 0, 1], *[[0] * 4] * 3]) > 0)})
    assert sk.effective_masks(model, torch.ones(1, 4))["0"].dense()[0].tolist() == [True, False, False, True]
