# SPDX-License-Identifier: Apache-2.0
"""What makes the engine fast changes no result: batches made ahead, channels last, bf16, graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")

from sparsekit.benchmarks import batches  # noqa: E402
from sparsekit.benchmarks.builders import make_sgd  # noqa: E402
from sparsekit.benchmarks.data import load_data  # noqa: E402
from sparsekit.benchmarks.engine import Workbench  # noqa: E402
from sparsekit.benchmarks.meter import Meter, flops_per_image  # noqa: E402
from sparsekit.benchmarks.one_run import run_model  # noqa: E402
from sparsekit.benchmarks.recipe import Recipe, RunConfig  # noqa: E402
from sparsekit.benchmarks.training import LOSSES, step_of, train  # noqa: E402

SMALL = Recipe(limit=200, network="convnet", dense_epochs=1, epochs=1, batch_size=20, ode_steps=5, ode_batch=20)
FAST = replace(SMALL, precision="bf16", channels_last=True, graphs=True, device="cuda")


@pytest.mark.parametrize("start", [0, 4, 9, 13])
@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_batches_made_ahead_are_the_batches(monkeypatch: pytest.MonkeyPatch, start: int, augment: Any) -> None:
    data = replace(load_data("digits", seed=0, limit=200), augment=augment)

    def drawn(ahead: int) -> list[Any]:
        monkeypatch.setattr(batches, "AHEAD", {"cpu": ahead})
        return list(data.batches(batch_size=21, seed=3, epochs=3, start_step=start))

    alone = drawn(1)
    assert len(alone) == 27 - start
    for ahead in (2, 4, 9, 50):
        for (x, y), (other, label) in zip(alone, drawn(ahead), strict=True):
            assert torch.equal(x, other) and torch.equal(y, label)


def test_channels_last_changes_the_layout_alone() -> None:
    x = torch.randint(256, (5, 3, 6, 6), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    last, first = (batches.Normalise.by(mean, std, channels_last=flag)(x) for flag in (True, False))
    assert torch.equal(last, first) and last.is_contiguous(memory_format=torch.channels_last)
    assert first.is_contiguous() and last.dtype == torch.float32


@pytest.mark.parametrize("changes", [{"channels_last": True}, {"precision": "bf16"}])
@pytest.mark.parametrize("method", ["bip", "gmp", "spode", "imp"])
def test_runs_count_alike_in_every_form(changes: dict[str, Any], method: str, tmp_path: Path) -> None:
    recipe = replace(SMALL, **changes)
    _, row = run_model(RunConfig(method, 0.488, 0, recipe), Workbench(recipe, tmp_path))
    plain = run_model(RunConfig(method, 0.488, 0, SMALL), Workbench(SMALL, tmp_path))[1]
    assert row["result"]["kept"] == plain["result"]["kept"] and row["config"].items() >= changes.items()
    assert {k: row["cost"][k] for k in ("steps", "passes", "flops")} == {
        k: plain["cost"][k] for k in ("steps", "passes", "flops")
    }


def test_a_step_as_a_function_is_the_step_of_training() -> None:
    bench = Workbench(SMALL, Path("unused"))
    ours, theirs = bench.network(0), bench.network(0)
    first, second = (make_sgd(SMALL)(list(m.parameters())) for m in (ours, theirs))
    source = bench.batches(0, 0)
    take = step_of(ours, first, LOSSES["fp32"], graphs=False)
    for _ in range(3):
        take(next(source))
    train(theirs, bench.batches(0, 0), second, 3, curve=lambda t: 1.0)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_operations_by_hand() -> None:
    # Forward 2 * 12 * 5 and 2 * 5 * 3; backward as much again for weights, and for inputs of all but the first layer.
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    assert flops_per_image(net, torch.randn(2, 3, 2, 2)) == 2 * 120 + 3 * 30
    before = torch.get_rng_state()
    flops_per_image(torch.nn.Sequential(net, torch.nn.Dropout()), torch.randn(2, 3, 2, 2, generator=torch.Generator()))
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_is_measured_on_a_cpu_but_said_to_be_unknown() -> None:
    assert Meter("cpu").row() == {"peak_memory": None, "energy": None}


@pytest.mark.gpu
def test_graphs_train_as_steps_do() -> None:
    bench = Workbench(replace(FAST, precision="fp32"), Path("unused"))
    torch.backends.cudnn.deterministic = True
    try:
        found = []
        for graphs in (False, True):
            model = bench.network(0)
            train(model, bench.batches(0, 0), make_sgd(bench.recipe)(list(model.parameters())), 20, graphs=graphs)
            found.append([p.detach().clone() for p in model.parameters()])
    finally:
        torch.backends.cudnn.deterministic = False
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["bip", "bip-1pass", "gmp", "dpf", "imp", "omp", "spode", "random-erk"])
def test_every_method_on_a_gpu(method: str, tmp_path: Path) -> None:
    _, row = run_model(RunConfig(method, 0.488, 0, FAST), Workbench(FAST, tmp_path))
    plain = run_model(RunConfig(method, 0.488, 0, SMALL), Workbench(SMALL, tmp_path))[1]
    assert row["result"]["kept"] == plain["result"]["kept"] and row["cost"]["peak_memory"] > 0
    assert row["result"]["test_accuracy"] > 0.05 and row["cost"]["passes"] == plain["cost"]["passes"]


@pytest.mark.gpu
def test_steps_do_not_wait_for_the_gpu() -> None:
    bench = Workbench(FAST, Path("unused"))
    model = bench.network(0)
    take = step_of(model, make_sgd(FAST)(list(model.parameters())), LOSSES["bf16"], graphs=True)
    source = bench.batches(0, 0)
    for _ in range(5):  # the first few run as always, then one is captured
        take(next(source))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            take(next(source))
    finally:
        torch.cuda.set_sync_debug_mode("default")
