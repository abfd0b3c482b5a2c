# SPDX-License-Identifier: Apache-2.0
"""prune and resume: signals write a checkpoint, resume ends the run bit by bit, and bad folders are refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import sparsekit as sk
from sparsekit.benchmarks import engine, training
from sparsekit.benchmarks.keeper import Interrupted, Stop
from sparsekit.cli import app

pytest.importorskip("sklearn")
SMALL = [
    "--network",
    "mlp",
    "--limit",
    "32",
    "--dense-epochs",
    "2",
    "--epochs",
    "2",
    "--batch-size",
    "16",
    "--sparsity",
    "0.6",
]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def prune(out: Path, method: str, *options: str) -> Any:
    return run("prune", *SMALL, "--method", method, "--out", str(out), *options)


def signal_at(patch: pytest.MonkeyPatch, call: int, number: int) -> None:
    """The process gets a signal while the loss is computed for the ``call``-th time."""
    real, calls = training.cross_entropy, iter(range(1, 10_000))

    def loss(model: Any, batch: Any) -> torch.Tensor:
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return real(model, batch)

    patch.setitem(training.LOSSES, "fp32", loss)


# Three losses of the warm-up, four of the dense training, then those of the method.
@pytest.mark.parametrize(
    "method, call, where",
    [("bip", 5, "dense"), ("bip", 11, "unfinished"), ("spode", 15, "unfinished"), ("bip-finetune", 18, "unfinished")],
)
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, call: int, where: str, number: int, code: int
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert prune(whole, method).exit_code == 0
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signal_at(patch, call, number)
        result = prune(cut, method)
    assert result.exit_code == code and result.stdout == "", result.output
    assert f"interrupted: the run is kept in its folder, `sparsekit resume {cut}` goes on from there" in result.stderr
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert len([*(cut / where).glob("*.unfinished.safetensors" if where == "dense" else "*")]) == 1
    assert not (cut / "model.safetensors").exists()
    result = run("resume", str(cut))
    assert result.exit_code == 0 and "test accuracy" in result.stdout, result.output
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not any((cut / "unfinished").glob("*")) and not any((cut / "dense").glob("*unfinished*"))
    done = run("resume", str(cut), "--json")
    row = json.loads(done.stdout)
    expected = json.loads((whole / "run.json").read_text())["row"]
    assert done.exit_code == 0 and row["result"] == expected["result"]
    assert all(row["cost"][name] == expected["cost"][name] for name in ("steps", "passes", "epochs", "dense_epochs"))
    assert 0 < row["cost"]["seconds"] < 60 and row["dense"]["passes"] == expected["dense"]["passes"]
    assert run("resume", str(cut)).stdout == f"finished: {cut}\n"


def test_the_same_command_goes_on_and_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        signal_at(patch, 10, signal.SIGINT)
        assert prune(tmp_path, "bip").exit_code == 130
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    result = prune(tmp_path, "bip", "--seed", "1")
    assert result.exit_code == 2 and "expected a folder without an unfinished run of other options" in result.stderr
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    steps: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(engine.Workbench, "fit", lambda *a, **k: steps.append(1))  # the dense network is there
        assert prune(tmp_path, "bip").exit_code == 0 and not steps
    result = prune(tmp_path, "bip", "--seed", "1")
    assert result.exit_code == 2 and "got a finished one" in result.stderr
    (tmp_path / "run.json").unlink()
    assert prune(tmp_path, "bip", "--seed", "1").exit_code == 0


def test_weights_given_survive_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prune(tmp_path / "dense", "oneshot").exit_code == 0
    (dense,) = (tmp_path / "dense" / "dense").iterdir()
    options = ("--weights", str(dense))
    assert prune(tmp_path / "whole", "bip", *options).exit_code == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 5, signal.SIGTERM)
        assert prune(tmp_path / "cut", "bip", *options).exit_code == 143
    dense.unlink()
    assert run("resume", str(tmp_path / "cut")).exit_code == 0
    whole, cut = (tmp_path / name / "model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_an_interrupted_compare_goes_on_within_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--seeds", "1", "--methods", "bip,imp", *SMALL]
    assert run("compare", *options, "--out", str(tmp_path / "whole")).exit_code == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 18, signal.SIGTERM)
        assert run("compare", *options, "--out", str(tmp_path / "cut")).exit_code == 143
    assert len([*(tmp_path / "cut" / "unfinished").iterdir()]) == 1
    assert run("compare", *options, "--out", str(tmp_path / "cut")).exit_code == 0
    rows = [
        [json.loads(line) for line in (tmp_path / n / "rows.jsonl").read_text().splitlines()] for n in ("whole", "cut")
    ]
    assert [row["result"] for row in rows[0]] == [row["result"] for row in rows[1]]
    assert [row["cost"]["passes"] for row in rows[0]] == [row["cost"]["passes"] for row in rows[1]]
    assert not any((tmp_path / "cut" / "unfinished").iterdir())


def test_a_second_signal_ends_at_once() -> None:
    stop = Stop()
    with stop.installed():
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)  # nothing is running that could be kept
        stop.number, stop.waiting = 0, True
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.number == signal.SIGTERM


# Folders that are no runs


def changed(folder: Path, **values: Any) -> None:
    file = folder / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


BAD = {
    "cut": lambda folder: (folder / "run.json").write_text((folder / "run.json").read_text()[:-20]),
    "empty": lambda folder: (folder / "run.json").write_text(""),
    "deep": lambda folder: (folder / "run.json").write_text("[" * 100_000),
    "binary": lambda folder: (folder / "run.json").write_bytes(b"\x80\x04\xff"),
    "a list": lambda folder: (folder / "run.json").write_text("[]"),
    "other format": lambda folder: changed(folder, format="x"),
    "future version": lambda folder: changed(folder, version=2),
    "unknown method": lambda folder: changed(folder, method="magic"),
    "sparsity": lambda folder: changed(folder, sparsity="high"),
    "seed": lambda folder: changed(folder, seed=-1),
    "recipe": lambda folder: changed(folder, recipe={"rate": 3}),
    "recipe kind": lambda folder: changed(folder, recipe={"lr": [1]}),
    "network": lambda folder: changed(folder, recipe={"network": 3}),
    "skip": lambda folder: changed(folder, recipe={"skip": "fc"}),
    "row": lambda folder: changed(folder, row=[1]),
    "threads": lambda folder: changed(folder, threads="all"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, 10, signal.SIGINT)
        assert prune(folder, "bip").exit_code == 130
    return folder


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_bad_run_files(begun: Path, change: Any) -> None:
    good = (begun / "run.json").read_text()
    try:
        change(begun)
        before = (begun / "run.json").read_bytes()
        result = run("resume", str(begun))
        assert result.exit_code == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1, result.output
        assert result.stderr.startswith("error: resume: folder: ") and str(begun / "run.json") in result.stderr
        assert (begun / "run.json").read_bytes() == before
    finally:
        (begun / "run.json").write_text(good)


def test_a_damaged_checkpoint_is_named(begun: Path) -> None:
    (file,) = (begun / "unfinished").iterdir()
    good = file.read_bytes()
    try:
        for content in (good[:-9], good[:-3] + b"\x00\x01\x02", b""):
            file.write_bytes(content)
            result = run("resume", str(begun))
            assert result.exit_code == 2 and str(file) in result.stderr and file.read_bytes() == content
        sk.save_checkpoint(file, identity={"method": "imp"})
        result = run("resume", str(begun))
        assert result.exit_code == 2 and "expected the checkpoint of this run, got another" in result.stderr
    finally:
        file.write_bytes(good)


def test_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        result = run("resume", str(path))
        assert result.exit_code == 2 and "resume: folder: expected the folder of a run, with run.json" in result.stderr
    result = prune(tmp_path / "out", "bip", "--checkpoint-every", "-1")
    assert result.exit_code == 2 and "--checkpoint-every: expected seconds >= 0, got -1.0" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_blamed_by_its_own_side(begun: Path, tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    sk.sparsify(model)
    other = sk.save(model, tmp_path)
    for places, side in (((begun, other), "a"), ((other, begun), "b"), ((begun, begun), "a")):
        result = run("diff", *map(str, places))
        assert result.exit_code == 2 and result.stdout == "", result.output
        assert f"error: diff: {side}: expected " in result.stderr and str(begun) in result.stderr


def test_structures_are_pruned_and_survive_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = prune(whole, "oneshot", "--structure", "filter", "--json")
    row = json.loads(done.stdout)
    assert row["config"]["structure"] == "filter" and row == json.loads((whole / "run.json").read_text())["row"]
    layers = sk.inspect(whole).layers
    assert len(layers) == 2 and all(0 < layer.dead_outputs == round(0.6 * layer.shape[0]) for layer in layers)
    with monkeypatch.context() as patch:
        signal_at(patch, 9, signal.SIGINT)
        assert prune(cut, "oneshot", "--structure", "filter").exit_code == 130
    assert run("resume", str(cut)).exit_code == 0
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_finished_run_whose_model_is_gone(tmp_path: Path) -> None:
    assert prune(tmp_path, "oneshot").exit_code == 0
    assert run("inspect", str(tmp_path), "--check").exit_code == 0
    (tmp_path / "model.safetensors").unlink()
    result = run("resume", str(tmp_path))
    assert result.exit_code == 2 and "expected model.safetensors of the finished run, got none" in result.stderr
    result = run("inspect", str(tmp_path), "--check")
    assert result.exit_code == 1 and "model.safetensors is" in result.stdout
