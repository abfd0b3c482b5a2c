# SPDX-License-Identifier: Apache-2.0
"""The papers' recipes: every file holds what prune can run, and one of each family runs from end to end in miniature."""

from __future__ import annotations

import inspect
import json
import math
import re
import signal
import subprocess
import sys
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("PIL")
pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

from command_line import run  # noqa: E402
from generated_images import write_imagenet, write_tiny_imagenet  # noqa: E402

from sparsekit import config_cli, sparsify  # noqa: E402
from sparsekit.allocation import Global  # noqa: E402
from sparsekit.benchmarks import streaming, training  # noqa: E402
from sparsekit.benchmarks.builders import Start  # noqa: E402
from sparsekit.benchmarks.families.reparametrised import STR_LR, from_scratch  # noqa: E402
from sparsekit.benchmarks.images import PUBLISHED  # noqa: E402
from sparsekit.benchmarks.methods import METHODS  # noqa: E402
from sparsekit.benchmarks.networks import NETWORKS, build_network  # noqa: E402
from sparsekit.benchmarks.recipe import Recipe  # noqa: E402
from sparsekit.benchmarks.recipe_files import (  # noqa: E402
    FOLDER,
    RecipeFile,
    find_recipe,
    read_recipe,
    recipe_names,
    recipe_values,
)
from sparsekit.prune_cli import prune  # noqa: E402

NAMES = recipe_names()
# Methods that recipes may name whether or not they are there.
NAMED = {"hydra", "grasp", "snip", "synflow", "iter-spode", "str", "woodfisher"}
NAMED |= {"snip-pretrained", "synflow-pretrained", "grasp-pretrained"}
CLASSES = {"cifar10-full": 10, "cifar100-full": 100, "tiny-imagenet": 200, "tiny-imagenet-bip": 200, "imagenet": 1000}
# What a recipe says in so many words, so that no default of ours slips in.
SAID = {"method", "sparsity", "data", "network", "epochs", "batch_size", "lr", "curve", "weight_decay", "momentum"}
SAID |= {"nesterov", "dense_epochs", "dense_curve"}
SETTINGS = config_cli._settings(list(inspect.signature(prune, eval_str=True).parameters.values()))


def recipe_of(values: dict[str, Any]) -> Recipe:
    return Recipe(**{f.name: values[f.name] for f in fields(Recipe) if f.name in values})


def start_of(recipe: Recipe) -> Start:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    sparsify(model)
    return Start(model, lambda model, batch: batch, {}, 0.5, recipe, 5, 1280)


@lru_cache
def modules_of(network: str, classes: int) -> set[str]:
    found = build_network(network, classes=classes, channels=3, image_size=64, seed=0)
    return {name for name, _ in found.named_modules()}


# The files


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_what_there_is(name: str) -> None:
    file = find_recipe(name)
    values, recipe = recipe_values(file, SETTINGS), read_recipe(file)
    assert re.fullmatch(r"(bip|spode)-[a-z0-9-]+", name) and values.keys() >= SAID
    assert values["data"] in CLASSES and values["data"] in PUBLISHED and values["network"] in NETWORKS
    assert values["method"] in {*METHODS, *NAMED}
    recipe_of(values)
    modules = modules_of(values["network"], CLASSES[values["data"]])
    for glob in values.get("skip", ()):
        assert any(re.fullmatch(glob.replace(".", r"\.").replace("*", ".*"), module) for module in modules), glob
    # With one of these the first layer would be spared twice.
    assert not (values.get("structure") == "channel" and "skip" in values)
    check_paper(recipe)


def check_paper(recipe: RecipeFile) -> None:
    paper = recipe.paper
    assert paper is not None and len(paper.work) > 20 and paper.notes.endswith(".") and "  " not in paper.notes
    assert re.match(r"(Table|Figure)s? ", paper.place)
    assert recipe.values["sparsity"] in paper.sparsities
    assert (
        list(paper.sparsities) == sorted(set(paper.sparsities))
        and 0 < paper.sparsities[0] < paper.sparsities[-1] + 1 < 2
    )
    assert set(paper.accuracy) <= {*METHODS, *NAMED} and (
        not paper.accuracy or recipe.values["method"] in paper.accuracy
    )
    for values in paper.accuracy.values():
        assert all(math.isnan(value) or 0.4 < value < 99 for value in values)
    assert math.isnan(paper.dense) or 60 < paper.dense < 96


