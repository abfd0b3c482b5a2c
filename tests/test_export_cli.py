# SPDX-License-Identifier: Apache-2.0
"""``sparsekit export``: where the network comes from, what is printed, and how it fails."""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("scipy")

import command_line  # noqa: E402

import sparsekit as sk  # noqa: E402
from sparsekit.benchmarks.networks import build_network  # noqa: E402
from sparsekit.benchmarks.recipe import Recipe, as_json  # noqa: E402
from sparsekit.benchmarks.rows import append_row  # noqa: E402

SIZES = ["--classes", "10", "--channels", "1", "--image-size", "8"]


run = partial(command_line.run, "export")


def pruned(network: str = "mlp") -> torch.nn.Module:
    model = build_network(network, classes=10, channels=1, image_size=8, seed=3)
    sk.sparsify(model)
    weights = {name: layer.weight.detach() for name, layer in sk.masked_layers(model).items()}
    sk.set_masks(model, sk.Projection()(weights, 0.8).masks)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sk.save(pruned(), tmp_path / "run")


def record(folder: Path, mask_hash: str, network: str = "mlp", accuracy: float = 0.9) -> None:
    config = as_json(Recipe(network=network))
    result = {"kept": 1, "total": 5, "sparsity": 0.8, "mask_hash": mask_hash[:16], "test_accuracy": accuracy}
    row = {"kind": "compare", "id": mask_hash, "method": "bip", "sparsity": 0.8, "seed": 0, "config": config}
    cost = {"seconds": 1.0, "dense_epochs": 2.0}
    append_row(folder / "rows.jsonl", row | {"result": result, "cost": cost, "dense": {"test_accuracy": 0.95}})


def test_a_named_network(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    result = run(folder, out, "--network", "mlp", *SIZES)
    assert result.exit_code == 0 and result.stdout.startswith("wrote:   ") and "safetensors" in result.stdout
    plain = build_network("mlp", classes=10, channels=1, image_size=8, seed=0)
    plain.load_state_dict(load_file(out), strict=True)


def test_the_recorded_network_is_that_of_the_masks(folder: Path, tmp_path: Path) -> None:
    record(folder, "0" * 64, network="convnet", accuracy=0.1)
    record(folder, sk.masks(pruned()).hash(), accuracy=0.9125)
    record(folder, "1" * 64, network="convnet", accuracy=0.1)
    result = run(folder, tmp_path / "hub", "--to", "hub")
    assert result.exit_code == 0, result.output
    config, card = (tmp_path / "hub" / "config.json").read_text(), (tmp_path / "hub" / "README.md").read_text()
    assert json.loads(config)["network"] == "mlp" and json.loads(config)["recipe"]["epochs"] == 6
    assert "| test accuracy | 0.9125 |" in card and "# mlp, pruned" in card


def test_a_model_of_the_user_and_json(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from sparsekit.benchmarks.networks import build_network\n"
        "def net():\n    return build_network('mlp', classes=10, channels=1, image_size=8, seed=0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = run(folder, tmp_path / "a.pt2", "--model", "mine:net", "--input-shape", "1,8,8", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert set(facts) == {"schema", "kind", "path", "format", "file_bytes", "difference", "batches"}
    assert facts["format"] == "torch-export" and facts["batches"] == [1, 2, 3]
    sys.modules.pop("mine")


def test_a_checkpoint_without_masks(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "a.safetensors", "--network", "mlp", *SIZES).exit_code == 0
    again = run(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--network", "mlp", *SIZES)
    assert again.exit_code == 0
    first, second = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--network: expected the network of the checkpoint, as no recipe is recorded there, got none"),
        (["--network", "mlp"], "--classes: expected a number, as no recipe is recorded, got none"),
        (
            ["--network", "mlp", *SIZES, "--to", "pb"],
            "export: to: expected one of safetensors, torch-export, onnx, hub, compact",
        ),
        (["--network", "nothing", *SIZES], "build_network: name: expected one of mlp"),
        (["--network", "convnet", *SIZES], "load: path: expected the model's keys"),
        (["--network", "mlp", *SIZES, "--input-shape", "1,x"], "--input-shape: expected comma-separated int values"),
        (["--network", "mlp", *SIZES, "--input-shape", "0"], "--input-shape: expected integers >= 1"),
        (["--network", "mlp", *SIZES, "--input-shape", "3,3", "--to", "onnx"], "expected inputs that the model takes"),
    ],
)
def test_bad_input(folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run(folder, tmp_path / "out.safetensors", *arguments)
    assert result.exit_code == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_rows_alone_cannot_be_exported(tmp_path: Path) -> None:
    record(tmp_path, "0" * 64)
    result = run(tmp_path, tmp_path / "a.pt2")
    assert result.exit_code == 2 and "export: source: expected a checkpoint, got rows alone" in result.stderr


def test_a_failed_check_gives_exit_code_1(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def program(plain: Any, inputs: Any, file: str) -> Any:
        return lambda x: plain(x) + 1

    monkeypatch.setattr(importlib.import_module("sparsekit.export"), "_program", program)
    result = run(folder, tmp_path / "a.pt2", "--network", "mlp", *SIZES)
    assert result.exit_code == 1 and result.stdout == "" and result.stderr.startswith("failed: export: torch-export:")
    assert not (tmp_path / "a.pt2").exists()


def test_compact(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    model = build_network("convnet", classes=10, channels=1, image_size=8, seed=3)
    x = torch.randn(2, 1, 8, 8)
    sk.sparsify(model)
    weights = {name: layer.weight.detach() for name, layer in sk.masked_layers(model).items()}
    sk.set_masks(model, sk.Projection(sk.coupled_filters(model, x), "uniform")(weights, 0.5).masks)
    folder, out = sk.save(model, tmp_path / "run"), tmp_path / "small"
    arguments = [folder, out, "--to", "compact", "--network", "convnet", *SIZES]
    result = run(*arguments, "--silence-batchnorm")
    assert result.exit_code == 0 and "parameters: " in result.stdout and "sk.load_compact" in result.stdout, (
        result.output
    )
    full = build_network("convnet", classes=10, channels=1, image_size=8, seed=0)
    small = sk.load_compact(full, out).eval()
    sk.silence_batchnorm_(model, x)
    torch.testing.assert_close(small(x), model.eval()(x), rtol=1e-5, atol=1e-5)
    report = json.loads(run(*arguments, "--silence-batchnorm", "--json").stdout)
    assert report["format"] == "compact" and report["layers"][0]["outputs"]["removed"] == 16
    keys = {"schema", "kind", "path", "format", "file_bytes", "difference", "batches"}
    assert set(report) == keys | {"layers", "parameters", "flops", "silenced"} and report["batches"] == [1, 2, 3]
    assert report["file_bytes"] == sum(path.stat().st_size for path in out.iterdir())
    refused = run(folder, tmp_path / "a.safetensors", "--silence-batchnorm", "--network", "convnet", *SIZES)
    assert refused.exit_code == 2 and "--silence-batchnorm: expected --to compact" in refused.output
