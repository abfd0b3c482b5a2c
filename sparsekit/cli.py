# SPDX-License-Identifier: Apache-2.0
"""The command line, one module per family of commands. The roof: it may import everything, nothing imports it."""

from __future__ import annotations

import sys

import typer

from sparsekit.ablate_cli import ablate
from sparsekit.bench_cli import bench_app
from sparsekit.compare_cli import compare
from sparsekit.config_cli import configurable
from sparsekit.diff_cli import diff
from sparsekit.doctor_cli import doctor
from sparsekit.export_cli import export
from sparsekit.inspect_cli import inspect
from sparsekit.prune_cli import prune, resume
from sparsekit.recipes_cli import recipes
from sparsekit.speed_cli import speed
from sparsekit.speedup_cli import speedup

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pruning for PyTorch: compare methods, prune a network, look into the result and export it.",
)
for command in (
    doctor,
    compare,
    speedup,
    configurable(prune, recipes=True),
    recipes,
    resume,
    inspect,
    diff,
    ablate,
    export,
    speed,
):
    app.command()(command)
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Entry point of the ``sparsekit`` command."""
    # For module:function of the folder that one is in; last, so that nothing there takes the place of a package.
    sys.path.append("")
    sys.exit(app())
