# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from sparsekit.benchmarks.networks import NETWORKS, build_network
from sparsekit.benchmarks.problems import NETWORK_SHAPES, RESNET18_SHAPES

SIZES = {"classes": 10, "channels": 3, "image_size": 32}


def weights(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in network.named_parameters() if value.ndim > 1}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_maps_images_to_logits_and_trains(name: str):
    network = build_network(name, classes=7, channels=1, image_size=32, seed=0)
    logits = network(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 7)
    if logits.isfinite().all() and sum(p.numel() for p in network.parameters()) < 2e6:
        logits.logsumexp(1).sum().backward()
        assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet20", "resnet18"])
def test_digits_fit(name: str):
    network = build_network(name, classes=10, channels=1, image_size=8, seed=0)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_mlp_on_digits_is_64_256_128_10():
    network = build_network("mlp", classes=10, channels=1, image_size=8, seed=0)
    assert [tuple(w.shape) for w in weights(network).values()] == [(256, 64), (128, 256), (10, 128)]


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("resnet20", 269_722),
        ("resnet20b", 272_474),
        ("resnet56", 853_018),
        ("wrn20", 1_084_586),
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("vgg16", 14_724_042),
    ],
)
def test_parameter_counts_on_cifar10(name: str, parameters: int):
    assert sum(p.numel() for p in build_network(name, **SIZES, seed=0).parameters()) == parameters


def test_resnet20b_has_the_270474_prunable_parameters_of_spode():
    """The count leaves the first convolution out and includes the shortcut convolutions and the classifier's bias."""
    network = build_network("resnet20b", **SIZES, seed=0)
    prunable = {name: w.numel() for name, w in weights(network).items() if name != "conv1.weight"}
    assert sum(prunable.values()) == 270_464
    assert sum(prunable.values()) + network.get_parameter("fc.bias").numel() == 270_474
    assert prunable["layer2.0.shortcut.0.weight"] == 512 and prunable["layer3.0.shortcut.0.weight"] == 2048


def test_option_a_has_no_parameters_in_shortcuts():
    assert not [name for name, _ in build_network("resnet20", **SIZES, seed=0).named_parameters() if "shortcut" in name]


def test_option_a_subsamples_and_pads_with_zeros():
    network = build_network("resnet20", **SIZES, seed=0)
    x = torch.randn(2, 16, 8, 8)
    y = network.get_submodule("layer2.0.shortcut")(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


def test_layer_names_are_the_usual_ones():
    names = list(weights(build_network("resnet18", **SIZES, seed=0)))
    assert names[0] == "conv1.weight" and names[1] == "layer1.0.conv1.weight" and names[-1] == "fc.weight"


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_problem_shapes_are_those_of_the_networks(name: str):
    assert [tuple(w.shape) for w in weights(build_network(name, **SIZES, seed=0)).values()] == list(
        NETWORK_SHAPES[name]
    )


def test_the_seed_decides_and_the_caller_does_not_notice():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (build_network("mlp", **SIZES, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


def test_networks_of_timm():
    pytest.importorskip("timm")
    network = build_network("timm:resnet18", **{**SIZES, "channels": 1}, seed=0)
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    network = build_network("timm:vit_tiny_patch16_224", **SIZES, seed=0)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_networks_of_torchvision():
    pytest.importorskip("torchvision")
    network = build_network("torchvision:resnet18", classes=1000, channels=3, image_size=224, seed=0)
    assert [tuple(w.shape) for w in weights(network).values()] == list(RESNET18_SHAPES)


def test_functions_of_the_user_get_the_sizes_they_name(monkeypatch):
    module = ModuleType("my_networks")
    monkeypatch.setitem(sys.modules, "my_networks", module)
    monkeypatch.setattr(module, "small", lambda classes: nn.Linear(4, classes), raising=False)
    monkeypatch.setattr(module, "all_sizes", lambda **sizes: nn.Linear(sizes["image_size"], 1), raising=False)
    monkeypatch.setattr(module, "wrong", lambda: 3, raising=False)
    assert build_network("my_networks:small", **SIZES, seed=0)(torch.randn(1, 4)).shape == (1, 10)
    assert build_network("my_networks:all_sizes", **SIZES, seed=0)(torch.randn(1, 32)).shape == (1, 1)
    with pytest.raises(TypeError, match="expected my_networks:wrong to return a Module, got int"):
        build_network("my_networks:wrong", **SIZES, seed=0)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("resnet21", {}, "expected one of mlp, convnet, resnet8, .* or module:function, got 'resnet21'"),
        ("timm:resnet19", {}, r"expected a network of timm \(.*resnet18.*\), got 'timm:resnet19'"),
        ("timm:hf-hub:x/y", {}, "expected a network of timm"),
        ("timm:resnet18.nowhere", {}, "expected a tag known to timm"),
        ("torchvision:resnet19", {}, "expected a network of torchvision"),
        ("torchvision:resnet18", {"channels": 1}, "channels: expected 3 for torchvision:resnet18, got 1"),
        ("no_such_module:f", {}, "expected an importable module:function, got 'no_such_module:f'"),
        ("math:no_such_function", {}, "expected an importable module:function"),
        ("mlp", {"classes": 0}, "classes: expected an integer >= 1, got 0"),
        ("vgg16", {"image_size": 8}, "image_size: expected at least 32 for vgg16, got 8"),
        ("convnet", {"image_size": 2}, "image_size: expected at least 4 for convnet, got 2"),
    ],
)
def test_errors_say_what_is_expected(name, changes, message):
    for package in ("timm", "torchvision"):
        if name.startswith(package):
            pytest.importorskip(package)
    with pytest.raises(ValueError, match=message):
        build_network(name, **{**SIZES, **changes}, seed=0)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"expected the package timm \(pip install timm\)"):
        build_network("timm:resnet18", **SIZES, seed=0)
