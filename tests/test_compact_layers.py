# SPDX-License-Identifier: Apache-2.0
"""Surgery and effective weights where care is due: attention, GroupNorm, sharing, formats, dtypes, compiled models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import surgery_nets as nets
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekit as sk

pytest.importorskip("torch_pruning")


class Attends(nn.Module):
    """Self-attention between linear layers, and a hidden layer of its own behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 12, bias=False), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.down(F.relu(self.up(x)))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)))


class GroupNorms(nn.Module):
    """Channels that GroupNorm mixes, and others that nothing mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.GroupNorm(2, 8)
        self.b, self.c = nn.Conv2d(8, 6, 3, bias=False), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.norm(self.a(x))))))


class Shares(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 5, bias=False)
        self.d = nn.Linear(5, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


def halved(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """Every second filter of every layer that can be masked is masked; eval mode."""
    sk.sparsify(model)
    masks = {name: torch.ones(mask.shape, dtype=torch.bool) for name, mask in sk.masks(model).items()}
    for bits in masks.values():
        bits[::2] = False
    sk.set_masks(model, {name: sk.Mask.from_dense(bits) for name, bits in masks.items()})
    return model.eval(), x


def cuts(report: sk.CompactReport) -> dict[str, Any]:
    return {layer.name: layer for layer in report.layers}


@pytest.mark.parametrize(
    ("build", "shape", "masked", "removed", "reasons"),
    [
        (Attends, (2, 5, 6), {"embed", "up", "down"}, {"up": 6}, {"embed": "attention"}),
        (Encoder, (2, 5, 6), {"embed", "head"}, {}, {"embed": "block"}),
        (
            GroupNorms, (2, 3, 8, 8), {"a", "b", "c"}, {"b": 3},
            {"a": "it passes through `norm` (GroupNorm), which is not known to treat channels apart"},
        ),
        (
            Shares, (4, 6), {"a", "c", "d"}, {"c": 3},
            {"a": "it passes through `a`, which shares a parameter with another layer"},
        ),
    ],
)  # fmt: skip
def test_what_mixes_or_shares_stays_and_the_rest_goes(
    build: Any, shape: Any, masked: set[str], removed: dict[str, int], reasons: dict[str, str]
) -> None:
    torch.manual_seed(0)
    model, x = halved(build(), torch.randn(shape))
    assert set(sk.masks(model)) == masked
    for given in (model, sk.finalize(copy.deepcopy(model))):
        small, report = sk.compact(given, x)
        assert {name: cut.outputs.removed for name, cut in cuts(report).items() if cut.outputs.removed} == removed
        for name, reason in reasons.items():
            assert any(reason in text for text in cuts(report)[name].stays), cuts(report)[name].stays
        for inputs in (x, torch.randn(3, *shape[1:])):
            torch.testing.assert_close(small(inputs), model(inputs), rtol=1e-5, atol=1e-5)  # with gradients
            with torch.no_grad():  # and on the fused paths of attention
                torch.testing.assert_close(small(inputs), model(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [Attends, Encoder])
def test_coupling_leaves_out_what_attention_mixes(build: Any) -> None:
    torch.manual_seed(0)
    model = build()
    sk.sparsify(model)
    if build is Encoder:
        with pytest.raises(ValueError, match="coupled_filters: model: expected channels that can be removed, got none"):
            sk.coupled_filters(model, torch.randn(2, 5, 6))
    else:
        groups = sk.coupled_filters(model, torch.randn(2, 5, 6)).groups
        assert [[layer for layer, _ in group.members] for group in groups] == [["up"]]


@pytest.mark.parametrize("build", [Attends, Encoder])
def test_effective_masks_refuse_fused_attention_by_name(build: Any) -> None:
    model, x = halved(build(), torch.randn(2, 5, 6))
    for mode in (True, False):
        with pytest.raises(
            ValueError, match="effective_masks: model: expected functions whose dep.*got .*(attention|encoder)"
        ):
            sk.effective_masks(model.train(mode), x)


def test_effective_masks_of_group_norm_and_depthwise() -> None:
    model, x = halved(GroupNorms(), torch.randn(2, 3, 8, 8))
    found = sk.effective_masks(model, x)
    # GroupNorm hands every channel of its groups on to the next layer; only filters that b leaves unread are idle.
    assert found["a"] == sk.masks(model)["a"] and found["b"] == sk.masks(model)["b"]
    assert found["c"].dense().flatten(1).any(0).tolist() == [False, True] * 3
    model, x = halved(nets.Depthwise(), torch.randn(2, 3, 8, 8))
    found = sk.effective_masks(model, x)
    assert found["stem"].dense().flatten(1).any(1).tolist() == [False, True] * 4
    assert found["pw"].dense().flatten(2).any(2).any(0).tolist() == [False, True] * 4


def coupled_half(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = nets.EXACT[name]
    torch.manual_seed(0)
    model, x = nets.settled(build(), shape)
    sk.sparsify(model)
    weights = {n: layer.weight.detach() for n, layer in sk.masked_layers(model).items()}
    sk.set_masks(model, sk.Projection(sk.coupled_filters(model, x), "uniform")(weights, 0.5).masks)
    return model, x


@pytest.mark.parametrize("name", ["resnet8", "depthwise", "decoder"])
def test_channels_last(name: str) -> None:
    model, x = coupled_half(name)
    expected, plain = sk.compact(model, x, silence_batchnorm=True)
    turned = copy.deepcopy(model).to(memory_format=torch.channels_last)  # pyright: ignore
    x = x.to(memory_format=torch.channels_last)
    assert repr(sk.coupled_filters(turned, x)) == repr(sk.coupled_filters(model, x))
    small, report = sk.compact(turned, x, silence_batchnorm=True)
    assert report.layers == plain.layers and report.flops == plain.flops
    for (key, a), b in zip(small.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    with torch.no_grad():
        torch.testing.assert_close(small(x), expected(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, x = coupled_half("resnet8")
    _, plain = sk.compact(model, x, silence_batchnorm=True)
    model, x = model.to(dtype), x.to(dtype)
    assert len(sk.coupled_filters(model, x).groups) == 6
    small, report = sk.compact(model, x, silence_batchnorm=True)
    assert [layer.outputs for layer in report.layers] == [layer.outputs for layer in plain.layers]
    assert report.parameters == plain.parameters and report.flops == plain.flops
    assert {p.dtype for p in small.parameters()} == {dtype}
    sk.silence_batchnorm_(model, x)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    counts = sk.effective_masks(model, x), sk.effective_masks(model.float(), x.float())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ["resnet8", "transformer"])
def test_where_nothing_can_be_removed(name: str) -> None:
    build, shape = nets.EXACT[name]
    model, x = nets.settled(build(), shape)
    sk.sparsify(model)
    for silence in (False, True):
        small, report = sk.compact(model, x, silence_batchnorm=silence)
        assert report.parameters[0] == report.parameters[1] and report.flops[0] == report.flops[1]
        assert report.silenced == {} and report.difference == 0.0
        assert all(s.asked == s.removable == s.removed == 0 for cut in report.layers for s in (cut.outputs, cut.inputs))
        plain = sk.finalize(copy.deepcopy(model)).state_dict()
        assert all(torch.equal(value, plain[key]) for key, value in small.state_dict().items())
        assert "100.0% stay" in str(report)


# Compiled models


def eager(module: Any) -> Any:
    return torch.compile(module, backend="eager")


def parts(model: nn.Module) -> nn.Module:
    """Blocks that are compiled on their own, one in place."""
    model.layer2 = eager(model.layer2)  # pyright: ignore
    model.layer3.compile(backend="eager")  # pyright: ignore
    return model


@pytest.mark.parametrize("wrap", [eager, parts])
def test_compiled_models_are_cut_as_what_was_compiled(wrap: Any) -> None:
    model, x = coupled_half("resnet8")
    expected, plain = sk.compact(model, x, silence_batchnorm=True)
    pattern, effective = sk.coupled_filters(model, x), sk.effective_masks(model, x)
    silent = copy.deepcopy(model)
    silenced = sk.silence_batchnorm_(silent, x)
    wrapped = wrap(copy.deepcopy(model))
    with torch.no_grad():
        before = wrapped(x)  # compiled, before anyone puts hooks into it
    assert repr(sk.coupled_filters(wrapped, x)) == repr(pattern)
    weights = {name: layer.weight.detach() for name, layer in sk.masked_layers(wrapped).items()}
    assert any("_orig_mod" in name for name in weights)
    masks = sk.Projection(sk.coupled_filters(wrapped, x), "uniform")(weights, 0.5).masks
    assert all(torch.equal(masks[name].words, mask.words) for name, mask in sk.masks(wrapped).items())
    small, report = sk.compact(wrapped, x, silence_batchnorm=True)
    assert report == plain and not any("_orig_mod" in name for name, _ in small.named_modules())
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in small.state_dict().items())
    found = {name.replace("_orig_mod.", ""): mask for name, mask in sk.effective_masks(wrapped, x).items()}
    assert found == dict(effective)
    with torch.no_grad():
        assert torch.equal(wrapped(x), before)
        assert sk.silence_batchnorm_(wrapped, x) == silenced
        torch.testing.assert_close(wrapped(x), silent(x))
        assert not torch.equal(wrapped(x), before)
