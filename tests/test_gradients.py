# SPDX-License-Identifier: Apache-2.0
"""Dense gradients and gradients at a given z, against autograd on a model written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sparsekit as sk
from sparsekit.gradients import curvature_at

X = torch.randn(3, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 3, dtype=torch.float64), nn.Linear(3, 4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).tanh().mean((2, 3)))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


@pytest.fixture
def model() -> nn.Module:
    net = Net()
    sk.sparsify(net)
    sk.set_masks(net, {n: sk.Mask.from_dense(torch.rand(m.shape) < 0.5) for n, m in sk.masks(net).items()})
    return net


def by_hand(model: nn.Module, z: dict[str, Tensor]) -> Tensor:
    return F.linear(F.conv2d(X, z["conv"], model.conv.bias).tanh().mean((2, 3)), z["fc"], model.fc.bias).square().mean()


def masked(model: nn.Module) -> dict[str, Tensor]:
    return {n: layer.masked_weight().requires_grad_() for n, layer in sk.masked_layers(model).items()}


def test_dense_gradients(model: nn.Module) -> None:
    z = masked(model)
    value = by_hand(model, z)
    expected = torch.autograd.grad(value, list(z.values()))
    got, dz = sk.dense_gradients(model, loss, X)
    assert list(dz) == ["conv", "fc"] and got.shape == () and not got.requires_grad
    torch.testing.assert_close(got, value.detach())
    for name, gradient in zip(z, expected, strict=True):
        torch.testing.assert_close(dz[name], gradient)
        assert not dz[name].requires_grad and dz[name][~sk.masks(model)[name].dense()].any()


def test_dense_gradients_ignore_what_lies_under_the_mask(model: nn.Module) -> None:
    _, before = sk.dense_gradients(model, loss, X)
    with torch.no_grad():
        for layer in sk.masked_layers(model).values():
            layer.weight.masked_fill_(~layer.mask.dense(), torch.nan)
    _, after = sk.dense_gradients(model, loss, X)
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_nothing_of_the_users_is_touched(model: nn.Module) -> None:
    model.eval()
    model.fc.weight.grad = torch.full_like(model.fc.weight, 3)
    with torch.no_grad():  # works within no_grad too
        sk.dense_gradients(model, loss, X)
        sk.gradients_at(model, loss, X, {"conv": model.conv.masked_weight()})
    assert model.fc.weight.grad.eq(3).all() and model.conv.weight.grad is None and model.conv.bias.grad is None
    assert not model.training and not model.fc.dense_grad and model.fc._effective is None


def test_gradients_at_the_masked_weight_are_the_dense_gradients(model: nn.Module) -> None:
    value, dz = sk.dense_gradients(model, loss, X)
    same, plain = sk.gradients_at(
        model, loss, X, {n: layer.masked_weight() for n, layer in sk.masked_layers(model).items()}
    )
    torch.testing.assert_close(same, value)
    for name in dz:
        torch.testing.assert_close(plain[name], dz[name])


def test_gradients_at_another_point(model: nn.Module) -> None:
    z = {n: torch.randn_like(layer.weight).requires_grad_() for n, layer in sk.masked_layers(model).items()}
    expected = torch.autograd.grad(by_hand(model, z), list(z.values()))
    value, dz = sk.gradients_at(model, loss, X, {n: v.detach() for n, v in z.items()})
    torch.testing.assert_close(value, by_hand(model, z).detach())
    for name, gradient in zip(z, expected, strict=True):
        torch.testing.assert_close(dz[name], gradient)
        assert not dz[name].requires_grad


def test_layers_left_out_keep_their_masked_weight(model: nn.Module) -> None:
    z = masked(model)
    value = by_hand(model, z)
    (expected,) = torch.autograd.grad(value, z["fc"])
    got, dz = sk.gradients_at(model, loss, X, {"fc": z["fc"].detach()})
    assert list(dz) == ["fc"]
    torch.testing.assert_close(got, value.detach())
    torch.testing.assert_close(dz["fc"], expected)


@pytest.mark.parametrize("names", [("conv", "fc"), ("conv",), ("fc",)])
def test_hessian_vector_product(model: nn.Module, names: tuple[str, ...]) -> None:
    z = masked(model)
    chosen = {n: z[n] for n in names}
    vectors = [torch.randn_like(v) for v in chosen.values()]
    first = torch.autograd.grad(by_hand(model, z), list(chosen.values()), create_graph=True)
    expected = torch.autograd.grad(
        sum((g * v).sum() for g, v in zip(first, vectors, strict=True)), list(chosen.values())
    )
    value, dz = sk.gradients_at(model, loss, X, chosen, create_graph=True)
    assert value.requires_grad and all(g.requires_grad for g in dz.values())
    got = torch.autograd.grad(
        sum((g * v).sum() for g, v in zip(dz.values(), vectors, strict=True)), list(chosen.values())
    )
    torch.testing.assert_close(got, expected)


def vectors_like(z: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in z.items()}


def test_curvature_is_the_hessian_times_any_vector(model: nn.Module) -> None:
    z = masked(model)
    vector = vectors_like(z)
    first = torch.autograd.grad(by_hand(model, z), list(z.values()), create_graph=True)
    expected = torch.autograd.grad(sum((g * vector[n]).sum() for n, g in zip(z, first, strict=True)), list(z.values()))
    given = {n: v.detach() for n, v in z.items()}
    copies = {n: v.clone() for n, v in given.items()}
    with torch.no_grad():
        found = curvature_at(model, loss, X, given, vector)
    for (name, own), exact in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(own, exact)
        assert not own.requires_grad and own[~sk.masks(model)[name].dense()].any()
    assert all(torch.equal(v, copies[n]) and not v.requires_grad for n, v in given.items())
    assert all(p.grad is None for p in model.parameters())


def test_what_has_no_curvature_gets_zeros(model: nn.Module) -> None:
    given = {n: layer.masked_weight() for n, layer in sk.masked_layers(model).items()}
    for straight in (lambda m, b: m.conv(b).mean(), lambda m, b: m.fc(b.mean((2, 3)).repeat(1, 2)[:, :3]).sum()):
        flat = curvature_at(model, straight, X, given, vectors_like(given))
        assert all(found.shape == given[n].shape and not found.any() for n, found in flat.items())
    half = curvature_at(model, lambda m, b: m.conv(b).square().mean(), X, given, vectors_like(given))
    assert half["conv"].any() and half["fc"].shape == (4, 3) and not half["fc"].any()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 12, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*self.inner(x).unsqueeze(1).chunk(3, -1))


def test_curvature_goes_through_attention() -> None:
    model, step = Attention(), 1e-6
    sk.sparsify(model)
    x = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = {"inner": model.inner.masked_weight().detach()}
    v = vectors_like(z)
    up, down = (sk.gradients_at(model, loss, x, {"inner": z["inner"] + s * v["inner"]})[1] for s in (step, -step))
    found = curvature_at(model, loss, x, z, v)["inner"]
    torch.testing.assert_close(found, (up["inner"] - down["inner"]) / (2 * step), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("create_graph", [False, True])
def test_z_is_never_modified(model: nn.Module, create_graph: bool) -> None:
    z = {n: layer.masked_weight() for n, layer in sk.masked_layers(model).items()}
    copies = {n: v.clone() for n, v in z.items()}
    sk.gradients_at(model, loss, X, z, create_graph=create_graph)
    assert all(not v.requires_grad and torch.equal(v, copies[n]) and v.grad is None for n, v in z.items())


def test_a_layer_the_loss_does_not_use_has_a_zero_gradient(model: nn.Module) -> None:
    def half(model: nn.Module, batch: Tensor) -> Tensor:
        return model.conv(batch).mean()

    for dz in (sk.dense_gradients(model, half, X)[1], sk.gradients_at(model, half, X, masked(model))[1]):
        assert dz["fc"].shape == (4, 3) and not dz["fc"].any() and dz["conv"].any()


def test_tied_layers_sum_their_gradients() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    sk.sparsify(model)
    sk.set_masks(model, {"0": sk.Mask.from_dense(torch.eye(3, dtype=torch.bool))})
    z = model[0].masked_weight().requires_grad_()
    x = torch.randn(2, 3)
    (expected,) = torch.autograd.grad((x @ z.t() @ z.t()).sum(), z)
    total = lambda m, b: m(b).sum()  # noqa: E731
    for dz in (sk.dense_gradients(model, total, x)[1], sk.gradients_at(model, total, x, {"0": z.detach()})[1]):
        assert list(dz) == ["0"]
        torch.testing.assert_close(dz["0"], expected)


def test_frozen_layers(model: nn.Module) -> None:
    z = masked(model)
    (expected,) = torch.autograd.grad(by_hand(model, z), z["fc"])
    model.requires_grad_(False)
    with pytest.raises(ValueError) as caught:
        sk.dense_gradients(model, loss, X)
    assert str(caught.value) == "dense_gradients: model: expected masked weights that require grad, got 'conv' frozen"
    torch.testing.assert_close(sk.gradients_at(model, loss, X, z)[1]["fc"], expected)


def test_a_loss_of_one_element_will_do(model: nn.Module) -> None:
    value, _ = sk.dense_gradients(model, lambda m, b: loss(m, b).reshape(1, 1), X)
    assert value.shape == ()


ERRORS = [
    (
        lambda m: sk.dense_gradients(m, lambda m, b: m(b), X),
        "dense_gradients: loss: expected a differentiable scalar tensor, got shape (3, 4)",
    ),
    (
        lambda m: sk.dense_gradients(m, lambda m, b: 1.0, X),
        "dense_gradients: loss: expected a differentiable scalar tensor, got float",
    ),
    (
        lambda m: sk.gradients_at(m, lambda m, b: loss(m, b).detach(), X, masked(m)),
        "gradients_at: loss: expected a differentiable scalar tensor, got shape ()",
    ),
    (
        lambda m: sk.gradients_at(m, loss, X, {"head": X}),
        "effective_weights: z: expected names of masked layers, got 'head'; known: conv, fc",
    ),
    (
        lambda m: sk.gradients_at(m, loss, X, {"fc": torch.zeros(3, 4, dtype=torch.float64)}),
        "effective_weights: z: expected shape (4, 3), got (3, 4)",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=[e[1][:50] for e in ERRORS])
def test_errors(model: nn.Module, call, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        call(model)
    assert str(caught.value) == text
    assert not model.fc.dense_grad and model.fc._effective is None


class Checkpointed(nn.Module):
    """Masked layers in a checkpoint alone, as in a transformer between its embedding and its head."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.block = nn.Embedding(5, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.reentrant = reentrant
        sk.sparsify(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        return self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)


TOKENS = torch.tensor([0, 2, 4, 1])
PRUNERS = {
    "dense_gradients": lambda m, loss: sk.dense_gradients(m, loss, TOKENS)[1],
    "gradients_at": lambda m, loss: sk.gradients_at(m, loss, TOKENS, {"block.0": m.block[0].masked_weight()})[1],
    "BiP": lambda m, loss: sk.BiP(m, loss, 0.5, steps=2, lower=torch.optim.SGD(m.parameters(), 0.1)).fit([TOKENS]),
    "SpODE": lambda m, loss: sk.SpODE(m, loss, 0.5, steps=2).fit([TOKENS]),
}


@pytest.mark.parametrize("name", PRUNERS)
def test_checkpoints_give_the_same_or_are_refused(name: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().mean()

    plain, kept = (PRUNERS[name](Checkpointed(reentrant), loss) for reentrant in (None, False))
    assert plain.keys() == kept.keys()
    assert all(torch.equal(plain[n], kept[n]) if isinstance(plain[n], Tensor) else plain[n] == kept[n] for n in plain)
    with pytest.raises(
        ValueError, match="model: expected no checkpoints, or those of use_reentrant=False, got some of"
    ):
        PRUNERS[name](Checkpointed(True), loss)
