# SPDX-License-Identifier: Apache-2.0
"""Channel surgery: what is removed, what stays and why, and that the small model computes what the masked one did."""

from __future__ import annotations

import copy
import importlib
import json
from typing import Any

import pytest
import surgery_nets as nets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsekit as sk

pytest.importorskip("torch_pruning")


def filter_masks(model: nn.Module, seed: int, sparsity: float, pattern: Any = "filter") -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {n: torch.rand(x.weight.shape, generator=generator) for n, x in sk.masked_layers(model).items()}
    sk.set_masks(model, sk.Projection(pattern, "uniform")(scores, sparsity).masks)


def masked(name: str, seed: int = 0, sparsity: float = 0.5, pattern: str = "filter") -> tuple[nn.Module, Tensor]:
    build, shape = nets.EXACT[name]
    torch.manual_seed(seed)
    model, x = nets.settled(build(), shape, seed)
    sk.sparsify(model)
    chosen = sk.coupled_filters(model, x) if pattern == "coupled" else pattern
    filter_masks(model, seed, sparsity, chosen)
    return model, x


def assert_same(model: nn.Module, small: nn.Module, x: Tensor) -> None:
    """Outputs in eval mode, outputs and the sorted statistics of BatchNorm in train mode."""
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)
        one, other = (copy.deepcopy(m).train() for m in (model, small))
        torch.testing.assert_close(other(x), one(x), rtol=1e-4, atol=1e-4)
    for a, b in zip(norms(one), norms(other), strict=True):
        assert all(any(torch.allclose(v, w, rtol=1e-4, atol=1e-5) for w in a) for v in b)


def norms(model: nn.Module) -> list[Tensor]:
    """(mean, variance) of every channel, for every BatchNorm."""
    found = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return [torch.stack([m.running_mean, m.running_var], 1) for m in found]  # pyright: ignore


def totals(report: sk.CompactReport) -> tuple[int, int, int]:
    sides = [layer.outputs for layer in report.layers]
    return sum(s.asked for s in sides), sum(s.removable for s in sides), sum(s.removed for s in sides)


@pytest.mark.parametrize(
    ("pattern", "silence"), [("filter", False), ("filter", True), ("channel", False), ("coupled", True)]
)
@pytest.mark.parametrize("name", nets.EXACT)
def test_the_small_model_computes_the_same(name: str, silence: bool, pattern: str) -> None:
    model, x = masked(name, pattern=pattern)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small, report = sk.compact(model, x, silence_batchnorm=silence)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not sk.masked_layers(small)
    reference = copy.deepcopy(model)
    silenced = sk.silence_batchnorm_(reference, x) if silence else {}
    assert report.silenced == silenced
    assert_same(reference, small, x)
    assert report.parameters[1] == sum(p.numel() for p in small.parameters()) <= report.parameters[0]
    for layer in report.layers:
        module: Any = small.get_submodule(layer.name)
        width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        assert width == layer.outputs.total - layer.outputs.removed


@pytest.mark.parametrize("name", nets.EXACT)
def test_coupled_masks_leave_no_remainder(name: str) -> None:
    model, x = masked(name, pattern="coupled")
    _, report = sk.compact(model, x, silence_batchnorm=True)
    asked, removable, removed = totals(report)
    assert asked == removable == removed > 0
    assert all(layer.outputs.asked == layer.outputs.removed for layer in report.layers)
    assert all(not layer.stays for layer in report.layers)


def test_half_of_every_layer_of_a_residual_network() -> None:
    model, x = masked("resnet8", pattern="coupled")
    small, report = sk.compact(model, x, silence_batchnorm=True)
    widths = {layer.name: layer.outputs.total - layer.outputs.removed for layer in report.layers}
    assert widths == {
        "conv1": 8, "layer1.0.conv1": 8, "layer1.0.conv2": 8, "layer2.0.conv1": 16, "layer2.0.conv2": 16,
        "layer3.0.conv1": 32, "layer3.0.conv2": 32, "fc": 5,
    }  # fmt: skip
    shortcut = small.get_submodule("layer2.0.shortcut")
    assert shortcut.before + shortcut.behind == 8
    assert report.parameters[1] < 0.3 * report.parameters[0] and report.flops[1] < 0.3 * report.flops[0]


def test_plain_masks_of_a_residual_network_leave_what_others_need() -> None:
    model, x = masked("resnet8")
    _, report = sk.compact(model, x, silence_batchnorm=True)
    asked, removable, removed = totals(report)
    assert asked > removable == removed
    stem = report.layers[0]
    assert sum(stem.stays.values()) == stem.outputs.asked - stem.outputs.removed
    assert any("gives it too, unmasked" in reason for reason in stem.stays)


