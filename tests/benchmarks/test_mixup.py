# SPDX-License-Identifier: Apache-2.0
"""Mixup: the loss of the paper, draws that depend on seed and step alone, every phase, and runs of before unchanged."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("sklearn")

from sparsekit.benchmarks import training  # noqa: E402
from sparsekit.benchmarks.data import load_data  # noqa: E402
from sparsekit.benchmarks.engine import Workbench  # noqa: E402
from sparsekit.benchmarks.mixup import MixedStream, mixed  # noqa: E402
from sparsekit.benchmarks.one_run import run_model  # noqa: E402
from sparsekit.benchmarks.recipe import Recipe, RunConfig, as_json, from_json  # noqa: E402
from sparsekit.benchmarks.rows import read_rows  # noqa: E402
from sparsekit.benchmarks.training import loss_for, step_of  # noqa: E402
from sparsekit.pruners import capture  # noqa: E402
from sparsekit.pruners.grasp import balanced  # noqa: E402

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SMALL = Recipe(network="mlp", limit=64, dense_epochs=1, epochs=2, batch_size=16, ode_steps=2, ode_batch=32, mixup=0.4)


class Source:
    """A stream of one batch that counts its steps."""

    steps_per_epoch = 7

    def __init__(self, x: Tensor, y: Tensor, step: int = 0) -> None:
        self.batch, self.step = (x, y), step

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        self.step += 1
        return self.batch


def stream(x: Tensor, y: Tensor, alpha: float = 0.4, seed: int = 0, step: int = 0) -> MixedStream:
    return MixedStream(Source(x, y, step), alpha, 64, seed)  # pyright: ignore[reportArgumentType]


def pairs(count: int, alpha: float, size: int = 64, seed: int = 0) -> Iterator[tuple[float, list[int]]]:
    """(share, order) of the first batches, read off the labels of a batch in which every class occurs once."""
    for _, y in islice(stream(torch.zeros(size, 1), torch.arange(size), alpha, seed), count):
        y = y[:, :size]
        others = y - torch.diag(y.diagonal())
        order = [int(row.argmax()) if row.any() else i for i, row in enumerate(others)]
        moved = [i for i, j in enumerate(order) if i != j]
        yield float(y[moved[0], moved[0]]) if moved else 1.0, order


# One batch


def test_images_and_labels_are_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 3, 4, 4, generator=generator), torch.arange(64)
    ((share, order),) = pairs(1, 0.4)
    images, labels = next(stream(x, y))
    assert 0.01 < share < 0.99 and sorted(order) == list(range(64)) and sum(i == j for i, j in enumerate(order)) < 8
    assert labels.dtype == images.dtype == torch.float32 and labels.shape == (64, 64)
    torch.testing.assert_close(labels.sum(1), torch.ones(64))
    for i, j in enumerate(order):
        torch.testing.assert_close(images[i].double(), share * x[i].double() + (1 - share) * x[j].double())
        expected = torch.zeros(64, dtype=torch.float64)
        expected[i] += share
        expected[j] += 1 - share
        torch.testing.assert_close(labels[i].double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_is_that_of_both_labels(precision: str, smoothing: float) -> None:
    """Of labels that occur more than once, where some partners are of the same class."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 5, generator=generator), torch.randint(4, (64,), generator=generator)
    model, loss = nn.Linear(5, 64), loss_for(precision, smoothing)
    ((share, order),) = pairs(1, 0.4)
    images, labels = next(stream(x, y))
    one, other = (loss(model, (images, part)) for part in (y, y[order]))
    torch.testing.assert_close(loss(model, (images, labels)), share * one + (1 - share) * other)
    logits = model(images).double().log_softmax(1)
    plain = [-(1 - smoothing) * logits[torch.arange(64), part] - smoothing * logits.mean(1) for part in (y, y[order])]
    by_hand = (share * plain[0] + (1 - share) * plain[1]).mean()
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    torch.testing.assert_close(loss(model, (images, labels)).double(), by_hand, rtol=tolerance, atol=0)


