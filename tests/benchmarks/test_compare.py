# SPDX-License-Identifier: Apache-2.0
"""The comparison: identities, equal starts, equal counts, costs by hand, no peeking at the test set, resuming."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from states import equal
from torch import Tensor

import sparsekit as sk
from sparsekit.allocation import kept_count
from sparsekit.benchmarks import engine, forecast
from sparsekit.benchmarks import one_run as module
from sparsekit.benchmarks.compare import ROWS, Silent, compare, grid, run_model, total_steps
from sparsekit.benchmarks.engine import Workbench
from sparsekit.benchmarks.methods import ABLATIONS, METHODS, as_method
from sparsekit.benchmarks.recipe import Recipe, RunConfig, as_json, recipe_for
from sparsekit.benchmarks.report import speedup
from sparsekit.benchmarks.rows import read_rows
from sparsekit.schedules import imp_ladder

pytest.importorskip("sklearn")

SMALL = Recipe(
    network="mlp", limit=100, dense_epochs=3, epochs=2, batch_size=16, imp_rate=0.3, ode_steps=3, ode_batch=40
)
SPARSITY = 0.6
EVERY = [name for name in METHODS if name != "dense" and name not in ABLATIONS]


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one dense network lies, so that no test trains it again."""
    folder = tmp_path_factory.mktemp("compare")
    Workbench(SMALL, folder).dense(0)
    return folder


@pytest.fixture
def bench(dense_folder: Path) -> Workbench:
    return Workbench(SMALL, dense_folder)


def config(method: str, sparsity: float = SPARSITY, seed: int = 0, **changes: Any) -> RunConfig:
    return RunConfig(method, sparsity, seed, replace(SMALL, **changes))