def test_a_loud_batchnorm_keeps_its_channel() -> None:
    model, x = masked("convnet")
    _, loud = sk.compact(model, x)
    _, silent = sk.compact(model, x, silence_batchnorm=True)
    assert loud.layers[0].outputs.removed < silent.layers[0].outputs.removed == 16
    (reason,) = loud.layers[0].stays
    assert reason == "it emits a constant (bias or BatchNorm), which `3` reads"


def test_constants_are_folded_into_a_linear_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[2].weight[2:] = 0
    x = torch.randn(3, 4)
    small, report = sk.compact(model, x)
    assert [layer.outputs.removed for layer in report.layers] == [3, 4, 0]
    assert_same(model, small, x)


def test_a_padded_convolution_takes_no_constant() -> None:
    torch.manual_seed(0)
    for padding, removed in ((0, 2), (1, 0)):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 3, padding=padding))
        with torch.no_grad():
            model[0].weight[1:3] = 0
        x = torch.randn(2, 1, 8, 8)
        small, report = sk.compact(model, x)
        assert report.layers[0].outputs.removed == removed
        assert not padding or list(report.layers[0].stays) == [
            "it emits a constant (bias or BatchNorm), which `2` reads"
        ]
        assert_same(model, small, x)


def test_a_channel_that_is_silent_in_eval_mode_alone_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    norm: Any = model[1]
    with torch.no_grad():
        model[0].weight[1:3] = 0
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.0]))
        norm.running_mean.fill_(5.0)
    small, report = sk.compact(model.eval(), torch.randn(2, 1, 8, 8))
    assert report.layers[0].outputs.removed == 1  # that with the negative bias, which is silent in both modes
    assert report.layers[0].stays == {"it emits a constant (bias or BatchNorm), which `3` reads": 1}
    assert_same(model, small, torch.randn(2, 1, 8, 8))


def test_filters_that_nobody_reads_go() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))
    with torch.no_grad():
        model[2].weight[:, 5:] = 0
    small, report = sk.compact(model, torch.randn(2, 4))
    assert report.layers[0].outputs == type(report.layers[0].outputs)(8, 0, 3, 3)
    assert_same(model, small, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("build", "shape", "layer", "reason"),
    [
        (
            nets.Softmax,
            (2, 4),
            "a",
            "it passes through the operation Softmax, which is not known to treat channels apart",
        ),
        (nets.MeanOverChannels, (2, 4), "a", "the outputs differ by"),
        (nets.HardSizes, (2, 3, 8, 8), "a", "the forward pass fails without it"),
        (nets.Twice, (2, 6), "a", "it passes through `a`, which is called more than once"),
        (nets.InputJoined, (2, 3, 8, 8), "a", "it is joined with an input of the network"),
        (nets.TransformerBlock, (2, 5, 6), "embed", "it passes through `norm` (LayerNorm), which is not known"),
        (nets.Softmax, (2, 4), "b", "it is an output of the network"),
        (nets.Mixer, (2, 5, 6), "embed", "it is lost at `"),
    ],
)
def test_what_cannot_be_removed_stays_with_its_reason(build: Any, shape: Any, layer: str, reason: str) -> None:
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        model.get_submodule(layer).weight[1:] = 0
    if build is nets.MeanOverChannels:
        model.free.weight.data[:3] = 0  # of another group, which may go
    x = torch.randn(shape)
    small, report = sk.compact(model, x)
    found = {cut.name: cut for cut in report.layers}
    assert any(reason in text for text in found[layer].stays), found[layer]
    if build is nets.MeanOverChannels:
        assert found["free"].outputs.removed == 3 and found[layer].outputs.removed == 0
    assert_same(model, small, x)


def test_what_the_groups_of_a_convolution_do_not_read_is_counted() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * 36, 2)
    )
    with torch.no_grad():
        model[2].weight[:3] = 0
        model[2].weight[:, 1] = 0
    small, report = sk.compact(model, torch.randn(2, 3, 8, 8))
    # All three inputs of the first group, and one of the second; only the places that both leave out can go.
    assert report.layers[1].inputs == type(report.layers[1].inputs)(6, 4, 2, 2)
    assert report.layers[0].outputs.removed == 2 and small[2].weight.shape == (6, 2, 3, 3)


