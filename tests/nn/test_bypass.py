# SPDX-License-Identifier: Apache-2.0
"""A module that reads a submodule's weight without calling it: skipped by name, never silently unmasked."""

from __future__ import annotations

import types

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekit as sk


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.by_name = nn.ModuleDict({"q": nn.Linear(3, 3)})
        self.deep = nn.Sequential(nn.Sequential(nn.Linear(3, 3)))


class Direct(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.fc.weight)


class LocalName(Base):
    def forward(self, x: Tensor) -> Tensor:
        fc = self.fc
        return x @ fc.weight.t()


class Loop(Base):
    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = F.linear(x, layer.weight) + i
        return x


class Comprehension(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x @ sum(layer.weight for layer in self.layers)


class Subscript(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.layers[0].weight @ self.by_name["q"].weight


class Values(Base):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.by_name.values():
            x = x @ layer.weight
        return x


class GetAttr(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x @ getattr(self.fc, "weight")  # noqa: B009


class GetModule(Base):
    def forward(self, x: Tensor, which: str = "fc") -> Tensor:
        return x @ getattr(self, which).weight


class Method(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.get_logits(x)

    def get_logits(self, x: Tensor) -> Tensor:
        return x @ self.fc.weight


class Property(Base):
    @property
    def matrix(self) -> Tensor:
        return self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class ModuleProperty(Base):
    @property
    def output(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.output.weight


class Walrus(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x @ w if (w := self.fc.weight) is not None else x


class Nested(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.deep[0][0].weight


class ReachedInit(Base):
    def initial(self, x: Tensor) -> Tensor:
        return x @ self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.initial(x)


class OtherEntry(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)

    def generate(self, x: Tensor) -> Tensor:
        return x @ self.fc.weight


class Mixin:
    """No module itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.fc.weight

    def save(self) -> Tensor:
        return self.other.weight.cpu()


class Mixed(Mixin, Base):
    pass


class Inherited(Direct):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


CASES = {
    Direct: ["fc"],
    LocalName: ["fc"],
    Loop: ["layers.0", "layers.1"],
    Comprehension: ["layers.0", "layers.1"],
    Subscript: ["by_name.q", "layers.0", "layers.1"],
    Values: ["by_name.q"],
    GetAttr: ["fc"],
    Method: ["fc"],
    Property: ["fc"],
    Walrus: ["fc"],
    Nested: ["deep.0.0"],
    ReachedInit: ["fc"],
    OtherEntry: ["fc"],
    Inherited: ["fc"],
    Mixed: ["fc"],
}


@pytest.mark.parametrize("kind", CASES, ids=lambda k: k.__name__)
def test_readers_are_found(kind: type[nn.Module]) -> None:
    report = sk.sparsify(kind())
    assert sorted(report.skipped) == CASES[kind]
    assert all(r.endswith("reads its weight without calling it") for r in report.skipped.values())
    nested = nn.Sequential(nn.Linear(3, 3), kind())
    assert sorted(sk.sparsify(nested).skipped) == [f"1.{name}" for name in CASES[kind]]


@pytest.mark.parametrize("kind", [GetModule, ModuleProperty], ids=lambda k: k.__name__)
def test_in_doubt_is_skipped(kind: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), kind())
    assert "1.fc" in sk.sparsify(model).skipped


def test_a_reader_through_the_second_name_of_a_shared_module() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alias = nn.Linear(3, 3)
            self.inner = Direct()
            self.inner.fc = self.alias

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.alias(x))

    assert "alias" in sk.sparsify(Outer()).skipped


def test_a_method_put_on_the_object() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self[1](x @ self[0].weight)

    model.forward = types.MethodType(forward, model)
    report = sk.sparsify(nn.Sequential(model, nn.Linear(3, 3)))
    assert "0.0" in report.skipped and report.masked == ["1"]


class Harmless(Base):
    def __init__(self) -> None:
        super().__init__()
        nn.init.ones_(self.fc.weight)
        self.init_weights()

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.fc.weight)

    def tie_weights(self) -> None:
        self.other.weight = self.fc.weight

    def set_size(self, n: int) -> None:
        self.fc.weight = nn.Parameter(self.fc.weight[:n])

    def resize_head(self, n: int) -> None:
        self.fc.weight = nn.Parameter(self.fc.weight[:n].clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": self.fc.parameters()}, {"params": [self.other.weight], "lr": 0.1}], lr=1.0)

    def _get_adapters(self) -> dict[str, nn.Parameter]:
        return {name: m.weight for name, m in self.named_modules() if isinstance(m, nn.Linear)}

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.fc.parameters())

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.fc.weight.dtype).to(self.fc.weight.device)
        assert self.fc.weight.shape[0] == 3 and self.fc.weight.requires_grad
        assert isinstance(self.fc.weight, Tensor) and type(self.other.weight) is not Tensor
        for layer in self.layers:
            x = layer(x)
        return self.fc(x) * self.fc.bias


def test_harmless_reads_are_not_skipped() -> None:
    assert sk.sparsify(Harmless()).skipped == {}


def test_multihead_attention() -> None:
    report = sk.sparsify(nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2)))
    assert report.masked == ["0"]
    assert report.skipped["1"] == "MultiheadAttention has no masked form"
    assert "1.out_proj" in report.skipped


def test_transformer_encoder_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 3))
    report = sk.sparsify(model)
    assert report.masked == ["0", "2"]
    assert "1.layers.0.linear1" in report.skipped and "1.layers.1.linear2" in report.skipped
    assert "TransformerEncoder" in report.skipped["1.layers.0.linear1"]


def test_only_cannot_force_a_bypassed_layer() -> None:
    with pytest.raises(ValueError, match="reads its weight without calling it"):
        sk.sparsify(Direct(), only=["fc"])


def test_what_is_skipped_still_runs_as_before() -> None:
    model = Loop()
    x = torch.randn(2, 3)
    y = model(x)
    sk.sparsify(model)
    assert torch.equal(model(x), y)


class _OddReceiver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(this, x):  # noqa: N805
        return this.b(nn.functional.linear(x, this.a.weight))


class _Unpacks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        w, c = self.a.parameters()
        return self.b(nn.functional.linear(x, w, c))


@pytest.mark.parametrize("kind", [_OddReceiver, _Unpacks])
def test_other_ways_to_a_weight(kind) -> None:
    report = sk.sparsify(kind())
    assert report.masked == ["b"] and "reads its weight" in report.skipped["a"]


def test_a_forward_without_source_is_doubted() -> None:
    space: dict = {"nn": nn}
    code = "class Hidden(nn.Module):\n def forward(self, x):\n  return nn.functional.linear(x, self.a.weight)\n"
    exec(code, space)
    model = space["Hidden"]()
    model.a = nn.Linear(4, 4)
    outer = nn.Sequential(model, nn.Linear(4, 4))
    assert sk.sparsify(outer).masked == ["1"]


def test_a_forward_replaced_on_the_object_is_skipped() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    layer = model[0]
    layer.forward = lambda x: nn.functional.linear(x, layer.weight)
    report = sk.sparsify(model)
    assert report.masked == ["1"] and "replaced" in report.skipped["0"]
