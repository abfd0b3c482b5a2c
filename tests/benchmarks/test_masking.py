# SPDX-License-Identifier: Apache-2.0
"""Structured comparisons: which layers are pruned, and that every method keeps and removes whole units."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

from sparsekit.allocation import kept_count  # noqa: E402
from sparsekit.benchmarks.compare import Workbench, grid, run_model  # noqa: E402
from sparsekit.benchmarks.masking import sparsify_for  # noqa: E402
from sparsekit.benchmarks.methods import METHODS, projection_of  # noqa: E402
from sparsekit.benchmarks.networks import build_network  # noqa: E402
from sparsekit.benchmarks.recipe import Recipe, RunConfig, as_json, from_json  # noqa: E402
from sparsekit.nn import masked_layers, masks  # noqa: E402
from sparsekit.structure import dead_units, structure_of  # noqa: E402

TINY = {
    "network": "convnet",
    "limit": 64,
    "dense_epochs": 1,
    "epochs": 1,
    "batch_size": 32,
    "ode_steps": 2,
    "budget_epochs": 4,
}
UNITS = {"filter": [32, 64, 128], "channel": [32, 64, 128]}
LAYERS = {"unstructured": ["0", "3", "6", "11"], "filter": ["0", "3", "6"], "channel": ["3", "6", "11"]}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("structure", LAYERS)
def test_classes_and_colours_are_spared(structure: str) -> None:
    model = build_network("convnet", classes=10, channels=1, image_size=8, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sparsify_for(model, Recipe(structure=structure))
    assert list(masked_layers(model)) == LAYERS[structure]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    model = build_network("convnet", classes=10, channels=1, image_size=8, seed=0)
    sparsify_for(model, Recipe(structure=structure, skip=("6", "0")))
    left = {"unstructured": ["3", "11"], "filter": ["3"], "channel": ["11"]}
    assert list(masked_layers(model)) == left[structure]


@pytest.mark.parametrize("structure", ["filter", "channel"])
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.structured and name != "dense"])
def test_every_method_keeps_whole_units(tmp_path: Path, method: str, structure: str) -> None:
    recipe = Recipe(structure=structure, ode_batch=32, **TINY)  # pyright: ignore[reportArgumentType]
    bench = Workbench(recipe, tmp_path)
    model, row = run_model(RunConfig(method, 0.75, 0, recipe), bench)
    for units, mask in zip(UNITS[structure], masks(model).values(), strict=True):
        dead = dead_units(mask.dense())[0 if structure == "filter" else 1]
        assert structure_of(mask.dense()) == structure and units - dead == kept_count(units, 0.75)
    assert row["config"]["structure"] == structure and row["result"]["total"] == masks(model).numel


def test_narrow_layers_keep_one_unit() -> None:
    found = projection_of(Recipe(structure="filter"))({"a": torch.randn(2, 4), "b": torch.randn(100, 4)}, 0.97).masks
    # 0 + 3 by rounding each; the one that is given is taken from the other, so that the sum stays.
    assert [int(mask.dense().any(1).sum()) for mask in found.values()] == [1, 2]


def test_methods_that_cannot_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="structure: expected unstructured for bip-released, got 'channel'"):
        grid(["imp", "bip-released"], [0.5], 1, Recipe(structure="channel"))
    assert len(grid(["imp", "bip-released"], [0.5], 1, Recipe())) == 2


def test_the_identity_of_unstructured_runs_has_not_changed() -> None:
    assert "structure" not in as_json(Recipe()) and RunConfig("bip", 0.9, 0).id == "061e5fcede3d"
    structured = Recipe(structure="filter")
    assert from_json(as_json(structured)) == structured and from_json(as_json(Recipe())) == Recipe()
    assert RunConfig("bip", 0.9, 0, structured).id != RunConfig("bip", 0.9, 0).id
    assert structured.dense_part() == Recipe()  # one dense network serves all structures