def test_every_row_of_the_tables_is_there() -> None:
    networks = ["cifar10-resnet18", "cifar10-resnet20", "cifar10-resnet56", "cifar10-vgg16"]
    networks += ["cifar100-resnet18", "cifar100-resnet20"]
    expected = {f"bip-{network}-{method}" for network in networks for method in ("bip", "imp", "omp", "grasp", "hydra")}
    expected |= {f"bip-tiny-imagenet-resnet18-{method}" for method in ("bip", "imp", "grasp", "hydra")}
    expected |= {f"bip-imagenet-resnet50-{method}" for method in ("bip", "imp")}
    expected |= {f"bip-cifar{c}-resnet{d}-filter-bip" for c in (10, 100) for d in (18, 20)}
    how = ("unstructured", "channel")
    expected |= {f"spode-tiny-imagenet-{n}-{h}" for n in ("resnet50", "vgg19", "wrn34") for h in how}
    networks = ["resnet20", "wrn20", "vgg16"]
    expected |= {f"spode-cifar{c}-{n}-{h}" for c in (10, 100) for n in networks for h in (*how, "iterative")}
    assert expected <= set(NAMES) and len(NAMES) == 76


def test_numbers_of_the_papers() -> None:
    """A few by hand, so that a shifted column is noticed."""
    for name, method, sparsity, accuracy, dense in (
        ("bip-cifar10-resnet18-bip", "bip", 0.893, 94.74, 94.77),
        ("bip-cifar100-resnet20-imp", "imp-lth", 0.893, 64.50, 68.69),
        ("bip-cifar10-resnet20-imp", "imp-lth", 0.9775, 83.82, 92.12),
        ("bip-tiny-imagenet-resnet18-hydra", "hydra-global", 0.893, 62.23, 63.85),
        ("bip-cifar100-resnet20-filter-bip", "bip", 0.8, 49.38, 68.69),
        ("spode-tiny-imagenet-resnet50-unstructured", "spode", 0.95, 61.20, 67.06),
        ("spode-tiny-imagenet-vgg19-channel", "grasp-pretrained", 0.735425, 41.06, 63.47),
        ("spode-tiny-imagenet-wrn34-unstructured", "snip-pretrained", 0.95, 51.31, 64.74),
    ):
        paper = read_recipe(find_recipe(name)).paper
        assert paper is not None and (paper.accuracy_of(method, sparsity), paper.dense) == (accuracy, dense), name
    assert math.isnan(paper.accuracy_of("bip", 0.5)) and math.isnan(paper.accuracy_of("spode", 0.123))