def copied(state: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


# Identity


def test_ids_are_frozen() -> None:
    assert RunConfig("imp", 0.9, 0).id == "12b568e16e58"
    assert RunConfig("bip", 0.893, 2, Recipe(network="mlp", lr=0.1, skip=("1",))).id == "5e5bf3e6f760"


def test_an_id_is_the_hash_of_what_was_chosen() -> None:
    chosen = {"method": "imp", "sparsity": 0.9, "seed": 3, "network": "mlp", "skip": ["1", "6"]}
    text = json.dumps(chosen, sort_keys=True)
    expected = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert RunConfig("imp", 0.9, 3, Recipe(network="mlp", skip=("1", "6"))).id == expected


def test_defaults_do_not_enter() -> None:
    everything = {f.name: f.default for f in fields(Recipe)}
    assert RunConfig("imp", 0.9, 0, Recipe(**everything)).id == RunConfig("imp", 0.9, 0).id


def test_equal_numbers_have_equal_ids() -> None:
    one, two = (
        Recipe(lr=1, gamma=2, weight_decay=0, skip=["a"]),
        Recipe(lr=1.0, gamma=2.0, weight_decay=0.0, skip=("a",)),
    )
    assert RunConfig("imp", 0, 0, one) == RunConfig("imp", 0.0, 0, two)
    assert RunConfig("imp", 0, 0, one).id == RunConfig("imp", 0.0, 0, two).id


CHANGES: dict[str, Any] = {
    "data": "cifar10",
    "limit": 9,
    "network": "mlp",
    "dense_epochs": 7,
    "epochs": 7,
    "batch_size": 7,
    "lr": 0.7,
    "momentum": 0.7,
    "weight_decay": 0.7,
    "skip": ("7",),
    "imp_rate": 0.7,
    "budget_epochs": 7,
    "upper_lr": 0.7,
    "gamma": math.inf,
    "ode_steps": 7,
    "ode_batch": 7,
    "radius": 7.0,
    "structure": "filter",
    "image_size": 7,
    "precision": "bf16",
    "channels_last": True,
    "graphs": True,
    "device": "cuda",
    "nesterov": False,
    "curve": "linear",
    "label_smoothing": 0.7,
    "dense_lr": 0.7,
    "dense_batch_size": 7,
    "dense_weight_decay": 0.7,
    "dense_curve": "linear",
    "lower_lr": 0.7,
    "finetune_lr": 0.7,
    "finetune_curve": "linear",
    "polariser": "qt",
    "score_momentum": 0.7,
    "mixup": 0.7,
}


def test_every_setting_enters() -> None:
    assert CHANGES.keys() == {f.name for f in fields(Recipe)}
    # Graphs are for a GPU alone.
    alone = {name: {name: value} | ({"device": "cuda"} if name == "graphs" else {}) for name, value in CHANGES.items()}
    ids = {RunConfig("imp", 0.9, 0, Recipe(**values)).id for values in alone.values()}
    ids |= {RunConfig(*what).id for what in (("imp", 0.9, 0), ("omp", 0.9, 0), ("imp", 0.8, 0), ("imp", 0.9, 1))}
    assert len(ids) == len(CHANGES) + 4


def test_recipes_are_json_without_infinity() -> None:
    values = as_json(Recipe(**CHANGES))
    assert json.loads(json.dumps(values, allow_nan=False)) == values and values["gamma"] == "inf"


def test_recipes_by_data_set() -> None:
    assert recipe_for("digits", lr=None, epochs=3) == Recipe(epochs=3)
    images = recipe_for("cifar10", batch_size=64)
    assert (images.network, images.batch_size, images.lr, images.data) == ("resnet20", 64, 0.1, "cifar10")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"epochs": 0}, "Recipe: epochs: expected an int >= 1, got 0"),
        ({"dense_epochs": -1}, "Recipe: dense_epochs: expected an int >= 1, got -1"),
        ({"batch_size": 1}, "Recipe: batch_size: expected an int >= 2, got 1"),
        ({"limit": 0}, "Recipe: limit: expected an int >= 1, got 0"),
        ({"ode_steps": 0}, "Recipe: ode_steps: expected an int >= 1, got 0"),
        ({"ode_batch": 1.5}, "Recipe: ode_batch: expected an int >= 2, got 1.5"),
        ({"budget_epochs": -1}, "Recipe: budget_epochs: expected an int >= 0, got -1"),
        ({"lr": -0.1}, "Recipe: lr: expected a finite number > 0, got -0.1"),
        ({"lr": math.nan}, "Recipe: lr: expected a finite number > 0, got nan"),
        ({"lr": math.inf}, "Recipe: lr: expected a finite number > 0, got inf"),
        ({"lr": "fast"}, "Recipe: lr: expected a finite number > 0, got 'fast'"),
        ({"lr": True}, "Recipe: lr: expected a finite number > 0, got True"),
        ({"momentum": 0}, r"Recipe: momentum: expected a number in \(0, 1\), got 0"),
        ({"momentum": 1.0}, r"Recipe: momentum: expected a number in \(0, 1\), got 1.0"),
        ({"weight_decay": -1e-4}, "Recipe: weight_decay: expected a finite number >= 0, got -0.0001"),
        ({"upper_lr": 0.0}, "Recipe: upper_lr: expected a finite number > 0, got 0.0"),
        ({"gamma": 0.0}, "Recipe: gamma: expected a number > 0 or inf, got 0.0"),
        ({"imp_rate": 1.0}, r"Recipe: imp_rate: expected a number in \[0.001, 1\), got 1.0"),
        ({"radius": 0.9}, "Recipe: radius: expected a finite number >= 1, got 0.9"),
        ({"skip": "conv*"}, r"Recipe: skip: expected a tuple of globs, got 'conv\*'"),
        ({"device": "tpu"}, "Recipe: device: expected cpu or cuda, got 'tpu'"),
    ],
)
def test_settings_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Recipe(**change)


# The grid


