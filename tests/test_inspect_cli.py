# SPDX-License-Identifier: Apache-2.0
"""``sparsekit inspect`` and ``sparsekit diff`` as a user meets them: text, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("scipy")

from command_line import run  # noqa: E402

import sparsekit as sk  # noqa: E402
from sparsekit.benchmarks.rows import append_row  # noqa: E402


def row(method: str, seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    result = {
        "kept": 100,
        "total": 1000,
        "sparsity": 0.9,
        "mask_hash": f"{method}{seed}" * 4,
        "test_accuracy": accuracy,
    }
    head = {"kind": "compare", "id": f"{method}-{seed}", "method": method, "sparsity": 0.9, "seed": seed}
    cost = {"seconds": 2.0 + seed, "dense_epochs": 6.0}
    return head | {"config": {"epochs": 6}, "result": result, "cost": cost} | changes


@pytest.fixture
def model() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 10))
    sk.sparsify(model)
    weights = {name: layer.weight.detach() for name, layer in sk.masked_layers(model).items()}
    sk.set_masks(model, sk.Projection("filter", "uniform")(weights, 0.5).masks)
    return model


@pytest.fixture
def folder(model: nn.Module, tmp_path: Path) -> Path:
    return sk.save(model, tmp_path / "a")


def test_inspect_shows_layers_totals_and_hash(model: nn.Module, folder: Path) -> None:
    result = run("inspect", folder, "--check")
    assert result.exit_code == 0 and result.stderr == ""
    for text in ("8x3x3x3", "filter", "108", "50.00%", "4,0", sk.masks(model).hash(), "harmless", "nothing wrong"):
        assert text in result.stdout, text
    assert all(len(line) <= 90 for line in result.stdout.splitlines())


def test_inspect_as_json(model: nn.Module, folder: Path) -> None:
    facts = json.loads(run("inspect", folder, "--json").stdout)
    assert set(facts) == {"schema", "kind", "path", "ok", "problems", "checkpoint", "rows"}
    assert facts["ok"] and facts["rows"] == [] and facts["checkpoint"]["mask_hash"] == sk.masks(model).hash()
    assert [layer["name"] for layer in facts["checkpoint"]["layers"]] == ["0", "2"]
    only = json.loads(run("inspect", folder, "--json", "--layers", "2").stdout)["checkpoint"]
    assert [layer["name"] for layer in only["layers"]] == ["2"] and only["kept"] == facts["checkpoint"]["kept"]


def test_check_fails_on_a_broken_checkpoint(model: nn.Module, tmp_path: Path) -> None:
    sk.set_masks(model, {"0": ~sk.Mask.full((8, 3, 3, 3))})
    folder = sk.save(model, tmp_path / "b")
    assert run("inspect", folder).exit_code == 0
    result = run("inspect", folder, "--check")
    assert result.exit_code == 1 and "wrong: 0: keeps none of 216 weights" in result.stdout
    result = run("inspect", folder, "--check", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["ok"] is False


def test_inspect_lists_the_rows_of_a_run(tmp_path: Path) -> None:
    error = {key: value for key, value in row("bip", 1, 0.9).items() if key not in ("result", "cost")}
    for one in (row("bip[x]", 0, 0.91, dense={"test_accuracy": 0.95}), error | {"error": "no [bold]luck[/bold]"}):
        append_row(tmp_path / "rows.jsonl", one)
    result = run("inspect", tmp_path, "--check")
    assert result.exit_code == 1
    for text in ("bip[x]", "91.00%", "95.00%", "failed", "seed 1: failed: no [bold]luck[/bold]"):
        assert text in result.stdout, text
    assert [r["seed"] for r in json.loads(run("inspect", tmp_path, "--json").stdout)["rows"]] == [0, 1]


def test_names_that_look_like_markup(tmp_path: Path) -> None:
    model = nn.ModuleDict({"[red]x": nn.Linear(4, 4)})
    sk.sparsify(model)
    assert "[red]x" in run("inspect", sk.save(model, tmp_path)).stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "read_run: path: expected a folder with model.safetensors"),
        (["FOLDER", "--layers", "fc*"], "inspect: layers: expected a glob that matches one of 0, 2, got 'fc*'"),
        (["FOLDER/sparsity.json"], "load: path: expected a readable safetensors file"),
    ],
)
def test_bad_input_of_inspect(folder: Path, arguments: list[str], message: str) -> None:
    result = run("inspect", *(word.replace("FOLDER", str(folder)) for word in arguments))
    assert result.exit_code == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert message in result.stderr


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("pruned")
    sizes = ("--network", "mlp", "--limit", "32", "--dense-epochs", "1", "--epochs", "1", "--batch-size", "16")
    assert run("prune", *sizes, "--method", "random-erk", "--sparsity", "0.98", "--out", folder).exit_code == 0
    return folder


def test_paths_of_a_run(pruned: Path) -> None:
    text = run("inspect", pruned).stdout
    assert "kept weights are on no path from input to output; effective sparsity 98." in text
    assert "effective" in text and max(map(len, text.split("paths:")[0].splitlines())) <= 90
    found = json.loads(run("inspect", pruned, "--json").stdout)["checkpoint"]
    assert 0 < found["effective"] < found["kept"] == sum(layer["erk"] for layer in found["layers"])
    assert found["effective"] == sum(layer["effective"] for layer in found["layers"])
    assert any(layer["cut_outputs"] > layer["dead_outputs"] for layer in found["layers"])


def test_paths_are_left_out_by_name(pruned: Path, folder: Path, tmp_path: Path) -> None:
    assert "paths:   not traced: not asked for" in run("inspect", pruned, "--no-paths").stdout
    assert "paths:   not traced: no row says which network it is" in run("inspect", folder).stdout
    text = (pruned / "run.json").read_text()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "run.json").write_text(text.replace('"mlp"', '"os:system"'))
    (foreign / "model.safetensors").write_bytes((pruned / "model.safetensors").read_bytes())
    result = run("inspect", foreign)
    assert result.exit_code == 0 and "paths:   not traced: network: expected one of sparsekit's own" in result.stdout


# diff


@pytest.fixture
def other(model: nn.Module, tmp_path: Path) -> Path:
    kept = sk.masks(model)["2"].dense()
    kept[kept.any(1).nonzero()[0], :5] = False
    sk.set_masks(model, {"2": sk.Mask.from_dense(kept)})
    return sk.save(model, tmp_path / "b")


def test_diff_of_checkpoints(folder: Path, other: Path) -> None:
    result = run("diff", folder, other)
    assert result.exit_code == 0 and "not identical" in result.stdout and "1.0000" in result.stdout
    facts = json.loads(run("diff", folder, other, "--json").stdout)
    assert facts["identical_masks"] is False and facts["runs"] is None
    conv, linear = facts["masks"]["layers"]
    assert (conv["only_a"], conv["only_b"], linear["only_a"], linear["only_b"]) == (0, 0, 5, 0)
    assert linear["iou"] == pytest.approx(155 / 160)


def test_diff_check(folder: Path, other: Path) -> None:
    assert run("diff", folder, folder, "--check").exit_code == 0
    assert run("diff", folder, other, "--check").exit_code == 1


def test_diff_of_runs(tmp_path: Path) -> None:
    for seed in range(5):
        append_row(tmp_path / "a.jsonl", row("imp", seed, 0.9 + seed / 1000))
        append_row(tmp_path / "b.jsonl", row("bip", seed, 0.92 + seed / 2000, config={"epochs": 8}))
    result = run("diff", tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert result.exit_code == 0
    for text in ("IMP to BiP at 90.00%: b - a +1.90 points (95 %: +1.80 to +2.00)", "non-inferior", "0 of 5"):
        assert text in result.stdout, text
    assert "setting epochs: 6 in a, 8 in b" in result.stdout
    facts = json.loads(run("diff", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--json").stdout)
    assert facts["runs"]["pairs"][0]["seeds"] == [0, 1, 2, 3, 4] and facts["masks"] is None


def test_diff_of_the_same_rows_is_identical(tmp_path: Path) -> None:
    append_row(tmp_path / "a.jsonl", row("imp", 0, 0.9))
    assert run("diff", tmp_path / "a.jsonl", tmp_path / "a.jsonl", "--check").exit_code == 0


def test_nothing_to_compare(folder: Path, tmp_path: Path) -> None:
    append_row(tmp_path / "a.jsonl", row("imp", 0, 0.9))
    result = run("diff", folder, tmp_path / "a.jsonl")
    assert result.exit_code == 2 and "diff: b: expected rows of a method that a has, or masks in both" in result.stderr
    torch.manual_seed(0)
    small = nn.Linear(3, 3)
    sk.sparsify(small)
    result = run("diff", folder, sk.save(small, tmp_path / "c"))
    assert result.exit_code == 2 and "expected layers of a (0, 2)" in result.stderr
