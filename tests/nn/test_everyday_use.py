# SPDX-License-Identifier: Apache-2.0
"""What users of pruning libraries trip over: compile, export, EMA copies, dtypes, memory formats, torch.func."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torchvision.models.feature_extraction import create_feature_extractor

import sparsekit as sk


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same")
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, groups=8, padding=1, stride=2, bias=False)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.depth(self.norm(self.conv(x)).relu()).mean((2, 3)))


def remask_(model: nn.Module, seed: int, density: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(m.shape, generator=generator) < density for n, m in sk.masks(model).items()}
    sk.set_masks(model, {n: sk.Mask.from_dense(m) for n, m in masks.items()})


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def model() -> nn.Module:
    net = Cnn()
    sk.sparsify(net)
    remask_(net, 0)
    return net


def plain_output(model: nn.Module, x: Tensor) -> Tensor:
    """What a plain copy with zeros baked in computes."""
    return sk.finalize(copy.deepcopy(model))(x)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compile_and_mask_changes_without_recompilation(model: nn.Module, training: bool) -> None:
    model.train(training)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for seed in range(3):
        remask_(model, seed)
        expected, eager = copy.deepcopy(model), copy.deepcopy(model)
        torch.testing.assert_close(compiled(X), plain_output(expected, X))
        model.zero_grad()
        compiled(X).square().sum().backward()
        eager(X), eager(X).square().sum().backward()
        for name, p in eager.named_parameters():
            torch.testing.assert_close(model.get_parameter(name).grad, p.grad)
        model.load_state_dict(expected.state_dict())
    assert counter.frame_count == 1


def test_compile_sees_a_step_and_a_new_mask(model: nn.Module) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model.eval(), backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(2):
        compiled(X).square().sum().backward()
        optimizer.step()
        remask_(model, seed)
        torch.testing.assert_close(compiled(X), plain_output(model, X))


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++ on the CPU")
def test_inductor(model: nn.Module) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model.eval(), fullgraph=True)
    with torch.no_grad():
        for seed in range(2):
            remask_(model, seed)
            torch.testing.assert_close(compiled(X), plain_output(model, X))


@pytest.mark.parametrize("strict", [False, True])
def test_export(model: nn.Module, strict: bool) -> None:
    model.eval()
    program = torch.export.export(model, (X,), strict=strict)
    torch.testing.assert_close(program.module()(X), plain_output(model, X))
    assert {"conv.mask_words", "depth.mask_words", "fc.mask_words"} <= set(program.state_dict)


def test_export_with_a_dynamic_batch(model: nn.Module) -> None:
    model.eval()
    program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    more = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(more), model(more))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_to_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    model.eval()
    masks, x = sk.masks(model), X.to(dtype)
    model.to(dtype)
    assert model.conv.weight.dtype == dtype and model.conv.mask_words.dtype == torch.int32
    assert sk.masks(model) == masks
    torch.testing.assert_close(model(x), plain_output(model, x))
    assert model(x).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(model: nn.Module, dtype: torch.dtype) -> None:
    model.eval()
    plain = sk.finalize(copy.deepcopy(model))
    with torch.autocast("cpu", dtype=dtype):
        y, z = model(X), plain(X)
    assert y.dtype == z.dtype == dtype
    torch.testing.assert_close(y, z)
    y.float().square().sum().backward()
    z.float().square().sum().backward()
    for name, layer in sk.masked_layers(model).items():
        kept, gradient = layer.mask.dense(), layer.weight.grad
        assert gradient.dtype == torch.float32 and not gradient[~kept].any()
        torch.testing.assert_close(
            gradient, torch.where(kept, plain.get_submodule(name).weight.grad, 0), rtol=2e-2, atol=1e-3
        )


def test_channels_last(model: nn.Module) -> None:
    model.eval()
    y, masks = model(X), sk.masks(model)
    model.to(memory_format=torch.channels_last)
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert sk.masks(model) == masks
    x = X.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), y)
    assert model.conv(x).is_contiguous(memory_format=torch.channels_last)
    model(x).sum().backward()
    assert not model.conv.weight.grad[~masks["conv"].dense()].any()
    assert torch.equal(model.conv.masked_weight(), sk.finalize(model).conv.weight)


def test_averaged_model_follows_weights_and_masks(model: nn.Module) -> None:
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(3):
        model(X).square().sum().backward()
        optimizer.step()
        remask_(model, seed)
        ema.update_parameters(model)
        assert list(sk.masks(ema).values()) == list(sk.masks(model).values())
    update_bn([X], ema)
    y = ema.eval()(X)
    assert y.isfinite().all() and not torch.equal(y, model.eval()(X))
    torch.testing.assert_close(sk.finalize(ema)(X), y)


def test_functional_call_with_other_weights_and_masks(model: nn.Module) -> None:
    model.eval()
    other = copy.deepcopy(model)
    remask_(other, 9)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    tensors = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    before = model(X)
    assert torch.equal(functional_call(model, tensors, (X,)), other(X))
    assert torch.equal(model(X), before)


def test_torch_func_grad(model: nn.Module) -> None:
    model.eval()
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    gradients = torch.func.grad(lambda p: functional_call(model, p, (X,)).square().sum())(parameters)
    model(X).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad)


def test_checkpointed_activations(model: nn.Module) -> None:
    model.eval()
    model(X).square().sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    torch.utils.checkpoint.checkpoint(model, X, use_reentrant=False).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


def test_gradient_accumulation(model: nn.Module) -> None:
    model.eval()
    model(X).sum().backward()
    once = model.conv.weight.grad.clone()
    model(X).sum().backward()
    torch.testing.assert_close(model.conv.weight.grad, 2 * once)


def test_frozen_layers_get_no_gradient(model: nn.Module) -> None:
    model.conv.weight.requires_grad_(False)
    model(X).sum().backward()
    assert model.conv.weight.grad is None and model.fc.weight.grad is not None


def test_fx_feature_extraction(model: nn.Module) -> None:
    model.eval()
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(X), model(X))
    remask_(model, 4)  # the traced module holds the same buffers
    torch.testing.assert_close(traced(X), plain_output(model, X))
    features = create_feature_extractor(model, {"norm": "n", "fc": "y"})(X)
    torch.testing.assert_close(features["y"], model(X))
    torch.testing.assert_close(features["n"], model.norm(model.conv(X)))


def test_conv_batchnorm_fusion_keeps_the_mask(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        model.conv.weight.masked_fill_(~model.conv.mask.dense(), torch.nan)
    fused = fuse_conv_bn_eval(model.conv, model.norm)
    torch.testing.assert_close(fused(X), model.norm(model.conv(X)))


def test_meta_device_forward(model: nn.Module) -> None:
    assert model.eval().to("meta")(X.to("meta")).shape == (2, 4)


def test_isinstance_checks_of_other_tools_hold(model: nn.Module) -> None:
    assert isinstance(model.conv, nn.Conv2d) and isinstance(model.fc, nn.Linear)
    assert [n for n, p in model.named_parameters()] == [n for n, p in Cnn().named_parameters()]
    assert model.fc.in_features == 8 and model.conv.kernel_size == (3, 3)
