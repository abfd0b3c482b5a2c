# SPDX-License-Identifier: Apache-2.0
"""``--config`` and ``--print-config`` on a command."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

pytest.importorskip("sklearn")
pytest.importorskip("yaml")

from command_line import run  # noqa: E402

from sparsekit.benchmarks import forecast  # noqa: E402
from sparsekit.benchmarks.recipe import Recipe, recipe_for  # noqa: E402
from sparsekit.compare_cli import compare  # noqa: E402
from sparsekit.config_cli import configurable  # noqa: E402

TINY = 'network = "mlp"\nlimit = 64\ndense_epochs = 1\nepochs = 1\nbatch_size = 16\nseeds = 1\n'
TINY += 'methods = ["oneshot", "bip"]\nsparsity = [0.5, 0.75]\n'


@pytest.fixture
def seen() -> dict[str, Any]:
    return {}


@pytest.fixture
def app(seen: dict[str, Any]) -> typer.Typer:
    """A command with one option of every kind, which tells what it was given."""
    app = typer.Typer()

    @app.command()
    @configurable
    def act(
        context: typer.Context,
        out: Annotated[Path, typer.Option(help="Where to.")],
        epochs: Annotated[int | None, typer.Option(help="Epochs.")] = None,
        sparsity: Annotated[float, typer.Option(help="Fraction.")] = 0.9,
        skip: Annotated[str, typer.Option(help="Globs.")] = "",
        quick: Annotated[bool, typer.Option("--quick/--slow", help="Quick?")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="JSON.")] = False,
    ) -> None:
        seen.update(out=out, epochs=epochs, sparsity=sparsity, skip=skip, quick=quick, as_json=as_json)

    return app


def test_the_file_gives_defaults_and_the_command_line_overrides(
    tmp_path: Path, app: typer.Typer, seen: dict[str, Any]
) -> None:
    file = tmp_path / "a.toml"
    file.write_text('out = "there"\nepochs = 3\nsparsity = 0.5\nskip = ["a", "b.*"]\nquick = true')
    assert run("--config", file, app=app).exit_code == 0
    expected = {"out": Path("there"), "epochs": 3, "sparsity": 0.5, "skip": "a,b.*", "quick": True, "as_json": False}
    assert seen == expected
    assert run("--epochs", 4, "--slow", "--config", file, "--skip", "c", "--json", app=app).exit_code == 0
    assert seen == expected | {"epochs": 4, "skip": "c", "quick": False, "as_json": True}


@pytest.mark.parametrize(
    "text, message",
    [
        ("as_json = true", "as_json: expected"),
        ("context = 1", "context: expected"),
        ("config = 'b.toml'", "config: expected"),
        ("sparsity = [0.5]", "sparsity: expected a number, got [0.5]"),
        ("skip = ['a,b']", "skip: expected entries without a comma, got ['a,b']"),
        ("epochs = 0", "epochs: expected an int >= 1, got 0"),
    ],
)
def test_a_bad_file_ends_with_one_line(
    tmp_path: Path, app: typer.Typer, seen: dict[str, Any], text: str, message: str
) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    result = run("--out", "x", "--config", file, app=app)
    assert result.exit_code == 2 and result.stdout == "" and seen == {}
    assert result.stderr == f"error: config {file}: {message}\n" or message.endswith("expected")
    assert result.stderr.startswith(f"error: config {file}: {message}") and result.stderr.count("\n") == 1


def test_print_config_of_any_command(tmp_path: Path, app: typer.Typer, seen: dict[str, Any]) -> None:
    result = run("--out", "x", "--skip", "a, b", "--print-config", app=app)
    assert result.exit_code == 0 and seen == {}
    (tmp_path / "a.toml").write_text(result.stdout)
    assert run("--config", tmp_path / "a.toml", app=app).exit_code == 0
    assert seen == {"out": Path("x"), "epochs": None, "sparsity": 0.9, "skip": "a,b", "quick": False, "as_json": False}


def test_every_setting_of_a_recipe_is_an_option_of_compare() -> None:
    assert {field.name for field in fields(Recipe)} <= set(inspect.signature(compare).parameters)


@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_print_config_of_compare_holds_the_recipe_of_the_data_set(data: str) -> None:
    import importlib

    toml = pytest.importorskip("tomllib" if importlib.util.find_spec("tomllib") else "tomli")
    values = toml.loads(run("compare", "--data", data, "--gamma", "inf", "--print-config").stdout)
    recipe = recipe_for(data, gamma=float("inf"))
    for field in fields(Recipe):
        value = getattr(recipe, field.name)
        assert values.get(field.name) == (list(value) if isinstance(value, tuple) else value)
    assert values["methods"] == ["imp", "omp", "bip", "spode"] and values["sparsity"] == [0.893, 0.945, 0.972]


def test_a_file_and_the_same_options_are_the_same_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "PROBE_STEPS", 1)
    (tmp_path / "a.toml").write_text(TINY)
    text = run("compare", "--config", tmp_path / "a.toml", "--out", tmp_path / "x", "--print-config").stdout
    (tmp_path / "b.toml").write_text(text)
    runs = [
        [(r["method"], r["sparsity"], r["dense_epochs"]) for r in json.loads(result.stdout)["runs"]]
        for result in (run("compare", "--config", tmp_path / n, "--dry-run", "--json") for n in ("a.toml", "b.toml"))
    ]
    assert runs[0] == runs[1] and len(runs[0]) == 4 and runs[0][0][:2] == ("oneshot", 0.5)
