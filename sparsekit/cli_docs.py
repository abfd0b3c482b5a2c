# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md from the commands themselves: ``python -m sparsekit.cli_docs docs/cli.md [--check]``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from typer.models import ArgumentInfo, OptionInfo

from sparsekit.cli import app

HEAD = """\
# The command line

Made by `python -m sparsekit.cli_docs docs/cli.md`; the tests fail when it is out of date.

Tables and results go to stdout, progress and errors to stderr. With `--json` stdout holds JSON and nothing else; numbers that
are not finite are null, and the keys named below stay. A file that a command writes is written whole or not at all.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a check has failed (`--check`, the test of an export), or runs of a comparison have failed |
| 2 | bad input: stderr says what was expected and what was there |
| 141 | whoever read the output, as `head` does, has stopped reading |
| 130, 143 | interrupted by Ctrl-C, by SIGTERM: finished runs are kept, the same command goes on from there |

`python -m sparsekit` is the same as `sparsekit`. Options of `compare` and `prune` may come from a file (`--config FILE`: TOML,
YAML or JSON with one value per option, lists for options with several values); `--print-config` writes such a file with every
option and its explanation. The command line overrides the file. TOML on Python 3.10 and YAML need
`pip install 'torch-sparsekit[config]'`, ONNX needs `pip install 'torch-sparsekit[onnx]'`.
"""

JSON = {
    "doctor": "`python`, `packages`, `threads`, `native`, `gpus`, `ops`, `dispatch`, `advice`",
    "compare": "a list of rows (below); with `--dry-run` `dense_seconds_per_seed`, `total_seconds`, `runs`",
    "prune": "one row (below)",
    "recipes": "a list with `name`, `options` (of prune) and `paper` of each",
    "resume": "one row (below)",
    "inspect": "`schema`, `kind`, `path`, `ok`, `problems`, `checkpoint` (null without one), `rows`",
    "diff": "`schema`, `kind`, `a`, `b`, `identical_masks`, `masks`, `runs` (each null where there are none)",
    "ablate": "`schema`, `kind`, `run`, `variants`, `answers`, `rows`",
    # The names without marks are not always there.
    "export": "`schema`, `kind`, `path`, `format`, `file_bytes`, `difference`, `batches`; of compact also layers, parameters, "
    "flops, silenced",
}

TAIL = """\
## Rows

A row of `compare` and `prune` has `schema`, `kind`, `id`, `method`, `sparsity`, `seed`, `config` (the recipe) and
`environment`; a finished run has `dense`, `result` (`kept`, `total`, `sparsity`, `mask_hash`, `val_accuracy`, `test_accuracy`,
`test_accuracy_before`) and `cost` (`steps`, `epochs`, `passes`, `dense_epochs`, `seconds` and more), a failed one has `error`.
Accuracies and sparsities are fractions.
"""


def commands(group: typer.Typer, prefix: str = "sparsekit") -> Iterator[tuple[str, Callable[..., Any]]]:
    """(full name, function) of every command, in the order of ``--help``."""
    for command in group.registered_commands:
        if command.callback is not None:
            yield f"{prefix} {command.name or command.callback.__name__}", command.callback
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from commands(inner.typer_instance, f"{prefix} {inner.name}")


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_section(name, function) for name, function in commands(app)), TAIL])


def _section(name: str, function: Callable[..., Any]) -> str:
    parameters = [p for p in inspect.signature(function, eval_str=True).parameters.values() if _note(p) is not None]
    arguments = [p for p in parameters if isinstance(_note(p), ArgumentInfo)]
    usage = " ".join([name, "[OPTIONS]", *(p.name.upper() for p in arguments)])
    lines = [f"## {name}", "", inspect.getdoc(function) or "", "", "```", usage, "```", ""]
    if (word := name.split(" ", 1)[1]) in JSON:
        lines += [f"JSON: {JSON[word]}.", ""]
    lines += ["| option | default | what |", "|---|---|---|"]
    return "\n".join([*lines, *(_line(p) for p in (*arguments, *(p for p in parameters if p not in arguments))), ""])


def _note(parameter: inspect.Parameter) -> Any:
    """What typer was told of the parameter; None for a context."""
    return next((x for x in get_args(parameter.annotation)[1:] if isinstance(x, (ArgumentInfo, OptionInfo))), None)


def _line(parameter: inspect.Parameter) -> str:
    note = _note(parameter)
    name = parameter.name.upper()
    if isinstance(note, OptionInfo):
        # In an annotation the first name given takes the place of the default.
        given = [x for x in (note.default, *(note.param_decls or ())) if isinstance(x, str)]
        name = ", ".join(given) or "--" + parameter.name.replace("_", "-")
    default = parameter.default
    if default is inspect.Parameter.empty:
        shown = "required"
    else:
        shown = "" if default is None or default is False or default == "" else f"`{default}`"
    return f"| `{name}` | {shown} | {(note.help or '').replace('|', chr(92) + '|')} |"


def main(arguments: list[str]) -> int:
    """Write the page to the file named, or with ``--check`` say by the exit code whether it is up to date."""
    names = [x for x in arguments if x != "--check"]
    if len(names) != 1:
        print("usage: python -m sparsekit.cli_docs FILE [--check]", file=sys.stderr)
        return 2
    file = Path(names[0])
    if "--check" in arguments:
        current = file.is_file() and file.read_text(encoding="utf-8") == page()
        print(f"{file} is {'up to date' if current else 'out of date'}")
        return 0 if current else 1
    file.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
