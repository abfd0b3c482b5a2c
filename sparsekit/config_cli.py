# SPDX-License-Identifier: Apache-2.0
"""``--config FILE`` and ``--print-config`` for a command: one decorator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.models import ArgumentInfo

from sparsekit.console import reported
from sparsekit.recipe_cli import parsed_list, recipe_of

CONFIG = "TOML, YAML or JSON file of options; the command line overrides it."
PRINT = "Print all options as a commented TOML file, and stop."
RECIPE = (
    "A paper's recipe by its name (see `sparsekit recipes`) or a file of one; --config and other options override it."
)
# About the call rather than about what is run.
_APART = {"as_json", "dry_run"}
# Options that hold several values, separated by commas; in a file they are lists. With the kind of an entry.
_LISTS: dict[str, type] = {"methods": str, "sparsity": float, "skip": str}


def configurable(command: Callable[..., None], recipes: bool = False) -> Callable[..., None]:
    """Give a command the options ``--config FILE`` and ``--print-config``.

    Args:
        command: a function for typer that takes a ``context: typer.Context``; its options are the keys of the file. What
            runs recipes has the defaults of its data set printed.
        recipes: give it ``--recipe`` too, whose values both the file and the command line override.
    """
    own = inspect.signature(command, eval_str=True)
    parameters = list(own.parameters.values())
    context_name = next(p.name for p in parameters if p.annotation is typer.Context)

    def load(context: typer.Context, file: Path | None) -> Path | None:
        """Values of the file become the defaults of the options, so that the command line overrides them."""
        if file is not None:
            with reported("nothing was written"):
                context.default_map = {**(context.default_map or {}), **_values(file, parameters)}
        return file

    def load_recipe(context: typer.Context, name: str | None) -> str | None:
        if name is not None:
            with reported("nothing was written"):
                context.default_map = {**_of_recipe(name, parameters), **(context.default_map or {})}
        return name

    @functools.wraps(command)
    def run(*, print_config: bool = False, **options: Any) -> None:
        options = {name: value for name, value in options.items() if name in own.parameters}
        if not print_config:
            return command(**options)
        with reported("nothing was written"):
            title = (
                f"sparsekit {options[context_name].info_name} --config FILE. What the command line gives overrides it."
            )
            print(_written(title, options, parameters), end="")

    new = _parameters(load, load_recipe if recipes else None)
    given = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = own.replace(parameters=[*given, *new])  # pyright: ignore[reportAttributeAccessIssue]
    return run


def _parameters(load: Callable[..., Any], load_recipe: Callable[..., Any] | None) -> list[inspect.Parameter]:
    """The options that every configurable command gets."""
    added: dict[str, tuple[Any, Any, Any]] = {
        "recipe": (str | None, None, typer.Option("--recipe", callback=load_recipe, is_eager=True, help=RECIPE)),
        "config": (Path | None, None, typer.Option("--config", callback=load, is_eager=True, help=CONFIG)),
        "print_config": (bool, False, typer.Option("--print-config", help=PRINT)),
    }
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
        for name, (kind, default, option) in added.items()
        if name != "recipe" or load_recipe is not None
    ]


def _settings(parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """The options of a command that a file may set, as its signature declares them."""
    from sparsekit.benchmarks.config import Setting

    settings = {}
    for parameter in parameters:
        declared, *notes = get_args(parameter.annotation) or (parameter.annotation,)
        option = next((note for note in notes if hasattr(note, "help")), None)
        if option is None or isinstance(option, ArgumentInfo) or parameter.name in _APART:
            continue
        kinds = {kind for kind in get_args(declared) or (declared,) if kind is not type(None)}
        kind = next(kind for kind in (bool, int, float, str) if kind in kinds or kind is str)
        many = kind is str and parameter.name in _LISTS
        settings[parameter.name] = Setting(_LISTS[parameter.name] if many else kind, option.help or "", many)
    return settings


def _values(file: Path, parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """What the file holds, as the command line would have it."""
    from sparsekit.benchmarks.config import read_config

    return _joined(file, read_config(file, _settings(parameters)))


def _of_recipe(name: str, parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """What the recipe of that name holds, as the command line would have it."""
    from sparsekit.benchmarks.recipe_files import find_recipe, recipe_values

    file = find_recipe(name)
    return _joined(file, recipe_values(file, _settings(parameters)))


def _joined(file: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values with the entries of lists joined by commas."""
    for key, value in values.items():
        if isinstance(value, list):
            values[key] = ",".join(map(str, value))
            if any("," in part for part in map(str, value)):
                raise ValueError(f"config {file}: {key}: expected entries without a comma, got {value!r}")
    return values


def _written(title: str, options: dict[str, Any], parameters: list[inspect.Parameter]) -> str:
    from sparsekit.benchmarks.config import write_config

    settings, values = _settings(parameters), dict(options)
    if {"data", "threads"} <= values.keys():
        recipe = recipe_of(values)
        values |= {name: getattr(recipe, name) for name in settings if hasattr(recipe, name)}
    for name, setting in settings.items():
        if setting.many and isinstance(values[name], str):
            values[name] = parsed_list(f"--{name}", values[name], setting.kind)
        elif isinstance(values[name], Path):
            values[name] = str(values[name])
    return write_config(title, values, settings)
