# SPDX-License-Identifier: Apache-2.0
"""Every phase of a run trains with the settings that its recipe gives it, and defaults are what they always were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsekit.benchmarks import engine
from sparsekit.benchmarks.engine import Workbench
from sparsekit.benchmarks.one_run import run_model
from sparsekit.benchmarks.recipe import Recipe, RunConfig, as_json, from_json, identity, non_default
from sparsekit.benchmarks.training import cross_entropy, cross_entropy_bf16, loss_for

pytest.importorskip("sklearn")

SMALL = Recipe(network="mlp", limit=64, dense_epochs=1, epochs=2, batch_size=16, ode_steps=2, ode_batch=32)
OWN = {
    "lr": 0.04,
    "nesterov": False,
    "weight_decay": 0.0,
    "dense_lr": 0.1,
    "dense_batch_size": 32,
    "dense_weight_decay": 1e-3,
    "dense_curve": "step",
    "lower_lr": 0.02,
    "finetune_lr": 0.01,
    "finetune_curve": "warmup:1+cosine:1",
    "label_smoothing": 0.1,
    "curve": "linear",
}


class Spy:
    """Optimizers in the order in which they are made, with their learning rates step by step; sizes of batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[dict[str, Any], list[float]]] = []
        self.sizes: list[int] = []
        real, step = torch.optim.SGD.__init__, torch.optim.SGD.step

        def made(this: Any, params: Any, **values: Any) -> None:
            real(this, params, **values)
            this.seen = []
            self.made.append((values, this.seen))

        def stepped(this: Any, *rest: Any) -> Any:
            this.seen.append(float(this.param_groups[0]["lr"]))
            return step(this, *rest)

        monkeypatch.setattr(torch.optim.SGD, "__init__", made)
        monkeypatch.setattr(torch.optim.SGD, "step", stepped)

    @property
    def used(self) -> list[tuple[dict[str, Any], list[float]]]:
        return [(values, rates) for values, rates in self.made if rates]


def trained(method: str, recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> Spy:
    bench = Workbench(recipe, out)
    bench.warm_up()
    spy = Spy(monkeypatch)
    real = bench.loss

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        spy.sizes.append(len(batch[1]))
        return real(model, batch)

    monkeypatch.setattr(bench, "loss", loss)
    run_model(RunConfig(method, 0.5, 0, recipe), bench)
    return spy


def of(values: dict[str, Any]) -> tuple[float, float, bool]:
    return values["lr"], values["weight_decay"], values["nesterov"]


DENSE = (0.1, 1e-3, False)


def test_spode_has_its_own_rate_and_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = trained("spode", replace(SMALL, **OWN), tmp_path, monkeypatch)
    (dense, dense_rates), (tuned, rates) = spy.used
    assert of(dense) == DENSE and of(tuned) == (0.01, 0.0, False)
    assert dense_rates == [0.1, pytest.approx(0.01)]  # two steps of 32 images, a step curve
    assert rates == pytest.approx([0.01] * 4 + [0.01 * x for x in (1, 0.853553, 0.5, 0.146447)], rel=1e-5)
    assert spy.sizes == [32] * 2 + [32] * 2 + [16] * 8


def test_bip_has_its_own_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (dense, _), (lower, rates) = trained("bip", replace(SMALL, **OWN), tmp_path, monkeypatch).used
    assert of(dense) == DENSE and of(lower) == (0.02, 0.0, False)
    assert rates == pytest.approx([0.02 * (1 - i / 8) for i in range(8)])


@pytest.mark.parametrize("method, lr", [("oneshot", 0.01), ("imp", 0.04), ("omp", 0.04), ("gmp", 0.04)])
def test_other_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, lr: float) -> None:
    own = {**OWN, "finetune_curve": "constant"}
    spy = trained(method, replace(SMALL, **own), tmp_path, monkeypatch)
    (values, rates) = spy.used[1]
    assert of(values) == (lr, 0.0, False)
    assert rates == pytest.approx([lr if method == "oneshot" else lr * (1 - i / 8) for i in range(8)])


def test_defaults_are_what_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = trained("spode", SMALL, tmp_path, monkeypatch)
    assert [of(values) for values, _ in spy.used] == [(0.05, 5e-4, True)] * 2
    assert len(spy.used[0][1]) == 4 and spy.sizes == [16] * 4 + [32] * 2 + [16] * 8