def test_settings_of_the_papers() -> None:
    def of(name: str) -> dict[str, Any]:
        return recipe_values(find_recipe(name), SETTINGS)

    bip, imp, tiny = (
        of("bip-cifar10-resnet18-bip"),
        of("bip-cifar10-resnet20-imp"),
        of("spode-tiny-imagenet-vgg19-channel"),
    )
    assert (bip["lr"], bip["upper_lr"], bip["gamma"], bip["epochs"]) == (0.01, 0.1, 1.0, 100)
    assert (bip["dense_lr"], bip["dense_epochs"], bip["dense_weight_decay"], bip["weight_decay"]) == (
        0.1,
        200,
        5e-4,
        1e-4,
    )
    assert (imp["epochs"], imp["curve"], imp["batch_size"], imp["skip"]) == (160, "step", 64, ["conv1", "fc"])
    assert (tiny["lr"], tiny["weight_decay"], tiny["ode_steps"], tiny["ode_batch"]) == (1e-3, 0.0, 1000, 256)
    assert (tiny["polariser"], tiny["score_momentum"], tiny["dense_batch_size"], tiny["nesterov"]) == (
        "ohm",
        0.9,
        64,
        True,
    )
    nodes = read_recipe(find_recipe("spode-tiny-imagenet-vgg19-channel")).paper.sparsities  # pyright: ignore
    assert nodes == pytest.approx([1 - math.sqrt(k) for k in (0.28, 0.2, 0.14, 0.1, 0.07)], abs=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-hydra") and "filter" not in name])
def test_hydra_of_bips_paper_ranks_all_layers_together(name: str) -> None:
    file = read_recipe(find_recipe(name))
    assert file.values["method"] == "hydra-global" and file.paper is not None
    pruner: Any = METHODS["hydra-global"].build(start_of(recipe_of(recipe_values(find_recipe(name), SETTINGS))))
    assert isinstance(pruner.projection.allocation, Global)


def test_str_trains_at_its_own_rate_and_dense_too() -> None:
    recipe = recipe_of(recipe_values(find_recipe("spode-imagenet-resnet50-str"), SETTINGS))
    given = from_scratch(start_of(recipe), STR_LR)["optimizer"]([torch.nn.Parameter(torch.ones(1))])
    assert given.param_groups[0]["lr"] == recipe.dense_part().lr == 0.256


def test_wheels_carry_them(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    built = tmp_path / "sparsekit" / "benchmarks" / "recipes"
    assert sorted(path.name for path in built.iterdir()) == sorted(path.name for path in FOLDER.iterdir())


# The listing


def test_the_listing() -> None:
    text = run("recipes").stdout
    assert (
        all(re.search(rf"^ {name} ", text, re.MULTILINE) for name in NAMES) and max(map(len, text.splitlines())) <= 80
    )
    assert "prune --recipe NAME" in text
    few = run("recipes", "wrn34").stdout
    assert "spode-tiny-imagenet-wrn34-channel" in few and "62.36" in few and "64.74" in few and "bip-" not in few
    entries = json.loads(run("recipes", "bip-cifar10-resnet20-imp", "--json").stdout)
    assert len(entries) == 1 and entries[0]["name"] == "bip-cifar10-resnet20-imp"
    assert entries[0]["options"]["batch_size"] == 64 and entries[0]["paper"]["accuracy"]["imp-lth"][-1] == 83.82
    assert set(entries[0]) == {"name", "options", "paper"}
    hidden = json.loads(run("recipes", "bip-cifar10-resnet18-omp", "--json").stdout)[0]["paper"]["accuracy"]["omp"]
    assert None in hidden
    wrong = run("recipes", "nothing")
    assert wrong.exit_code == 2 and "expected a part of one of 76 names, got 'nothing'" in wrong.stderr


# Running one

SMALL = ["--epochs", "1", "--dense-epochs", "1", "--batch-size", "4", "--dense-batch-size", "4", "--limit", "8"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny_imagenet(folder, 4, 4)
    write_imagenet(folder / "imagenet", 4, 2)
    return folder


@pytest.fixture(autouse=True)
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "WORKERS", 0)


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("bip-tiny-imagenet-resnet18-bip", ["--network", "resnet8"], {"lr": 0.01, "dense_lr": 0.1}),
        (
            "bip-cifar10-resnet20-omp",
            ["--data", "digits"],
            {"curve": "step", "skip": ["conv1", "fc"], "nesterov": False},
        ),
        ("bip-cifar10-resnet20-filter-imp", ["--data", "digits"], {"structure": "filter"}),
        (
            "bip-imagenet-resnet50-imp",
            ["--network", "resnet8", "--image-size", "16", "--sparsity", "0.2"],
            {"label_smoothing": 0.1, "mixup": 0.2, "momentum": 0.875, "curve": "warmup:5+cosine:85"},
        ),
        (
            "spode-tiny-imagenet-resnet50-unstructured",
            ["--network", "resnet8", "--ode-steps", "3", "--ode-batch", "4", "--image-size", "16"],
            {"curve": "warmup:20+cosine:40:0.0001+constant:10", "weight_decay": 0.0},
        ),
        (
            "spode-tiny-imagenet-wrn34-channel",
            ["--network", "resnet8", "--ode-steps", "3", "--ode-batch", "4", "--image-size", "16"],
            {"structure": "channel", "polariser": "ohm", "score_momentum": 0.9},
        ),
        (
            "spode-cifar10-resnet20-unstructured",
            ["--data", "digits", "--method", "oneshot", "--network", "resnet8"],
            {"lr": 0.01, "dense_lr": 0.05},
        ),
    ],
)
def test_one_of_each_family_in_miniature(
    tmp_path: Path, root: Path, name: str, options: list[str], expected: dict[str, Any]
) -> None:
    done = run("prune", "--recipe", name, *SMALL, *options, "--root", root, "--out", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.stderr
    row, values = json.loads(done.stdout), read_recipe(find_recipe(name)).values
    assert {key: row["config"].get(key) for key in expected} == expected
    given = {option.removeprefix("--").replace("-", "_") for option in (*SMALL, *options) if option.startswith("--")}
    left = {key: value for key, value in values.items() if key not in given | {"method", "sparsity"}}
    assert {key: row["config"].get(key, getattr(Recipe, key)) for key in left} == left
    if not given & {"method", "sparsity"}:
        assert (row["method"], row["sparsity"]) == (values["method"], values["sparsity"])
    # Only the half that BiP leaves aside is a validation set.
    held_out = row["config"]["data"] in ("digits", "tiny-imagenet-bip")
    assert (row["result"]["val_accuracy"] is not None) == (row["dense"]["val_accuracy"] is not None) == held_out
    assert row["result"]["kept"] > 0 and 0 <= row["result"]["test_accuracy"] <= 1


def test_a_run_on_streamed_images_resumes_bit_by_bit(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--recipe", "bip-imagenet-resnet50-bip", *SMALL, "--network", "resnet8", "--image-size", "16"]
    options += ["--epochs", "2", "--root", root]
    assert run("prune", *options, "--out", tmp_path / "whole").exit_code == 0
    real, calls = training.cross_entropy, iter(range(1, 100))

    def loss(model: Any, batch: Any) -> torch.Tensor:
        if next(calls) == 8:  # three of the warm-up, two of the dense training, then those of BiP
            signal.raise_signal(signal.SIGTERM)
        return real(model, batch)

    with monkeypatch.context() as patch:
        patch.setitem(training.LOSSES, "fp32", loss)
        assert run("prune", *options, "--out", tmp_path / "cut").exit_code == 143
    assert run("resume", tmp_path / "cut").exit_code == 0
    whole, cut = (tmp_path / name / "model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def printed(*arguments: object) -> dict[str, Any]:
    result = run("prune", *arguments, "--out", "x", "--print-config")
    assert result.exit_code == 0, result.output
    toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads(result.stdout)


def test_the_command_line_overrides_the_file_overrides_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("epochs = 7\nlr = 0.5\n")
    name = "spode-cifar10-vgg16-unstructured"
    for order in (
        ("--recipe", name, "--config", tmp_path / "a.toml"),
        ("--config", tmp_path / "a.toml", "--recipe", name),
    ):
        values = printed(*order, "--lr", "0.25", "--seed", "3")
        assert (values["lr"], values["epochs"], values["batch_size"], values["seed"]) == (0.25, 7, 64, 3)
        assert values["skip"] == ["features.0"] and values["data"] == "cifar10-full" and values["method"] == "spode"


def test_printed_recipes_are_complete_and_the_same(tmp_path: Path) -> None:
    values = printed("--recipe", "bip-cifar10-resnet18-bip")
    stored = recipe_values(find_recipe("bip-cifar10-resnet18-bip"), SETTINGS)
    assert {key: values[key] for key in stored} == stored
    assert {f.name for f in fields(Recipe)} <= set(SETTINGS) and values["ode_steps"] == 100


def test_a_file_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"network": "mlp", "epochs": 3, "method": "gmp"}))
    values = printed("--recipe", file)
    assert (values["network"], values["epochs"], values["method"], values["data"]) == ("mlp", 3, "gmp", "digits")
    assert read_recipe(file).paper is None