def test_the_grid_is_ordered_and_without_repetition() -> None:
    runs = grid(["bip", "imp", "bip"], [0.5, 0.9, 0.50], 2, SMALL)
    expected = [(m, s, seed) for seed in (0, 1) for s in (0.5, 0.9) for m in ("bip", "imp")]
    assert [(r.method, r.sparsity, r.seed) for r in runs] == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((["imp", "magic"], [0.5], 1), "method: expected one of imp, imp-lth, .*, got 'magic'"),
        (([], [0.5], 1), "compare: expected at least one method, one sparsity and one seed"),
        ((["imp"], [], 1), "compare: expected at least one method, one sparsity and one seed"),
        ((["imp"], [0.5], 0), "compare: expected at least one method, one sparsity and one seed"),
        ((["imp"], [1.0], 1), r"RunConfig: sparsity: expected a number in \[0, 1\), got 1.0"),
        ((["imp"], [math.nan], 1), r"RunConfig: sparsity: expected a number in \[0, 1\), got nan"),
    ],
)
def test_a_bad_grid_is_named(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(*arguments, SMALL)


# Equal starts


class Spy:
    """What a run is given, and the batches that its losses see, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bench: Workbench) -> None:
        self.dense: list[dict[str, Tensor]] = []
        self.init: list[dict[str, Tensor]] = []
        self.masks: list[sk.Masks] = []
        self.batches: list[list[Tensor]] = []
        real_start, real_loss = module.Start, bench.loss

        def start(model: Any, loss: Any, init: Any, *rest: Any) -> Any:
            self.dense.append(copied(sk.dense_state_dict(model)))
            self.init.append(copied(init))
            self.masks.append(sk.masks(model))
            self.batches.append([])
            return real_start(model, loss, init, *rest)

        def loss(model: Any, batch: Any) -> Tensor:
            self.batches[-1].append(batch[0].clone())
            return real_loss(model, batch)

        monkeypatch.setattr(module, "Start", start)
        monkeypatch.setattr(bench, "loss", loss)


def test_all_methods_start_from_one_network_and_see_one_order(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.warm_up()
    dense, spy = bench.dense(0), Spy(monkeypatch, bench)
    for i, method in enumerate(EVERY):
        torch.manual_seed(i)  # no method may depend on the global state
        run_model(config(method), bench)
    assert all(equal(state, dense.state) for state in spy.dense)
    assert all(equal(init, dense.init) for init in spy.init)
    assert all(masks.sparsity == 0 and masks == spy.masks[0] for masks in spy.masks)
    own = dict(zip(EVERY, spy.batches, strict=True))
    stream = [next(batches)[0] for batches in [bench.batches(0, 1)] for _ in range(90)]
    for method, seen in own.items():
        pruning = seen[: len(seen) - 12] if METHODS[method].finetune else seen
        if METHODS[method].ode_batches:
            # Its batches are larger, but the images come in the same order.
            assert torch.equal(pruning[0], next(bench.batches(0, 1, 40))[0]) and torch.equal(pruning[0][:16], stream[0])
        elif method == "grasp-rounds":
            rounds = [stream[i : i + 7] for i in range(0, 70, 7)]
            twice = [*chain.from_iterable(drawn + drawn for drawn in rounds), *stream[70:82]]
            assert all(torch.equal(a, b) for a, b in zip(pruning, twice, strict=True))
        elif method.startswith("grasp"):
            drawn = (len(pruning) - 12) // 2  # which its losses see twice
            twice = [*stream[:drawn], *stream[: drawn + 12]]
            assert all(torch.equal(a, b) for a, b in zip(pruning, twice, strict=True)), method
        elif method in DRAWN:  # so many batches, seen so often, then a training step
            source, expected = iter(stream), []
            batches, times = DRAWN[method]
            for _ in range(10):
                drawn = [next(source) for _ in range(batches)]
                expected += [*(drawn * times), next(source)]
            assert all(torch.equal(a, b) for a, b in zip(pruning, [*expected, next(source), next(source)], strict=True))
        elif method.startswith("synflow"):  # takes but a shape from its first batch
            assert all(torch.equal(a, b) for a, b in zip(pruning, stream[1:13], strict=True)), method
        else:
            assert len(pruning) == COSTS[method][2] - 12 * METHODS[method].finetune
            if method == "probmask":  # two samples of masks on each batch
                assert all(torch.equal(a, b) for a, b in zip(pruning[::2], pruning[1::2], strict=True))
                pruning = pruning[::2]
            assert all(torch.equal(a, b) for a, b in zip(pruning, stream, strict=False)), method
    tails = [next(batches)[0] for batches in [bench.batches(0, 2)] for _ in range(12)]
    for method in ("spode", "bip-finetune"):
        assert all(torch.equal(a, b) for a, b in zip(own[method][-12:], tails, strict=True))
    assert equal(bench.dense(0).state, dense.state)  # runs leave it alone


def test_seeds_have_networks_and_orders_of_their_own(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.warm_up()
    spy = Spy(monkeypatch, bench)
    for seed in (0, 1):
        run_model(config("oneshot", seed=seed), bench)
    assert not equal(spy.dense[0], spy.dense[1]) and not equal(spy.init[0], spy.init[1])
    assert not torch.equal(spy.batches[0][0], spy.batches[1][0])


def test_the_dense_network_from_disk_gives_the_same_run(dense_folder: Path, tmp_path: Path) -> None:
    from_disk, row = run_model(config("bip"), Workbench(SMALL, dense_folder))
    trained_here, other = run_model(config("bip"), Workbench(SMALL, tmp_path))
    assert equal(copied(from_disk.state_dict()), copied(trained_here.state_dict()))
    assert row["result"] == other["result"]


# Counts, costs and factors


@pytest.fixture(scope="module")
def all_rows(dense_folder: Path) -> dict[str, Any]:
    """Method -> its row, and how many steps its progress was told of."""
    bench, rows = Workbench(SMALL, dense_folder), {}
    for method in EVERY:
        steps = []

        class Counting(Silent):
            def run(self, config: RunConfig, steps: int, seen: Any = steps) -> Callable[[], None]:
                return lambda: seen.append(steps)

        model, row = run_model(config(method), bench, Counting())
        rows[method] = {"row": row, "steps": steps, "masks": sk.masks(model)}
    return rows


def test_every_method_keeps_the_same_exact_number(all_rows: dict[str, Any]) -> None:
    total = 64 * 256 + 256 * 128 + 128 * 10
    kept = kept_count(total, SPARSITY)
    for method, found in all_rows.items():
        result = found["row"]["result"]
        expected = total - math.floor(SPARSITY * total) if method == "bip-released" else kept
        assert (result["kept"], result["total"]) == (expected, total), method
        assert result["kept"] == found["masks"].count() and result["sparsity"] == found["masks"].sparsity
        assert result["mask_hash"] == found["masks"].hash()[:16]
    assert total - math.floor(SPARSITY * total) == kept  # so that the released counts agree here


# Batches that a round of these methods draws for its scores, and how often the loss sees them; of SynFlow's it is the shape.
DRAWN = {
    "iter-grasp": (7, 2),
    "iter-synflow": (1, 0),
    "iter-snip-released": (6, 1),
    "iter-grasp-released": (6, 2),
    "iter-synflow-released": (1, 0),
}

# By hand, with 6 steps and 96 images in an epoch, 2 epochs in a phase and 3 rounds of IMP:
# method -> (steps, epochs, passes, dense-equivalent epochs)
COSTS = {
    "imp": (36, 6.0, 36, 6.0),
    "imp-lth": (36, 6.0, 36, 6.0),
    "imp-finetune": (36, 6.0, 36, 6.0),
    "imp-budget": (24, 4.0, 24, 4.0),
    "omp": (12, 2.0, 12, 2.0),
    "oneshot": (12, 2.0, 12, 2.0),
    "bip": (12, 2.0, 24, 4.0),
    "bip-cubic": (12, 2.0, 24, 4.0),
    "bip-1pass": (12, 2.0, 12, 2.0),
    "bip-released": (12, 2.0, 24, 4.0),
    "bip-alpha0.01": (12, 2.0, 24, 4.0),
    "bip-finetune": (24, 4.0, 36, 6.0),
    "spode": (15, 2 + 3 * 40 / 96, 15, 2 + 3 * 40 / 96),
    "spode-bip": (15, 2 + 3 * 40 / 96, 27, 4 + 3 * 40 / 96),
    "gmp": (12, 2.0, 12, 2.0),
    "dpf": (12, 2.0, 12, 2.0),
    "random": (12, 2.0, 12, 2.0),
    "random-erk": (12, 2.0, 12, 2.0),
    "snip": (13, 13 * 16 / 96, 13, 2 + 16 / 96),
    "grasp": (13, 13 * 16 / 96, 33, 2 + 21 * 16 / 96),  # seven batches hold its hundred samples, three passes each
    "grasp-rounds": (13, 13 * 16 / 96, 12 + 210, 2 + 210 * 16 / 96),
    "synflow": (13, 292 * 13 / 112 / 96, 112, 2 + 100 / 96),
    "snip-pretrained": (13, 13 * 16 / 96, 18, 3.0),
    "grasp-pretrained": (13, 13 * 16 / 96, 30, 5.0),
    "synflow-pretrained": (13, 292 * 13 / 112 / 96, 112, 2 + 100 / 96),
    "synflow-released": (13, 292 * 13 / 112 / 96, 112, 2 + 100 / 96),
    "hydra": (24, 4.0, 24, 4.0),
    "hydra-global": (24, 4.0, 24, 4.0),
    "movement": (12, 2.0, 12, 2.0),
    "woodfisher": (12, 2.0, 12 + 6 * 4, 2 + 6 * 4 / 6),
    "woodfisher-oneshot": (12, 2.0, 12 + 6, 3.0),
    "str": (12, 2.0, 12, 2.0),
    "powerprop": (12, 2.0, 12, 2.0),
    "rigl": (12, 2.0, 12, 2.0),
    "set": (12, 2.0, 12, 2.0),
    "iter-magnitude": (12, 2.0, 12, 2.0),
    "iter-spode": (22, 22 / 6, 22, 22 / 6),
    "iter-snip": (22, 22 / 6, 22, 22 / 6),
    "iter-grasp": (22, 22 / 6, 12 + 10 * 21, (12 + 10 * 21) / 6),
    "iter-synflow": (22, 292 * 22 / 112 / 96, 112, 2 + 100 / 96),
    "iter-magnitude-released": (12, 2.0, 12, 2.0),
    "iter-spode-released": (22, 22 / 6, 22, 22 / 6),
    "iter-snip-released": (22, 22 / 6, 12 + 10 * 6, 2 + 10.0),
    "iter-grasp-released": (22, 22 / 6, 12 + 10 * 18, 2 + 30.0),
    "iter-synflow-released": (22, 292 * 22 / 112 / 96, 112, 2 + 100 / 96),
    "probmask": (36, 6.0, 60, 10.0),
}


def test_the_table_of_costs_is_complete() -> None:
    assert set(COSTS) == set(EVERY) and len(imp_ladder(SPARSITY, SMALL.imp_rate)) == 3


@pytest.mark.parametrize("method", ABLATIONS)
def test_ablations_keep_the_same_number_and_cost_what_is_forecast(bench: Workbench, method: str) -> None:
    model, row = run_model(config(method), bench)
    total = row["result"]["total"]
    assert row["result"]["kept"] == sk.masks(model).count() == kept_count(total, SPARSITY)
    predicted = as_method(method).passes(SMALL, SPARSITY, bench.epoch_images)
    assert row["cost"]["dense_epochs"] == pytest.approx(predicted, rel=1e-12)
    assert row["cost"]["steps"] == total_steps(config(method), bench)


def test_more_dense_training_prunes_nothing(bench: Workbench) -> None:
    _, row = run_model(config("dense@2", sparsity=0.0), bench)
    assert row["result"]["kept"] == row["result"]["total"] and row["cost"]["dense_epochs"] == 4
    with pytest.raises(ValueError, match="method: dense: expected sparsity 0, got 0.5"):
        run_model(config("dense", sparsity=0.5), bench)


def test_what_happens_before_training_on(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def stop(self: Any, model: Any, *rest: Any, **others: Any) -> Any:
        seen["masks"], seen["weights"] = sk.masks(model), copied(sk.dense_state_dict(model))
        raise ValueError("far enough")

    monkeypatch.setattr(Workbench, "fit", stop)
    found = {}
    for method in ("bip-finetune", "bip-shuffled", "bip-reinit"):
        with pytest.raises(ValueError, match="far enough"):
            run_model(config(method), bench)
        found[method] = dict(seen)
    plain, shuffled, reset = (found[name] for name in ("bip-finetune", "bip-shuffled", "bip-reinit"))
    counts = {name: mask.count() for name, mask in plain["masks"].items()}
    assert {name: mask.count() for name, mask in shuffled["masks"].items()} == counts
    assert all(shuffled["masks"][name] != plain["masks"][name] for name in counts)
    assert reset["masks"] == plain["masks"]
    init, masks = bench.dense(0).init, plain["masks"]
    for name, value in reset["weights"].items():
        layer = name.removesuffix(".weight")
        expected = torch.where(masks[layer].dense(), init[name], 0) if name.endswith("weight") else init[name]
        assert torch.equal(value, expected)


@pytest.mark.parametrize("method", EVERY)
def test_costs_by_hand_and_by_forecast(all_rows: dict[str, Any], bench: Workbench, method: str) -> None:
    cost, steps = all_rows[method]["row"]["cost"], all_rows[method]["steps"]
    found = (cost["steps"], cost["epochs"], cost["passes"], cost["dense_epochs"])
    assert found == pytest.approx(COSTS[method], rel=1e-12)
    predicted = as_method(method).passes(SMALL, SPARSITY, bench.epoch_images)
    assert cost["dense_epochs"] == pytest.approx(predicted, rel=1e-12)
    assert cost["steps"] == total_steps(config(method), bench) == len(steps) and set(steps) == {cost["steps"]}
    assert cost["passes_per_step"] == pytest.approx(cost["dense_epochs"] / cost["epochs"], rel=1e-12)
    assert 0 < cost["selection_seconds"] < cost["seconds"]
    busy = cost["seconds"] - cost["selection_seconds"]
    assert cost["passes"] * cost["seconds_per_pass"] == pytest.approx(busy, rel=1e-9)
    assert busy * cost["selection_factor"] == pytest.approx(cost["seconds"], rel=1e-9)


@pytest.mark.parametrize("method", [m for m in EVERY if m != "imp"])
def test_the_four_factors_multiply_to_the_ratio(all_rows: dict[str, Any], method: str) -> None:
    rows = [all_rows["imp"]["row"], all_rows[method]["row"]]
    found = speedup(rows, method, "imp", sparsity=SPARSITY)
    assert found and found.factors and found.checkpoint.seconds and found.checkpoint.work
    seconds = [row["cost"]["seconds"] for row in rows]
    assert found.factors.product == pytest.approx(seconds[0] / seconds[1], rel=1e-9)
    assert found.factors.product == pytest.approx(found.checkpoint.seconds.value, rel=1e-9)
    assert found.checkpoint.work.value == pytest.approx(COSTS["imp"][3] / COSTS[method][3], rel=1e-9)
    assert found.pretraining.work and found.pretraining.work.baseline == pytest.approx(3 + 6, rel=1e-9)


def test_rows_are_json_and_say_what_was_run(all_rows: dict[str, Any]) -> None:
    for method, found in all_rows.items():
        row = found["row"]
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        assert (row["id"], row["method"], row["seed"]) == (config(method).id, method, 0)
        assert row["config"] == as_json(SMALL) and row["environment"]["torch"] == str(torch.__version__)
        assert row["dense"]["epochs"] == 3


def test_forecast_in_dense_equivalent_epochs(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "PROBE_STEPS", 2)
    times = iter([10.0, 14.0])
    monkeypatch.setattr(forecast, "clock", lambda device: next(times))
    rows, dense = forecast.forecast([config(m) for m in EVERY], bench)
    epoch = 4.0 / 2 * 6  # seconds: two steps took four, an epoch has six
    assert dense == pytest.approx(3 * epoch)
    for row in rows:
        assert row.dense_epochs == pytest.approx(COSTS[row.config.method][3], rel=1e-12)
        assert row.seconds == pytest.approx(row.dense_epochs * epoch, rel=1e-12)


# Honesty


@pytest.mark.parametrize("method", EVERY)
def test_nothing_is_evaluated_while_training(bench: Workbench, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    bench.dense(0)
    looks: list[tuple[str, int]] = []
    steps: list[int] = []

    class Counting(Silent):
        def run(self, config: RunConfig, total: int) -> Callable[[], None]:
            return lambda: steps.append(1)

    def look(model: Any, data: Any, split: str, precision: str) -> float:
        looks.append((split, len(steps)))
        return 0.5

    monkeypatch.setattr(engine, "accuracy", look)
    blind, _ = run_model(config(method), bench, Counting())
    end = COSTS[method][0]
    tuned = [end - 12] if METHODS[method].finetune else [end] if method.startswith("bip") else []
    before = {"oneshot": [0], "spode": [3], "spode-bip": [3]}.get(method, tuned)
    assert looks == [("test", at) for at in before] + [("val", end), ("test", end)]
    monkeypatch.undo()
    seeing, _ = run_model(config(method), bench)  # looking changes nothing
    assert equal(copied(blind.state_dict()), copied(seeing.state_dict()))


# Rows on disk: skipping, failing, resuming


class Log(Silent):
    def __init__(self) -> None:
        self.seen: list[tuple[str, bool, bool]] = []

    def finished(self, config: RunConfig, row: Any, skipped: bool) -> None:
        self.seen.append((config.method, skipped, "error" in row))


def files(folder: Path) -> list[dict[str, Any]]:
    return read_rows(folder / ROWS)


def test_finished_runs_are_skipped(bench: Workbench, tmp_path: Path) -> None:
    runs, log, told = [config("oneshot"), config("omp")], Log(), []
    rows = compare(runs, tmp_path, log, bench, told.append)
    assert told == rows and files(tmp_path) == rows
    again = compare([*runs, config("bip")], tmp_path, log, bench)
    assert again[:2] == rows and len(files(tmp_path)) == 3
    assert [skipped for _, skipped, _ in log.seen] == [False, False, True, True, False]
    assert compare([config("omp")], tmp_path) == rows[1:]  # no workbench is made where nothing is left to do


def fail_with(error: BaseException) -> Callable[[Any], Any]:
    def build(start: Any) -> Any:
        raise error

    return build


@pytest.mark.parametrize("error", [ValueError("no luck"), RuntimeError("out of memory")])
def test_a_failed_run_leaves_an_error_and_is_tried_again(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    runs, log = [config("omp"), config("imp"), config("oneshot")], Log()
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "imp", replace(METHODS["imp"], build=fail_with(error)))
        rows = compare(runs, tmp_path, log, bench)
    assert [("error" in row, "result" in row) for row in rows] == [(False, True), (True, False), (False, True)]
    assert rows[1]["error"] == str(error) and rows[1]["id"] == runs[1].id and rows[1]["config"] == as_json(SMALL)
    rows = compare(runs, tmp_path, log, bench)
    assert all("result" in row for row in rows) and len(files(tmp_path)) == 4
    assert [x[1:] for x in log.seen] == [(False, False), (False, True), (False, False)] + [
        (True, False),
        (False, False),
        (True, False),
    ]


def test_a_loss_that_blows_up_is_a_failed_run(tmp_path: Path, bench: Workbench) -> None:
    runs = [config(method, lr=1e20) for method in ("bip", "imp", "spode", "omp")]
    wild = Workbench(runs[0].recipe, tmp_path)
    wild._dense[0], wild._warm = bench.dense(0), {"dense"}
    rows = compare([*runs, runs[0]], tmp_path, bench=wild)
    assert all("expected" in row["error"] and "NaN or inf" in row["error"] for row in rows)


def test_a_workbench_of_another_recipe_is_refused(bench: Workbench) -> None:
    with pytest.raises(ValueError, match="compare: configs: expected the recipe of the workbench"):
        run_model(config("bip", lr=0.5), bench)


def test_an_interrupted_comparison_goes_on_where_it_was(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [config("oneshot"), config("bip"), config("spode")]
    whole = compare(runs, tmp_path / "whole", bench=bench)

    class Interrupting(Silent):
        def run(self, config: RunConfig, steps: int) -> Callable[[], None]:
            left = iter(range(5))

            def on_step() -> None:
                if config.method == "bip" and next(left) == 4:
                    raise KeyboardInterrupt

            return on_step

    with pytest.raises(KeyboardInterrupt):
        compare(runs, tmp_path / "cut", Interrupting(), bench)
    assert [row["method"] for row in files(tmp_path / "cut")] == ["oneshot"]
    log = Log()
    rows = compare(runs, tmp_path / "cut", log, Workbench(SMALL, bench.out))
    assert [skipped for _, skipped, _ in log.seen] == [True, False, False]
    assert [row["result"] for row in rows] == [row["result"] for row in whole]
    assert [row["id"] for row in files(tmp_path / "cut")] == [run.id for run in runs]


def test_a_line_cut_by_a_killed_process_is_run_again(bench: Workbench, tmp_path: Path) -> None:
    rows = compare([config("oneshot"), config("omp")], tmp_path, bench=bench)
    file = tmp_path / ROWS
    file.write_bytes(file.read_bytes()[:-40])
    again = compare([config("oneshot"), config("omp")], tmp_path, bench=bench)
    assert [row["result"] for row in again] == [row["result"] for row in rows] and len(files(tmp_path)) == 2


def test_a_row_made_under_other_defaults_does_not_count(bench: Workbench, tmp_path: Path) -> None:
    (row,) = compare([config("oneshot")], tmp_path, bench=bench)
    other = row | {"config": row["config"] | {"epochs": 20}}
    (tmp_path / ROWS).write_text(json.dumps(other) + "\n")
    assert compare([config("oneshot")], tmp_path, bench=bench)[0]["config"]["epochs"] == 2
    older = {name: value for name, value in row["config"].items() if name != "radius"}  # before there was a radius
    (tmp_path / ROWS).write_text(json.dumps(row | {"config": older}) + "\n")
    assert compare([config("oneshot")], tmp_path, bench=bench)[0]["config"] == older


def test_a_folder_that_is_a_file_is_told_before_any_run(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OSError):
        compare([config("oneshot")], tmp_path / "out", bench=bench)


def test_adopted_weights_are_where_every_method_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Workbench(SMALL, tmp_path)
    donor = bench.network(8)
    sk.sparsify(donor)
    bench.adopt(0, sk.save(donor, tmp_path / "mine"))
    bench.warm_up()
    spy = Spy(monkeypatch, bench)
    for method in ("bip", "omp"):
        _, row = run_model(config(method), bench)
        assert row["dense"]["epochs"] == 0 and row["dense"]["seconds"] == 0
    assert all(equal(state, bench.network(8).state_dict()) for state in spy.dense)
    assert all(equal(init, bench.network(0).state_dict()) for init in spy.init)


def test_skipped_layers_are_never_pruned(tmp_path: Path) -> None:
    run = config("bip", skip=("5", "1"))
    model, row = run_model(run, Workbench(run.recipe, tmp_path))
    assert list(sk.masks(model)) == ["3"]
    assert row["result"]["total"] == 256 * 128 and row["result"]["kept"] == kept_count(256 * 128, SPARSITY)


def test_runs_are_functions_of_their_configuration(bench: Workbench) -> None:
    for method in ("spode", "bip-1pass", "imp-budget"):
        torch.manual_seed(1)
        one, first = run_model(config(method), bench)
        torch.manual_seed(2)
        two, second = run_model(config(method), bench)
        assert equal(copied(one.state_dict()), copied(two.state_dict())) and first["result"] == second["result"]
    assert copy.deepcopy(first["result"])["mask_hash"] == second["result"]["mask_hash"]
