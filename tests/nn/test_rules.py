# SPDX-License-Identifier: Apache-2.0
"""Which layers sparsify takes: globs and types, reasons for the rest, and the texts of its errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsekit as sk

# skip, only -> masked
RULES = [
    ((), None, ["stem", "body.0", "body.1", "fc"]),
    (["fc"], None, ["stem", "body.0", "body.1"]),
    (["body.*"], None, ["stem", "fc"]),
    ([nn.Conv2d], None, ["fc"]),
    ([nn.Linear, "stem"], None, ["body.0", "body.1"]),
    ((), ["body.*"], ["body.0", "body.1"]),
    ((), [nn.Linear], ["fc"]),
    (["*.1"], ["body.*", "fc"], ["body.0", "fc"]),
    ((), ["*"], ["stem", "body.0", "body.1", "fc"]),
    (["s?em"], None, ["body.0", "body.1", "fc"]),
]


def pyramid() -> nn.Module:
    model = nn.Module()
    model.stem = nn.Conv2d(3, 4, 3)
    model.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU())
    model.fc = nn.Linear(4, 2)
    return model


@pytest.mark.parametrize(("skip", "only", "masked"), RULES)
def test_rules(skip, only, masked) -> None:
    report = sk.sparsify(pyramid(), skip=skip, only=only)
    assert report.masked == masked
    assert set(report.skipped) == {"stem", "body.0", "body.1", "fc"} - set(masked)
    assert all(r == "not in only" or r.startswith("skip=") for r in report.skipped.values())


def test_reason_names_the_rule() -> None:
    assert sk.sparsify(pyramid(), skip=["body.*", nn.Linear]).skipped == {
        "body.0": "skip=body.*",
        "body.1": "skip=body.*",
        "fc": "skip=Linear",
    }


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def unmaskable() -> Iterator[tuple[nn.Module, str]]:
    yield nn.Embedding(3, 4), "Embedding has no masked form"
    yield nn.LSTM(3, 4), "LSTM has no masked form"
    yield nn.ConvTranspose2d(3, 4, 3), "ConvTranspose2d has no masked form"
    yield nn.Bilinear(3, 4, 5), "Bilinear has no masked form"
    yield Scaled(3, 4), "Scaled is a subclass with a behaviour of its own"
    yield nn.LazyLinear(4), "weight is not initialised yet; run one batch first"
    yield nn.LazyConv2d(4, 3), "weight is not initialised yet; run one batch first"
    reason = "its weight is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    yield nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), reason
    yield nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), reason
    pruned = nn.Linear(3, 4)
    prune.random_unstructured(pruned, "weight", 0.5)
    yield pruned, "weight is not a Parameter of the layer (weight_norm, spectral_norm and prune replace it)"
    yield nn.Linear(3, 4, dtype=torch.complex64), "weight has dtype torch.complex64; expected a floating dtype"


UNMASKABLE = [pytest.param(*case, id=f"{i} {type(case[0]).__name__}") for i, case in enumerate(unmaskable())]


@pytest.mark.parametrize(("module", "reason"), UNMASKABLE)
def test_reasons(module: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), module, nn.LayerNorm(4), nn.ReLU())
    report = sk.sparsify(model)
    assert report.masked == ["0"] and report.skipped["1"] == reason
    assert all(name.startswith("1") for name in report.skipped)
    assert f"\n  skipped 1: {reason}" in str(report)


def test_masked_subclass_of_the_user_is_not_finalized_by_halves() -> None:
    class Mine(sk.MaskedLinear):
        pass

    model = nn.Sequential(nn.Linear(3, 3), Mine(3, 3))
    assert sk.sparsify(model).masked == ["0", "1"]
    with pytest.raises(TypeError, match="finalize: model: expected layers of class MaskedLinear, .*, got Mine"):
        sk.finalize(model)
    assert isinstance(model[0], sk.MaskedLinear)


def test_parametrizing_a_masked_layer_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    sk.sparsify(model)
    nn.utils.parametrizations.weight_norm(model[1])
    assert sk.sparsify(model).skipped["1"].startswith("its weight is parametrized")
    with pytest.raises(TypeError, match="got ParametrizedMaskedLinear"):
        sk.finalize(model)


ERRORS = [
    (lambda: sk.sparsify("model"), TypeError, "sparsify: model: expected a torch.nn.Module, got str"),
    (
        lambda: sk.sparsify(pyramid(), skip="fc"),
        TypeError,
        "sparsify: skip: expected a sequence of globs and module types, got 'fc'",
    ),
    (lambda: sk.sparsify(pyramid(), only=[3]), TypeError, "sparsify: only: expected globs and module types, got 3"),
    (
        lambda: sk.sparsify(pyramid(), skip=[int]),
        TypeError,
        "sparsify: skip: expected globs and module types, got <class 'int'>",
    ),
    (
        lambda: sk.sparsify(pyramid(), skip=["cf"]),
        ValueError,
        "sparsify: skip: expected globs that match a module, got 'cf'",
    ),
    (
        lambda: sk.sparsify(nn.Sequential(nn.ReLU())),
        ValueError,
        "sparsify: model: expected at least one layer to mask, got none\nmasked 0 layers, skipped 0",
    ),
    (
        lambda: sk.finalize(pyramid()),
        ValueError,
        "finalize: model: expected masked layers, got none; call sparsify first",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=[e[2][:50] for e in ERRORS])
def test_errors(call, kind: type, text: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == text


def test_a_refused_sparsify_changes_nothing() -> None:
    model = pyramid()
    before = [(name, type(module), list(vars(module))) for name, module in model.named_modules()]
    with pytest.raises(ValueError):
        sk.sparsify(model, skip=["nothing"])
    assert before == [(name, type(module), list(vars(module))) for name, module in model.named_modules()]
