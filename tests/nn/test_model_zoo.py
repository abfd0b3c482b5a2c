# SPDX-License-Identifier: Apache-2.0
"""On real architectures: the masked model is the finalized model, and what is under a zero bit never shows."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from random_masks import poison_, remask_
from torch import Tensor, nn
from torchvision import models
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vgg import VGG, make_layers

import sparsekit as sk


def vgg() -> nn.Module:
    model = VGG(make_layers([8, "M", 12, 12, "M", 16, "M"], batch_norm=True), num_classes=10, init_weights=False)
    model.avgpool, model.classifier[0] = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 32)
    model.features.append(nn.Conv2d(16, 512, 1))
    model.classifier[3], model.classifier[6] = nn.Linear(32, 32), nn.Linear(32, 10)
    return model


def vision_transformer() -> nn.Module:
    vit = models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=10)
    nn.init.normal_(vit.heads.head.weight)  # torchvision starts the head at zero
    return vit


def swin() -> nn.Module:
    return SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], stochastic_depth_prob=0.0, num_classes=10)


class Attention(nn.Module):
    """torch's own attention and encoder, whose fast paths read weights, between layers that can be masked."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(96, 16), nn.Linear(16, 10)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(self.inp(x.transpose(1, 2).flatten(2)))
        return self.out(self.attention(h, h, h)[0].mean(1))


def timm_model(name: str, **options) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10, **options)


RESNEXT = {"cardinality": 4, "base_width": 16, "zero_init_last": False}
BEIT = {"embed_dim": 24, "depth": 1, "num_heads": 2}
# model, layers that must be masked at least, names skipped because of a read
MODELS: dict[str, tuple[Callable[[], nn.Module], int, set[str]]] = {
    "resnet18": (lambda: models.resnet18(num_classes=10), 21, set()),
    "vgg": (vgg, 8, set()),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=10, width_mult=0.5), 54, set()),
    "vision_transformer": (vision_transformer, 6, {"encoder.layers.encoder_layer_0.self_attention.out_proj"}),
    "swin": (swin, 7, {"features.1.0.attn.qkv", "features.1.0.attn.proj"}),
    "torch attention": (Attention, 2, {"encoder.layers.0.linear1", "encoder.layers.1.linear2", "attention.out_proj"}),
    "timm resnext": (
        timm_model("resnext50_32x4d", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), **RESNEXT),
        18,
        set(),
    ),
    "timm mobilenetv2": (timm_model("mobilenetv2_035"), 53, set()),
    "timm convnext": (timm_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 12, 16, 24)), 17, set()),
    "timm vit": (timm_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2), 10, set()),
    "timm beit": (timm_model("beit_base_patch16_224", img_size=32, **BEIT), 4, {"blocks.0.attn.qkv"}),
}
POISONS = [1e30, torch.inf, torch.nan]


@pytest.fixture(scope="module", params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def sparse(name: str) -> nn.Module:
    """A sparsified model with random masks; built once, copied by the tests."""
    torch.manual_seed(0)
    build, least, bypassed = MODELS[name]
    model = build()
    report = sk.sparsify(model)
    assert len(report.masked) >= least
    assert bypassed <= set(report.skipped), report
    remask_(model, 1, kept=0.6)
    return model


def run(model: nn.Module, training: bool) -> Tensor:
    """Output on a fixed batch; BatchNorm statistics and dropout are the same each time."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    states = [copy.deepcopy(norm.state_dict()) for norm in norms]
    torch.manual_seed(3)
    y = model.train(training)(torch.randn(2, 3, 32, 32))
    for norm, state in zip(norms, states, strict=True):
        norm.running_mean, norm.running_var = state["running_mean"], state["running_var"]
    return y


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_masked_is_finalized_whatever_lies_under_the_mask(sparse: nn.Module, training: bool) -> None:
    model = copy.deepcopy(sparse)
    final = sk.finalize(copy.deepcopy(model))
    assert not any(isinstance(m, sk.MaskedLayer) for m in final.modules())
    with torch.no_grad():
        y = run(model, training)
        torch.testing.assert_close(y, run(final, training), rtol=1e-4, atol=1e-5)
        assert y.isfinite().all() and y.ne(0).any()
        for value in POISONS:
            poison_(model, value)
            assert torch.equal(run(model, training), y)
    torch.testing.assert_close(run(sk.finalize(model), training), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_of_pruned_entries(sparse: nn.Module, training: bool) -> None:
    model = copy.deepcopy(sparse)
    poison_(model, torch.nan)
    run(model, training).square().sum().backward()
    layers = sk.masked_layers(model)
    for layer in layers.values():
        gradient, kept = layer.weight.grad, layer.mask.dense()
        assert gradient.isfinite().all() and not gradient[~kept].any()
    masked = {n: layer.weight.grad.clone() for n, layer in layers.items()}
    model.zero_grad()
    with sk.dense_gradient(model):
        run(model, training).square().sum().backward()
    reached = 0
    for n, layer in layers.items():
        gradient, kept = layer.weight.grad, layer.mask.dense()
        assert gradient.isfinite().all()
        torch.testing.assert_close(torch.where(kept, gradient, 0), masked[n])
        reached += int(gradient[~kept].ne(0).any())
    assert reached >= len(layers) * 0.7


def test_zero_mask_differs(sparse: nn.Module) -> None:
    # The sparse model is no dense model in disguise: without its masks it computes something else.
    model = copy.deepcopy(sparse)
    with torch.no_grad():
        y = run(model, False)
        sk.set_masks(model, {n: sk.Mask.full(m.shape) for n, m in sk.masks(model).items()})
        assert not torch.allclose(run(model, False), y)
