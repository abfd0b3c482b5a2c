# SPDX-License-Identifier: Apache-2.0
"""Masks beside the rows: what runs keep, what the reports make of it, and what they name as missing."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import sparsekit as sk
from sparsekit.benchmarks.compare import Workbench, compare, grid
from sparsekit.benchmarks.mask_files import keep_masks, read_kept
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.benchmarks.report import write_report
from sparsekit.benchmarks.reporting.mask_section import mask_section
from sparsekit.benchmarks.reporting.palette import look
from sparsekit.benchmarks.reporting.summary import summarise
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.speedup_report import write_speedup
from sparsekit.benchmarks.speedup_suites import as_suite
from sparsekit.cli import app
from sparsekit.mask_diff import chance_overlap
from sparsekit.structure import dead_units

pytest.importorskip("sklearn")
RECIPE = Recipe(network="mlp", limit=64, dense_epochs=1, epochs=1, batch_size=32)
METHODS, LEVELS = ("oneshot", "random-erk"), (0.5, 0.97)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    bench = Workbench(RECIPE, place)
    bench.keep_masks = True
    with warnings.catch_warnings():  # magnitude leaves a layer without weights, which figures have to bear
        warnings.simplefilter("ignore", sk.CollapseWarning)
        rows = compare(grid(METHODS, LEVELS, 2, RECIPE), place, bench=bench)
    assert all("result" in row for row in rows), rows
    return place


def rows_of(folder: Path, methods: tuple[str, ...] = METHODS) -> list[Row]:
    return compare(grid(methods, LEVELS, 2, RECIPE), folder)


def test_what_a_run_keeps_is_what_its_row_counts(folder: Path) -> None:
    rows = rows_of(folder)
    assert {path.stem for path in (folder / "masks").iterdir()} == {row["id"] for row in rows}
    for row in rows:
        kept = read_kept(folder, row["id"])
        assert kept is not None and kept.effective is not None and kept.why == ""
        assert kept.masks.hash()[:16] == row["result"]["mask_hash"] and kept.masks.count() == row["result"]["kept"]
        model = nn.Sequential(*(nn.Linear(64, 256), nn.Linear(256, 128), nn.Linear(128, 10)))
        sk.sparsify(model)
        sk.set_masks(model, dict(zip("012", kept.masks.values(), strict=True)))
        expected = sk.effective_masks(model, torch.ones(1, 64))
        assert [*kept.effective.values()] == [*expected.values()]


def test_nothing_is_kept_unless_asked(tmp_path: Path) -> None:
    (row,) = compare(grid(["oneshot"], [0.5], 1, RECIPE), tmp_path)
    assert not (tmp_path / "masks").exists() and read_kept(tmp_path, row["id"]) is None


def test_rungs_of_a_chain_keep_their_own(tmp_path: Path) -> None:
    bench = Workbench(RECIPE, tmp_path)
    bench.keep_masks = True
    rows = compare(grid(["imp"], [0.36, 0.488], 1, RECIPE), tmp_path, bench=bench)
    kept = [read_kept(tmp_path, row["id"]) for row in rows]
    assert [k.masks.count() for k in kept if k] == [row["result"]["kept"] for row in rows]


def test_networks_that_cannot_be_traced_keep_their_masks(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(self.fc(x.flatten(1))).real

    model = Odd()
    sk.sparsify(model)
    keep_masks(tmp_path, "a", model, (1, 2, 2))
    kept = read_kept(tmp_path, "a")
    assert kept is not None and kept.masks == sk.masks(model) and kept.effective is None and "fft" in kept.why


def test_chance_is_what_independent_masks_share() -> None:
    shapes = {"a": (40, 50), "b": (300, 10)}
    kept = {
        key: {n: sk.Mask.from_dense(torch.rand(s) < d) for (n, s), d in zip(shapes.items(), densities, strict=True)}
        for key, densities in (("x", (0.5, 0.1)), ("y", (0.2, 0.3)))
    }
    found = [sk.shuffled(kept["x"], seed).overlap(sk.shuffled(kept["y"], 1000 + seed)) for seed in range(60)]
    mean = sum(found) / len(found)
    assert chance_overlap(kept["x"], kept["y"]) == pytest.approx(mean, abs=0.004)
    full = {name: sk.Mask.full(shape) for name, shape in shapes.items()}
    assert chance_overlap(full, full) == 1.0


def test_the_section_against_the_masks(folder: Path) -> None:
    rows = rows_of(folder)
    (group,) = summarise(rows, "oneshot").groups
    looks = {method: look(i) for i, method in enumerate(METHODS)}
    section = mask_section(group.runs, folder, str.upper, looks)
    assert [level.sparsity for level in section.levels] == [*LEVELS] and section.missing == ()
    assert section.names == {"oneshot": "ONESHOT", "random-erk": "RANDOM-ERK"}
    masks = {(r["method"], r["sparsity"], r["seed"]): read_kept(folder, r["id"]) for r in rows}
    level = section.levels[1]
    pairs = [(masks["oneshot", 0.97, s], masks["random-erk", 0.97, s]) for s in (0, 1)]
    overlap = level.overlaps["oneshot", "random-erk"]
    assert overlap.seeds == 2
    assert overlap.iou == pytest.approx(sum(a.masks.overlap(b.masks) for a, b in pairs if a and b) / 2)
    erk = level.cells[1]
    assert erk.seeds == (0, 1) and erk.densities == pytest.approx(level.erk)
    assert level.uniform == pytest.approx(0.03, abs=1e-4) and erk.kept == rows[-1]["result"]["kept"]
    own = [b for _, b in pairs if b and b.effective]
    idle = sum(b.masks.count() - b.effective.count() for b in own if b.effective) / 2
    cut = sum(sum(dead_units(m.dense())) for b in own if b.effective for m in b.effective.values()) / 2
    assert (erk.idle, erk.cut) == (idle, cut) and idle > 0
    assert erk.effective == pytest.approx((erk.kept - idle) / 50432)


def test_reports_show_masks_and_name_what_is_missing(folder: Path, tmp_path: Path) -> None:
    rows = rows_of(folder)
    page = write_report(rows, tmp_path / "a.html", "oneshot", folder).read_text()
    assert "Density of each layer" in page and "Overlap of the masks" in page and "were not kept" not in page
    assert page.count("group-1-densities") > 0
    none = write_report(rows, tmp_path / "b.html", "oneshot").read_text()
    assert "The masks of 8 of 8 runs were not kept; --keep-masks keeps them." in none
    assert "Density of each layer" not in none
    more = tmp_path / "more"
    (more / "masks").mkdir(parents=True)
    for row in rows:
        if row["seed"] == 0 and row["method"] == "oneshot":
            name = f"{row['id']}.safetensors"
            (more / "masks" / name).write_bytes((folder / "masks" / name).read_bytes())
    some = write_report(rows, tmp_path / "c.html", "oneshot", more).read_text()
    assert "The masks of 6 of 8 runs were not kept" in some and "Overlap of the masks" not in some


def test_the_speed_up_page_has_them_too(folder: Path, tmp_path: Path) -> None:
    suite = replace(as_suite("smoke"), recipe=RECIPE, methods=METHODS, sparsities=LEVELS, seeds=2, baseline="oneshot")
    page = write_speedup(rows_of(folder), suite, tmp_path / "a.html", folder).read_text()
    assert "<h2>Masks</h2>" in page and "Overlap of the masks" in page and "Random (ERK)" in page


def test_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"masks: path: expected a readable safetensors file, got .*a\.safetensors"):
        read_kept(tmp_path, "a")
    source = next((folder / "dense").glob("*.safetensors"))
    (tmp_path / "masks" / "b.safetensors").write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match="masks: path: expected masks of a run"):
        read_kept(tmp_path, "b")


@pytest.mark.parametrize("command", ["compare", "speedup"])
def test_the_commands_keep_masks_if_they_are_asked(tmp_path: Path, command: str) -> None:
    words = [command, "--methods", "oneshot", "--sparsity", "0.5", "--seeds", "1", "--network", "mlp", "--limit", "32"]
    words += ["--dense-epochs", "1", "--epochs", "1", "--batch-size", "16", "--out", str(tmp_path), "--keep-masks"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert len([*(tmp_path / "masks").glob("*.safetensors")]) == 1
    page = (tmp_path / ("report.html" if command == "compare" else "speedup.html")).read_text()
    assert "Density of each layer" in page and "Overlap of the masks" not in page
