# SPDX-License-Identifier: Apache-2.0
"""ablate: variants differ in what they should, pair up, resume bit by bit, and leave the run's folder alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsekit as sk
from sparsekit.benchmarks import ablation
from sparsekit.benchmarks.ablation import ablate, open_ticket
from sparsekit.benchmarks.ablation_report import ablation_json, write_ablation
from sparsekit.benchmarks.ablation_variants import DEFAULT, VARIANTS, drawn
from sparsekit.benchmarks.compare import Workbench
from sparsekit.benchmarks.keeper import Interrupted
from sparsekit.benchmarks.one_run import PRUNE, run_model
from sparsekit.benchmarks.recipe import Recipe, RunConfig
from sparsekit.benchmarks.reporting.ablation import summarise_ablation
from sparsekit.benchmarks.rows import Row, read_rows
from sparsekit.benchmarks.run_folder import RunFile

pytest.importorskip("sklearn")
RECIPE = Recipe(network="mlp", limit=64, dense_epochs=2, epochs=2, batch_size=16)


def pruned(folder: Path, method: str = "oneshot", recipe: Recipe = RECIPE, weights: Path | None = None) -> Row:
    """What ``sparsekit prune`` leaves behind."""
    config = RunConfig(method, 0.8, 3, recipe)
    bench = Workbench(recipe, folder)
    if weights is not None:
        bench.adopt(3, weights)
        bench.keep_adopted(3)
    model, row = run_model(config, bench)
    sk.save(model, folder)
    RunFile(config, 1, ".data", "0" * 64 if weights else None, row).write(folder)
    return row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run") / "a"
    pruned(place)
    return place


def files(folder: Path) -> dict[str, tuple[str, int]]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in found}


def by_name(rows: list[Row]) -> dict[tuple[str, int], Row]:
    return {(row["variant"], row["seed"]): row for row in rows}


def test_every_variant_has_its_masks_and_the_folder_stays(folder: Path, tmp_path: Path) -> None:
    before = files(folder)
    ticket, bench = open_ticket(folder, tmp_path)
    rows = by_name(ablate(ticket, bench, [*VARIANTS], seeds=2))
    assert files(folder) == before
    assert list(rows) == [(name, seed) for seed in (3, 4) for name in VARIANTS]
    assert all("result" in row for row in rows.values()), rows
    own = sk.inspect(folder)
    for (name, seed), row in rows.items():
        result = row["result"]
        uneven = name == "random-uniform"
        assert abs(result["kept"] - own.kept) <= (2 if uneven else 0) and result["total"] == own.total
        same = name in ("control", "reinit", "rewound")
        assert (result["mask_hash"] == own.mask_hash[:16]) == same == (result["overlap"] == 1)
        assert row["cost"]["epochs"] == 2 and row["cost"]["steps"] == 8, (name, seed)
    hashes = {row["result"]["mask_hash"] for row in rows.values()}
    # Two draws each of four, one inverted, and the run's own.
    assert len(hashes) == 10
    assert read_rows(tmp_path / "rows.jsonl") == list(rows.values())
    assert rows["reinit", 3]["result"]["test_accuracy_before"] != rows["control", 3]["result"]["test_accuracy_before"]


def test_the_control_repeats_fine_tuning_bit_by_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One-shot magnitude trains on the batches of the first phase, by a pruner of its own.
    monkeypatch.setattr(ablation, "FINETUNE", PRUNE)
    ticket, bench = open_ticket(folder, tmp_path)
    trained = caught(monkeypatch, bench)
    (row,) = ablate(ticket, bench, [], seeds=1)
    stored = sk.load(sparse(bench), folder).state_dict()
    assert all(torch.equal(value, trained[-1][name]) for name, value in stored.items())
    assert row["result"]["test_accuracy"] == row["run"]["test_accuracy"]
    assert row["result"]["mask_hash"] == row["run"]["mask_hash"]


def sparse(bench: Workbench) -> torch.nn.Module:
    model = bench.network(0)
    sk.sparsify(model)
    return model


def caught(monkeypatch: pytest.MonkeyPatch, bench: Workbench) -> list[dict[str, torch.Tensor]]:
    """The states of all networks whose accuracy is taken from now on."""
    real, states = bench.accuracy, []

    def accuracy(model: torch.nn.Module, split: str) -> float:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return real(model, split)

    monkeypatch.setattr(bench, "accuracy", accuracy)
    return states


def test_what_each_variant_begins_with(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket, bench = open_ticket(folder, tmp_path)
    states = caught(monkeypatch, bench)
    ablate(ticket, bench, ["shuffled", "reinit", "rewound"], seeds=1)
    # Of each variant one before, and two after the training.
    control, shuffled, reinit, rewound = (state["1.weight"] for state in states[::3])
    assert torch.equal(control, ticket.state["1.weight"]) and torch.equal(shuffled, control)
    assert torch.equal(rewound, bench.network(3).state_dict()["1.weight"])
    assert not torch.equal(reinit, rewound) and abs(float(reinit.std() / rewound.std()) - 1) < 0.1


def test_rows_are_not_made_twice_and_failures_are_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket, bench = open_ticket(folder, tmp_path)
    real = sk.shuffled
    monkeypatch.setitem(VARIANTS, "shuffled", ablation_variant(lambda t, seed: fail()))
    rows = by_name(ablate(ticket, bench, ["shuffled", "inverted"], seeds=1))
    assert rows["shuffled", 3]["error"] == "no luck" and "result" in rows["inverted", 3]
    monkeypatch.setitem(VARIANTS, "shuffled", ablation_variant(lambda t, seed: real(t.masks, seed)))
    told: list[tuple[str, bool]] = []
    again = by_name(
        ablate(ticket, bench, ["shuffled", "inverted"], 1, lambda row, known: told.append((row["variant"], known)))
    )
    assert told == [("control", True), ("shuffled", False), ("inverted", True)]
    assert "result" in again["shuffled", 3] and again["inverted", 3] == rows["inverted", 3]
    found = summarise_ablation(read_rows(tmp_path / "rows.jsonl"))
    assert [(line.variant, line.failed) for line in found.lines] == [
        ("control", ()),
        ("shuffled", ()),
        ("inverted", ()),
    ]


def ablation_variant(masks: Any) -> Any:
    return type(VARIANTS["control"])("a test", masks)


def fail() -> Any:
    raise ValueError("no luck")


def test_interrupted_training_goes_on_bit_by_bit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket, bench = open_ticket(folder, tmp_path / "whole")
    whole = caught(monkeypatch, bench)
    ablate(ticket, bench, ["shuffled"], seeds=1)
    ticket, bench = open_ticket(folder, tmp_path / "cut", every=0)
    steps = iter(range(100))

    def stop_at_11() -> None:
        if next(steps) == 11:  # within the second variant
            bench.stop.number = 15

    with pytest.raises(Interrupted):
        ablate(ticket, bench, ["shuffled"], seeds=1, on_step=stop_at_11)
    assert len([*(tmp_path / "cut" / "unfinished").glob("*.safetensors")]) == 1
    ticket, bench = open_ticket(folder, tmp_path / "cut")
    cut, taken = caught(monkeypatch, bench), []
    rows = ablate(ticket, bench, ["shuffled"], seeds=1, on_step=lambda: taken.append(1))
    assert [row["variant"] for row in rows] == ["control", "shuffled"] and len(taken) == 8
    assert all(torch.equal(value, cut[-1][name]) for name, value in whole[-1].items())
    assert not [*(tmp_path / "cut" / "unfinished").glob("*")]


def test_two_processes_share_the_work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    ticket, bench = open_ticket(folder, tmp_path)

    @contextmanager
    def taken(self: Any, name: str) -> Any:
        yield name != ablation._head(ticket, "control", 3)["id"]

    monkeypatch.setattr(ablation.Claims, "mine", taken)
    assert [row["variant"] for row in ablate(ticket, bench, ["shuffled"], seeds=1)] == ["shuffled"]


def test_filters_stay_whole(tmp_path: Path) -> None:
    recipe = Recipe(network="convnet", limit=32, dense_epochs=1, epochs=1, batch_size=16, structure="filter")
    pruned(tmp_path / "run", recipe=recipe)
    ticket, bench = open_ticket(tmp_path / "run", tmp_path / "out")
    assert ticket.units == "filter"
    rows = ablate(ticket, bench, [name for name in DEFAULT if name != "random-erk"], seeds=1)
    assert {row["result"]["kept"] for row in rows if row["variant"] != "inverted"} == {ticket.masks.count()}
    for name in ("shuffled", "random", "random-erk", "inverted"):
        masks = VARIANTS[name].masks(ticket, 3)
        assert all(torch.equal(m.dense().flatten(1).any(1), m.dense().flatten(1).all(1)) for m in masks.values())


def test_a_budget_of_the_method_is_the_budget_of_all(tmp_path: Path) -> None:
    pruned(tmp_path / "run", "oneshot@2")
    (row,) = ablate(*open_ticket(tmp_path / "run", tmp_path / "out"), [], seeds=1)
    assert row["cost"]["epochs"] == 4 and summarise_ablation([row]).epochs == 4


def test_given_weights_are_where_all_begin_and_cannot_be_rewound(folder: Path, tmp_path: Path) -> None:
    dense = next((folder / "dense").glob("*.safetensors"))
    pruned(tmp_path / "run", weights=dense)
    ticket, bench = open_ticket(tmp_path / "run", tmp_path / "out")
    assert ticket.init is None and torch.equal(
        ticket.state["1.weight"], open_ticket(folder, tmp_path)[0].state["1.weight"]
    )
    with pytest.raises(ValueError, match="expected a run that trained its dense network for rewound"):
        ablate(ticket, bench, ["rewound"])


@pytest.mark.parametrize(
    "break_it, text",
    [
        (lambda f: (f / "run.json").unlink(), "ablate: folder: expected a folder of prune, with run.json"),
        (lambda f: (f / "run.json").write_text("{}"), "ablate: folder: expected a description in the format"),
        (lambda f: (f / "model.safetensors").unlink(), "expected a finished run with its model.safetensors"),
        (lambda f: next((f / "dense").iterdir()).unlink(), "expected the dense network that the run began with in"),
    ],
)
def test_folders_that_do_not_serve(folder: Path, tmp_path: Path, break_it: Any, text: str) -> None:
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    break_it(copy)
    with pytest.raises(ValueError, match=text):
        open_ticket(copy, tmp_path / "out")


def test_arguments_out_of_range(folder: Path, tmp_path: Path) -> None:
    for out in (folder, folder / "deep" / "er"):
        with pytest.raises(ValueError, match="ablate: out: expected a folder outside of"):
            open_ticket(folder, out)
    ticket, bench = open_ticket(folder, tmp_path)
    with pytest.raises(ValueError, match="ablate: variants: expected some of control, shuffled, .*, got 'x'"):
        ablate(ticket, bench, ["x"])
    with pytest.raises(ValueError, match="ablate: seeds: expected an int >= 1, got 0"):
        ablate(ticket, bench, seeds=0)


def rows_of(accuracies: dict[str, list[float]]) -> list[Row]:
    run = {"id": "a", "method": "bip@0.5", "sparsity": 0.9, "seed": 0, "mask_hash": "b", "test_accuracy": 0.9}
    shared = {"kind": "ablate", "run": run, "config": {"network": "mlp", "data": "digits"}, "environment": {}}
    return [
        shared
        | {"variant": name, "seed": seed, "cost": {"epochs": 3.0}}
        | {"result": {"test_accuracy": x, "test_accuracy_before": 0.1, "overlap": 0.5}}
        for name, values in accuracies.items()
        for seed, x in enumerate(values)
    ]


HIGH, LOW = [0.90, 0.91, 0.92, 0.91, 0.90], [0.80, 0.82, 0.81, 0.80, 0.82]


@pytest.mark.parametrize(
    "control, shuffled, verdict, words",
    [
        (HIGH, LOW, "yes", "+9.80 points, 95 %"),
        (HIGH[:4], LOW[:4], "not shown", "4 seeds; an answer needs 5"),
        (HIGH[:1], LOW[:1], "not shown", "one seed; an answer needs 5"),
        (LOW, HIGH, "not shown", "so it is the other way round"),
        (HIGH, [0.91, 0.90, 0.93, 0.90, 0.91], "not shown", "−0.20 points, 95 %"),
    ],
)
def test_answers(control: list[float], shuffled: list[float], verdict: str, words: str) -> None:
    (answer,) = summarise_ablation(rows_of({"control": control, "shuffled": shuffled})).answers
    assert (answer.verdict, answer.better, answer.worse) == (verdict, "control", "shuffled")
    start = f"the choice of weights matters beyond the densities of layers: {verdict} (control against shuffled: "
    assert answer.sentence.startswith(start) and words in answer.sentence


def test_differences_are_paired_by_seed_and_questions_follow_the_variants(tmp_path: Path) -> None:
    rows = rows_of({"control": HIGH, "random": LOW, "random-erk": LOW, "reinit": LOW[:3]})
    found = summarise_ablation(reversed(rows))
    assert [answer.better for answer in found.answers] == ["control", "random", "control"]
    assert [answer.worse for answer in found.answers] == ["random", "random-erk", "reinit"]
    lines = {line.variant: line for line in found.lines}
    assert lines["control"].difference is None
    assert lines["reinit"].difference is not None and lines["reinit"].difference.n == 3
    assert lines["reinit"].difference.mean == pytest.approx(-0.1)
    page = write_ablation(rows, tmp_path / "page.html").read_text()
    assert "BiP, 0.5× budget at 90" in page and page.count("<svg") == 1 and "−9.80" in page
    values = ablation_json(rows)
    assert [v["variant"] for v in values["variants"]] == ["control", "random", "random-erk", "reinit"]
    with pytest.raises(ValueError, match="expected those of one run, got those of 0"):
        summarise_ablation([])


def test_purposes_draw_from_seeds_of_their_own(folder: Path, tmp_path: Path) -> None:
    ticket, _ = open_ticket(folder, tmp_path)
    # The same seed would tie the two draws of one law to each other.
    assert VARIANTS["random"].masks(ticket, 3) == sk.random_like(ticket.masks, drawn("random", 3))
    seeds = [drawn(purpose, seed) for purpose in ("random", "erk", "reinit") for seed in range(5)]
    assert len(set(seeds)) == 15 and all(0 <= seed < 2**32 for seed in seeds)
