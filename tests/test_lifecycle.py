# SPDX-License-Identifier: Apache-2.0
"""Any model through its whole life: sparsify, train, save, load, finalize. Outputs agree and nothing is left behind."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsekit as sk

# torch about the plain convolution of an even size.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
CHANNELS, WIDTH = 4, 6
X = torch.randn(3, CHANNELS, WIDTH, generator=torch.Generator().manual_seed(1))


class Lifted(nn.Module):
    """A Conv2d on a one-row image, with state of every kind around it."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.note = conv, ["kept"]
        self.register_buffer("scale", torch.tensor(0.5))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.register_parameter("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.unsqueeze(2)).squeeze(2) * self.scale


class Residual(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = x + part(x)
        return x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(WIDTH, 5), nn.Linear(5, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


class Reads(nn.Module):
    """Reads a weight without calling its layer: has to stay dense."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.fc.weight


class Named(nn.Linear):
    """A subclass: skipped."""


def conv(n: int, kernel: int, groups: int, mode: str = "zeros") -> nn.Module:
    kind = (nn.Conv1d, nn.Conv2d)[n - 1]
    size = kernel if n == 1 else (1, kernel)
    return kind(CHANNELS, CHANNELS, size, padding="same", groups=groups, padding_mode=mode, bias=groups != 2)


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda _, __, y: y * 1.5)
    module.register_forward_pre_hook(lambda _, x: None)
    module.register_full_backward_hook(lambda _, gi, go: None)
    return module


LEAVES: dict[str, Any] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "wide": lambda: nn.Sequential(nn.Linear(WIDTH, 37), nn.Tanh(), nn.Linear(37, WIDTH, bias=False)),
    "conv1d": lambda: conv(1, 3, 1),
    "grouped": lambda: conv(1, 2, 2),
    "depthwise": lambda: Lifted(conv(2, 3, CHANNELS)),
    "circular": lambda: Lifted(conv(2, 2, 1, "circular")),
    "hooked": lambda: hooked(nn.Linear(WIDTH, WIDTH)),
    "frozen": lambda: nn.Linear(WIDTH, WIDTH).requires_grad_(False),
    "norm": lambda: nn.BatchNorm1d(CHANNELS),
    "relu": nn.ReLU,
    "recurrent": Recurrent,
    "reads": Reads,
    "named": lambda: Named(WIDTH, WIDTH),
    "normed": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
}
# "again" is an earlier linear layer as it is; "tied" is a new one with the weight of an earlier one; "half" is one that
# cannot be masked, so that the earlier one must not be either.
TREES = st.recursive(
    st.sampled_from([*LEAVES, "again", "tied", "half"]),
    lambda inner: st.tuples(st.sampled_from(["sequence", "residual"]), st.lists(inner, min_size=1, max_size=4)),
    max_leaves=7,
)


def build(tree: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    linears: list[nn.Linear] = []

    def grow(part: Any) -> nn.Module:
        if isinstance(part, tuple):
            return (nn.Sequential if part[0] == "sequence" else Residual)(*map(grow, part[1]))
        if part == "again" and linears:
            return linears[-1]
        module = LEAVES[{"again": "linear", "tied": "linear", "half": "named"}.get(part, part)]()
        if part in ("tied", "half") and linears:
            module.weight = linears[0].weight
        linears.extend([module] if type(module) is nn.Linear else [])
        return module

    # With one layer that can be masked for certain.
    return nn.Sequential(grow("linear"), nn.Tanh(), grow(tree), nn.Linear(WIDTH, WIDTH))


def anatomy(model: nn.Module) -> dict[str, Any]:
    modules = dict(model.named_modules(remove_duplicate=False))
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
    )
    return {
        "modules": {n: (id(m), type(m), m.training) for n, m in modules.items()},
        "parameters": {n: (id(p), p.requires_grad) for n, p in model.named_parameters(remove_duplicate=False)},
        "buffers": {n: (list(m._buffers), sorted(m._non_persistent_buffers_set)) for n, m in modules.items()},
        "attributes": {n: sorted(vars(m)) for n, m in modules.items()},
        "hooks": {n: [list(getattr(m, h)) for h in hooks] for n, m in modules.items()},
        "keys": list(model.state_dict()),
        "repr": repr(model),
    }


def train_(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01, 0.9, weight_decay=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("kind", [*LEAVES, "again", "tied", "half"])
def test_each_kind(kind: str) -> None:
    live(kind, 0.7)


@settings(max_examples=150)
@given(TREES, st.sampled_from([0.0, 0.31, 0.9]))
def test_life(tree: Any, sparsity: float) -> None:
    live(tree, sparsity)


def live(tree: Any, sparsity: float) -> None:
    model = build(tree, 0)
    before = anatomy(model.eval())
    report = sk.sparsify(model)
    layers = sk.masked_layers(model)
    for name, module in model.named_modules(remove_duplicate=False):
        assert isinstance(module, sk.MaskedLayer) == (
            id(module) in {id(model.get_submodule(n)) for n in report.masked}
        ), name
    scores = {name: layer.weight.detach() for name, layer in layers.items()}
    sk.set_masks(model, sk.Projection()(scores, sparsity).masks)
    train_(model)
    y = model(X).detach()
    masks = sk.masks(model)
    assert masks.count() == sk.kept_count(masks.numel, sparsity)

    with tempfile.TemporaryDirectory() as folder:
        sk.save(model, folder)
        other = sk.load(build(tree, 1).eval(), folder)
    assert torch.equal(other(X), y) and sk.masks(other) == masks
    assert list(other.state_dict()) == list(model.state_dict())

    plain = build(tree, 2).eval()
    plain.load_state_dict(sk.dense_state_dict(model), strict=True)
    for layer in layers.values():
        with torch.no_grad():
            layer.weight.masked_fill_(~layer.mask.dense(), torch.nan)
    assert torch.equal(model(X), y)
    twin = copy.deepcopy(other)
    for finished in (sk.finalize(model), sk.finalize(other), sk.finalize(twin), plain):
        torch.testing.assert_close(finished(X), y, rtol=1e-4, atol=1e-6)
        assert list(finished.state_dict()) == before["keys"]
        for name, mask in masks.items():
            assert not finished.get_submodule(name).weight[~mask.dense()].any()
    after = anatomy(model)
    assert after == before
    sk.sparsify(model)  # and it can begin anew
    torch.testing.assert_close(model(X), y, rtol=1e-4, atol=1e-6)