def test_a_dead_layer_keeps_one_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))
    nn.init.zeros_(model[0].weight)
    x = torch.randn(2, 4)
    small, report = sk.compact(model, x)
    assert small[0].out_features == small[2].in_features == 1  # pyright: ignore
    assert report.layers[0].stays["it is the last one of `0`, which needs one"] == 1
    assert_same(model, small, x)


def test_modes_frozen_parameters_and_gradients_survive() -> None:
    model, x = masked("convnet", pattern="coupled")
    model.train()
    model[0].weight.requires_grad_(False)  # pyright: ignore
    model[4].eval()
    small, _ = sk.compact(model, x, silence_batchnorm=True)
    assert small.training and not small[4].training and not small[0].weight.requires_grad  # pyright: ignore
    assert small[3].weight.requires_grad  # pyright: ignore
    small(x).sum().backward()
    assert small[3].weight.grad.shape == small[3].weight.shape  # pyright: ignore


def test_a_finalized_model_is_cut_alike() -> None:
    model, x = masked("convnet", pattern="coupled")
    small, report = sk.compact(model, x, silence_batchnorm=True)
    again, second = sk.compact(sk.finalize(copy.deepcopy(model)), x, silence_batchnorm=True)
    assert report == second
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_report_in_words_and_numbers() -> None:
    model, x = masked("resnet8")
    _, report = sk.compact(model, x)
    assert json.loads(json.dumps(report.to_dict()))["parameters"] == list(report.parameters)
    text = str(report)
    assert "layer3.0.conv2" in text and f"{report.parameters[1]:,}" in text and "FLOPs" in text
    assert report.table().row_count == len(report.layers)
    latency = report.latency(repeats=1, warmup=0)
    assert latency.before > 0 and latency.after > 0 and latency.repeats == 1
    assert report.flops[1] < report.flops[0] and report.difference < 1e-6


def test_silence(tmp_path: Any) -> None:
    model, x = masked("convnet")
    before = copy.deepcopy(model)
    assert sk.silence_batchnorm_(model, x) == {"1": 16, "4": 32, "7": 64}
    dead = ~sk.masks(model)["0"].dense().flatten(1).any(1)
    for parameter, old in ((model[1].weight, before[1].weight), (model[1].bias, before[1].bias)):  # pyright: ignore
        assert bool((parameter[dead] == 0).all()) and torch.equal(parameter[~dead], old[~dead])
    assert sk.silence_batchnorm_(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2)) == {}


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(["convnet", "concat", "depthwise", "transformer", "mlp"]),
    seed=st.integers(0, 2**16),
    sparsity=st.floats(0.05, 0.95),
    pattern=st.sampled_from(["filter", "channel", "coupled", "unstructured"]),
    silence=st.booleans(),
)
def test_random_masks(name: str, seed: int, sparsity: float, pattern: str, silence: bool) -> None:
    model, x = masked(name, seed, round(sparsity, 3), pattern)
    small, report = sk.compact(model, x, silence_batchnorm=silence)
    if silence:
        sk.silence_batchnorm_(model, x)
    assert_same(model, small, x)
    assert all(s.removed <= s.removable for layer in report.layers for s in (layer.outputs, layer.inputs))


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ((3, torch.ones(2, 4)), TypeError, "compact: model: expected a torch.nn.Module, got int"),
        (
            (nn.Linear(4, 2), 3),
            TypeError,
            "compact: example_inputs: expected a tensor or a sequence of tensors, got int",
        ),
        ((nn.Linear(4, 2), torch.ones(1, 4)), ValueError, "compact: example_inputs: expected inputs with 2 or more"),
        (
            (nn.Linear(4, 2), ()),
            ValueError,
            "compact: example_inputs: expected inputs with 2 or more entries .* got none",
        ),
        (
            (nn.Linear(4, 2), torch.ones(2, 3)),
            ValueError,
            "compact: example_inputs: expected inputs that the model takes",
        ),
    ],
)
def test_bad_arguments(arguments: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        sk.compact(*arguments)


def test_a_network_that_cannot_be_traced() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).argmax(1)

    with pytest.raises(
        ValueError, match="compact: model: expected a network that Torch-Pruning can trace, got Detached"
    ):
        sk.compact(Detached(), torch.ones(2, 4))
    with pytest.raises(TypeError, match="compact: silence_batchnorm: expected a bool, got int"):
        sk.compact(nn.Linear(4, 2), torch.ones(2, 4), silence_batchnorm=1)  # pyright: ignore


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name == "torch_pruning":
            raise ModuleNotFoundError("no", name=name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install 'torch-sparsekit\[compact\]'"):
        sk.compact(nn.Linear(4, 2), torch.ones(2, 4))