def test_memory_formats_stay() -> None:
    x = torch.randn(8, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    last, first = (next(stream(images, torch.arange(8)))[0] for images in (x, x.contiguous()))
    assert last.is_contiguous(memory_format=torch.channels_last) and first.is_contiguous()
    assert torch.equal(last, first)


# Draws


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    count = 2000
    found = list(pairs(count, alpha, size=4))
    shares = torch.tensor([share for share, order in found if order != [0, 1, 2, 3]], dtype=torch.float64)
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 4 * (variance / count) ** 0.5
    assert abs(shares.var() / variance - 1) < 0.15
    orders = torch.tensor([sum(i == j for i, j in enumerate(order)) for _, order in found], dtype=torch.float64)
    assert abs(orders.mean() - 1) < 4 / count**0.5  # a random order leaves one where it is


@pytest.mark.parametrize("alpha", [0.001, 1000.0])
def test_the_smallest_and_largest_alpha(alpha: float) -> None:
    batches = list(islice(stream(torch.randn(8, 2), torch.arange(8), alpha), 200))
    assert all(bool(torch.isfinite(x).all()) and y.min() >= 0 and y.max() <= 1 for x, y in batches)
    shares = torch.tensor([share for share, _ in pairs(200, alpha)])
    assert ((shares - 0.5).abs() < 0.1).all() if alpha == 1000 else ((shares * (1 - shares)) < 0.1).float().mean() > 0.9


def test_draws_depend_on_seed_and_step_alone() -> None:
    x, y = torch.randn(16, 3), torch.arange(16)
    state = torch.get_rng_state()
    whole = list(islice(stream(x, y), 9))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    for step in range(9):
        resumed = stream(x, y, step=step)
        images, labels = next(resumed)
        assert torch.equal(images, whole[step][0]) and torch.equal(labels, whole[step][1])
        assert resumed.step == step + 1 and resumed.steps_per_epoch == 7
    assert len({labels.numpy().tobytes() for _, labels in whole}) == 9
    assert not torch.equal(next(stream(x, y, seed=1))[1], whole[0][1])


def test_data_streams_resume_in_every_epoch() -> None:
    data = load_data("digits", seed=0, limit=64)

    def batches(start: int = 0) -> list[tuple[Tensor, Tensor]]:
        plain = data.batches(batch_size=20, seed=3, epochs=3, start_step=start)
        return list(mixed(plain, 0.4, 10, 3))

    whole = batches()
    for start in range(10):
        for (x, y), (images, labels) in zip(batches(start), whole[start:], strict=True):
            assert torch.equal(x, images) and torch.equal(y, labels)
    # A stream without it has the same images in the same order.
    for (_, labels), (_, y) in zip(whole, data.batches(batch_size=20, seed=3, epochs=3), strict=True):
        own = labels[torch.arange(20), y]
        assert torch.equal(own > 0, torch.ones(20, dtype=torch.bool)) and len(own.unique()) <= 2


def test_no_alpha_no_mixing(tmp_path: Path) -> None:
    data = load_data("digits", seed=0, limit=64)
    plain = data.batches(batch_size=20, seed=3)
    assert mixed(plain, 0.0, 10, 3) is plain
    assert next(Workbench(replace(SMALL, mixup=0.0), tmp_path).batches(0, 1))[1].dtype == torch.int64


# Runs


@pytest.mark.parametrize("method", ["spode", "bip", "imp", "oneshot", "snip", "grasp", "woodfisher", "synflow"])
def test_every_training_batch_is_mixed(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all phases, those that pruners score on included; labels tell, and accuracies are of plain images."""
    bench = Workbench(replace(SMALL, label_smoothing=0.1), tmp_path)
    seen: list[Tensor] = []
    real = bench.loss

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(batch[1])
        return real(model, batch)

    monkeypatch.setattr(bench, "loss", loss)
    _, row = run_model(RunConfig(method, 0.5, 0, bench.recipe), bench)
    assert {labels.shape[1] for labels in seen} == {10} and {labels.dtype for labels in seen} == {torch.float32}
    assert sum(bool((labels.amax(1) < 1).any()) for labels in seen) > 0.8 * len(seen)
    assert row["config"]["mixup"] == 0.4 and 0 <= row["dense"]["test_accuracy"] <= 1 and row["result"]["kept"] > 0
    # The first step of the dense training, whose batch is that of phase 0.
    expected = next(bench.batches(0, 0, bench.recipe.dense_part().batch_size))[1]
    assert any(torch.equal(labels, expected) for labels in seen)


def test_phases_and_seeds_have_shares_of_their_own(tmp_path: Path) -> None:
    bench = Workbench(SMALL, tmp_path)
    labels = [next(bench.batches(seed, phase))[1] for seed, phase in ((0, 0), (0, 1), (0, 2), (1, 1))]
    assert len({float(y.amax(1).min()) for y in labels}) == 4


@pytest.mark.parametrize("method", ["imp", "spode"])
def test_a_run_that_is_interrupted_ends_like_any_other(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typer_testing = pytest.importorskip("typer.testing")
    from sparsekit import cli

    def run(*words: object) -> int:
        return typer_testing.CliRunner().invoke(cli.app, [str(word) for word in words]).exit_code

    options = ["--method", method, "--sparsity", "0.36", "--network", "mlp", "--limit", "64", "--batch-size", "16"]
    options += [
        "--dense-epochs",
        "1",
        "--epochs",
        "2",
        "--ode-steps",
        "4",
        "--mixup",
        "0.4",
        "--label-smoothing",
        "0.1",
    ]
    assert run("prune", *options, "--out", tmp_path / "whole") == 0
    real = training.cross_entropy
    for cut in (5, 9, 14):  # three steps of the warm-up, four of the dense training, then those of the method
        calls = iter(range(1, 1000))

        def loss(model: Any, batch: Any, calls: Any = calls, cut: int = cut, **also: Any) -> Tensor:
            if next(calls) == cut:
                signal.raise_signal(signal.SIGTERM)
            return real(model, batch, **also)

        with monkeypatch.context() as patch:
            patch.setitem(training.LOSSES, "fp32", loss)
            assert run("prune", *options, "--out", tmp_path / f"{cut}") == 143
        assert run("resume", tmp_path / f"{cut}") == 0
        whole, other = (tmp_path / name / "model.safetensors" for name in ("whole", f"{cut}"))
        assert whole.read_bytes() == other.read_bytes()


def test_replayed_steps_see_each_batch_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the imitation of graphs, in which what Python decides while recording is decided for good."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "pruners"))
    import replay

    made: list[Any] = []

    class Graphs(replay.Graphs):
        def new(self) -> Any:
            made.append(super().new())
            return made[-1]

    monkeypatch.setattr(capture, "CudaGraphs", Graphs)
    bench = Workbench(replace(SMALL, label_smoothing=0.1), tmp_path)
    found = []
    for graphs in (False, True):
        model, batches = bench.network(0), bench.batches(0, 0)
        lr = torch.tensor(0.05)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=True)
        take = step_of(model, optimizer, bench.loss, graphs)
        losses = [float(take(next(batches))) for _ in range(9)]
        found.append((losses, [p.detach().clone() for p in model.parameters()]))
    assert len(made) == 1 and found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["imp", "bip", "spode"])
def test_graphs_on_a_gpu(method: str, tmp_path: Path) -> None:
    recipe = replace(SMALL, device="cuda", graphs=True, network="convnet", channels_last=True)
    bench = Workbench(recipe, tmp_path)
    assert next(bench.batches(0, 1))[1].is_cuda
    _, row = run_model(RunConfig(method, 0.36, 0, recipe), bench)
    plain = run_model(RunConfig(method, 0.36, 0, SMALL), Workbench(SMALL, tmp_path / "cpu"))[1]
    assert row["cost"]["passes"] == plain["cost"]["passes"] and row["result"]["test_accuracy"] > 0.05


@pytest.mark.gpu
def test_mixing_waits_for_no_gpu_and_gives_the_cpus_batches(tmp_path: Path) -> None:
    bench = Workbench(replace(SMALL, device="cuda"), tmp_path)
    source, host = bench.batches(0, 1), Workbench(SMALL, tmp_path).batches(0, 1)
    first = [next(source)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        first += [next(source) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (x, y), (images, labels) in zip(first, host, strict=False):
        torch.testing.assert_close(x.cpu(), images)
        torch.testing.assert_close(y.cpu(), labels)


def test_a_method_that_needs_classes_refuses_mixed_labels() -> None:
    batch = next(stream(torch.randn(8, 2), torch.arange(8)))
    with pytest.raises(
        ValueError, match=r"GraSP: samples_per_class: expected batches of \(inputs, classes\), got others"
    ):
        balanced([batch], 1)


# Identity


def test_ids_of_all_stored_rows_are_what_they_were() -> None:
    count = 0
    for file in sorted(RESULTS.glob("*.jsonl")):
        for row in read_rows(file):
            if row.get("kind") == "compare" and "error" not in row:
                recipe = from_json(row["config"])
                assert RunConfig(row["method"], row["sparsity"], row["seed"], recipe).id == row["id"], file
                assert as_json(recipe) == row["config"] and recipe.mixup == 0.0
                count += 1
    assert count > 500


def test_mixup_is_part_of_the_identity_of_runs_and_dense_networks() -> None:
    assert "mixup" not in as_json(Recipe()) and as_json(SMALL)["mixup"] == 0.4 and from_json(as_json(SMALL)) == SMALL
    assert json.loads(json.dumps(as_json(SMALL))) == as_json(SMALL)
    assert RunConfig("imp", 0.9, 0, Recipe(mixup=0.2)).id != RunConfig("imp", 0.9, 0).id
    assert Recipe(mixup=0).dense_part() == Recipe().dense_part() != Recipe(mixup=0.2).dense_part()


@pytest.mark.parametrize("value", [-0.1, 1e-4, 1001, math.inf, math.nan, "0.2", True, None])
def test_alphas_out_of_range_are_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"Recipe: mixup: expected 0 or a number in \[0.001, 1000\], got "):
        Recipe(mixup=value)