def test_a_dense_network_serves_every_recipe_that_trains_it_alike() -> None:
    plain = Recipe(lr=0.1, batch_size=32)
    other = Recipe(lr=0.01, batch_size=64, dense_lr=0.1, dense_batch_size=32, finetune_lr=0.5, curve="step", epochs=9)
    assert plain.dense_part() == other.dense_part() and plain.dense_part() != Recipe(lr=0.01).dense_part()
    changes = {"dense_curve": "step", "label_smoothing": 0.1, "nesterov": False, "dense_weight_decay": 0.0}
    parts = [Recipe(lr=0.1, batch_size=32, **{name: value}).dense_part() for name, value in changes.items()]
    assert len({*parts, plain.dense_part()}) == 5


def test_dense_networks_of_before_are_found(tmp_path: Path) -> None:
    """The file's name is the hash of what was chosen, which settings left at their defaults do not enter."""
    chosen = {"network": "mlp", "limit": 64, "dense_epochs": 1, "batch_size": 16, "lr": 0.2, "seed": 3, "kind": "dense"}
    recipe = replace(SMALL, lr=0.2)
    assert identity(non_default(recipe.dense_part()) | {"seed": 3, "kind": "dense"}) == identity(chosen)
    assert from_json(as_json(recipe)) == recipe


def test_rows_of_before_have_no_settings_of_later() -> None:
    """A row's config with every setting at its default has the entries of the first rows, and no other."""
    first = "data limit network dense_epochs epochs batch_size lr momentum weight_decay skip imp_rate budget_epochs"
    assert set(as_json(Recipe())) == {*first.split(), "upper_lr", "gamma", "ode_steps", "ode_batch", "radius", "device"}


def test_new_settings_survive_a_row() -> None:
    recipe = replace(SMALL, **OWN, polariser="ohm", score_momentum=0.9)
    assert from_json(as_json(recipe)) == recipe and as_json(recipe)["finetune_lr"] == 0.01


def test_label_smoothing() -> None:
    model, batch = nn.Linear(4, 3), (torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    logits = model(batch[0]).log_softmax(1)
    expected = -(0.8 * logits[torch.arange(5), batch[1]] + 0.2 * logits.mean(1)).mean()
    torch.testing.assert_close(loss_for("fp32", 0.2)(model, batch), expected)
    assert loss_for("fp32", 0.0) is cross_entropy and loss_for("bf16", 0.0) is cross_entropy_bf16


def test_a_curve_that_a_method_does_not_take_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Curveless:
        def __init__(self, model: Any, loss: Any, sparsity: float, *, optimizer: Any, projection: Any) -> None:
            pass

    from sparsekit.benchmarks.builders import Start, trained_with

    start = Start(nn.Linear(2, 2), cross_entropy, {}, 0.5, Recipe(curve="step"), 1, 1)
    with pytest.raises(ValueError, match="curve: expected cosine for Curveless, got 'step'"):
        trained_with(Curveless, start)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dense_lr": 0.0}, "Recipe: dense_lr: expected a finite number > 0, got 0.0"),
        ({"finetune_lr": "x"}, "Recipe: finetune_lr: expected a finite number > 0, got 'x'"),
        ({"dense_weight_decay": -1.0}, "Recipe: dense_weight_decay: expected a finite number >= 0, got -1.0"),
        ({"dense_batch_size": 1}, "Recipe: dense_batch_size: expected an int >= 2, got 1"),
        ({"label_smoothing": 1.0}, r"Recipe: label_smoothing: expected a number in \[0, 1\), got 1.0"),
        ({"nesterov": 1}, "Recipe: nesterov: expected a bool, got 1"),
        ({"curve": "sine"}, "Recipe: curve: expected one of constant, cosine, linear, step or pieces .*, got 'sine'"),
        ({"dense_curve": None}, "Recipe: dense_curve: expected one of"),
        ({"finetune_curve": "cosine:0"}, "Recipe: finetune_curve: expected pieces KIND:SHARE.*, got 'cosine:0'"),
        ({"polariser": "hard"}, "Recipe: polariser: expected one of oh, .*, got 'hard'"),
        ({"score_momentum": 1.0}, r"Recipe: score_momentum: expected a number in \[0, 1\), got 1.0"),
    ],
)
def test_settings_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Recipe(**change)


def test_batches_larger_than_the_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dense_batch_size: expected <= 64 images, got 65"):
        engine.Workbench(replace(SMALL, dense_batch_size=65), tmp_path)