def test_a_method_that_is_not_there_is_named_before_anything_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"method": "magic", "data": "imagenet"}))
    result = run("prune", "--recipe", file, "--out", tmp_path / "out", "--root", tmp_path)
    assert result.exit_code == 2 and "error: method: expected one of imp, imp-lth" in result.stderr
    assert "got 'magic'" in result.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        ('method = "bip"\nepoch = 3', "epoch: expected epochs perhaps"),
        ("epochs = 0", "epochs: expected an int >= 1, got 0"),
        ("method = 3", "method: expected a text, got 3"),
        ("paper = 3", "paper: expected work, place, row, sparsities and perhaps more, got int"),
        ("[paper]\nwork = 'a'", "paper: expected work, place, row, sparsities and perhaps more, got ['work']"),
        ("[paper]\nwork=1\nplace=''\nrow=''\nsparsities=[]", "paper.work: expected a text, got 1"),
        ("[paper]\nwork=''\nplace=''\nrow=''\nsparsities=['a']", "paper.sparsities: expected numbers, got ['a']"),
        ("[paper]\nwork=''\nplace=''\nrow=''\nsparsities=[]\ndense='a'", "paper.dense: expected numbers, got ['a']"),
        (
            "[paper]\nwork=''\nplace=''\nrow=''\nsparsities=[]\naccuracy=3",
            "paper.accuracy: expected lists of numbers by method",
        ),
        (
            "[paper]\nwork=''\nplace=''\nrow=''\nsparsities=[0.5]\naccuracy={bip=[1,2]}",
            "paper.accuracy.bip: expected 1 numbers, got 2",
        ),
    ],
)
def test_bad_files_end_with_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(content)
    result = run("prune", "--recipe", file, "--out", tmp_path / "out")
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: config {file}: {message}")


def test_a_recipe_that_is_not_there() -> None:
    result = run("prune", "--recipe", "bip-cifar10-resnet18-bop", "--out", "x")
    assert result.exit_code == 2 and "(bip-cifar10-resnet18-" in result.stderr
    assert "see `sparsekit recipes`), got 'bip-cifar10-resnet18-bop'" in result.stderr
    with pytest.raises(ValueError, match=r"recipe: expected a file or a name \(one of 76; see"):
        find_recipe("???")
