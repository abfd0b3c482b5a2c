# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, executed: who may import whom, sizes, docstrings, licence lines, the public names."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparsekit as sk

ROOT = Path(__file__).parents[1]
FAMILIES = (
    "ablate_cli", "bench_cli", "compare_cli", "diff_cli", "doctor_cli", "export_cli", "inspect_cli", "prune_cli", "recipes_cli",
    "speed_cli", "speedup_cli",
)  # fmt: skip
# A file may import its own unit and the units of the lines above it; never one on its own line or below.
FLOORS = [
    ["_C", "kernels", "nm", "allocation", "schedules", "criteria", "clocks", "loggers", "modes", "state_tree"],
    ["random_state", "fisher", "probabilities", "reparametrisations", "channel_rules", "export_proof", "reach_mode"],
    ["examples", "compact_report"],
    ["tensor_file", "channel_trace"],
    ["patterns", "channels"],
    ["ops", "surgery"],
    ["mask"],
    ["coupled"],
    ["unit_masks", "structure", "mask_variants"],
    ["projection", "nn"],
    ["gradients", "optim", "compact", "effective"],
    ["coupling"],
    ["pruners"],
    ["io", "checkpoint", "doctor", "layer_speed"],
    ["stored_masks"],
    ["inspection", "model_card", "compact_file"],
    ["mask_diff", "export"],
    ["integrations"],  # for other people's trainers; imported by their users alone
    ["sparsekit"],  # the package's __init__: the public names
    ["benchmarks"],
    ["console"],  # what the commands share
    ["recipe_cli"],  # options of the commands that run recipes
    ["config_cli"],  # options from files
    [*FAMILIES],  # commands in files of their own
    ["cli"],
    ["__main__", "cli_docs"],
]
LEAVES = [
    "nm",
    "allocation",
    "schedules",
    "criteria",
    "clocks",
    "modes",
    "state_tree",
    "fisher",
    "probabilities",
    "reparametrisations",
]
ABSENT_FROM_LEAVES = {"allocation": "torch", "schedules": "torch"}
FLOOR = {unit: i for i, units in enumerate(FLOORS) for unit in units}
PYTHON = sorted(p for folder in ("sparsekit", "kernels", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".cpp", ".cu", ".cuh", ".h", ".inl"})
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MODULE_LINES, FUNCTION_LINES, KERNEL_LINES = 250, 40, 100

# What `from sparsekit import *` gives: a name more or less is a decision, so it is made here too.
# fmt: off
PUBLIC = [
    "BiP", "BiPOptions", "Block", "Channel", "CollapseWarning", "CompactReport", "Constant", "CoupledFilters", "Criterion",
    "CriterionPruning", "Cubic", "DPF", "ERK", "ExportReport", "Filter", "GMP", "Geometric", "Global", "GraSP", "Gradual",
    "Hydra", "IMP", "IMPOptions", "Inspection", "Iterative", "Linear", "Mask", "MaskDifference", "MaskedAdamW",
    "MaskedConv1d", "MaskedConv2d", "MaskedConv3d", "MaskedLayer", "MaskedLinear", "MaskedSGD", "Masks", "Metrics",
    "Movement", "NM", "OMP", "OneShotMagnitude", "PerLayer", "Powerprop", "ProbMask", "ProbMaskOptions", "Projection",
    "Pruner", "RandomPruning", "RigL", "SET", "SNIP", "STR", "SpODE", "SpODEOptions", "SparsifyReport", "SpeedReport",
    "SynFlow", "Uniform", "Unstructured", "WoodFisher", "cached_weights", "captured", "check_ranks", "compact",
    "compacted_filters", "coupled_filters", "criterion", "dense_gradient", "dense_gradients", "dense_state_dict",
    "diagnose", "diff", "effective_masks", "effective_weights", "export", "finalize", "frozen_batchnorm", "gradients_at",
    "guard_", "inspect", "inverted_choice", "kept_count", "load", "load_checkpoint", "load_compact", "masked_layers",
    "masks", "prepared_weights", "random_like", "recalibrate_batchnorm", "save", "save_checkpoint", "save_compact",
    "set_masks", "shuffled", "silence_batchnorm_", "sparsify", "speed", "summary", "topk_mask",
]
# fmt: on


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> list[str]:
    """Installed dotted name, as parts: kernels/ and benchmarks/ live inside sparsekit."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts if parts[0] == "sparsekit" else ["sparsekit", *parts]
    return parts[:-1] if parts[-1] == "__init__" else parts


def unit_of(module: list[str]) -> str:
    return module[1] if len(module) > 1 else "sparsekit"


def imported(path: Path, tree: ast.AST) -> Iterator[tuple[int, list[str]]]:
    """(line, dotted name as parts) of every import, also inside functions; relative ones made absolute."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path)[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                # "from sparsekit import ops" names a unit; "from sparsekit import Mask" a public name.
                known = base == ["sparsekit"] and alias.name in FLOOR
                yield node.lineno, [*base, alias.name] if known else base


def edges(path: Path) -> Iterator[tuple[int, str]]:
    """(line, unit) of every import of ours."""
    for line, module in imported(path, ast.parse(path.read_text())):
        if module[0] == "sparsekit":
            yield line, unit_of(module)


def violations(path: Path) -> list[str]:
    own = unit_of(module_of(path))
    found = [(line, unit) for line, unit in edges(path) if unit != own and FLOOR[unit] >= FLOOR[own]]
    return [f"{relative(path)}:{line} imports {unit}" for line, unit in found]


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_import_rule(path: Path) -> None:
    assert unit_of(module_of(path)) in FLOOR, "a new unit needs a floor"
    assert violations(path) == []


def test_the_floors_are_those_of_the_picture() -> None:
    units = {unit_of(module_of(path)) for path in PYTHON} | {"_C"}
    assert units == FLOOR.keys()
    picture = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    unnamed = {"_C", "sparsekit", "__main__", "cli_docs", *FAMILIES}  # csrc; the roof and its families
    assert units - unnamed <= set(re.findall(r"\w+", picture))


def test_kernels_import_nothing_of_ours_but_kernels() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        assert {unit for _, unit in edges(path)} <= {"kernels"}
        allowed = {"torch", "triton", "sparsekit", *sys.stdlib_module_names}
        assert {module[0] for _, module in imported(path, ast.parse(path.read_text()))} <= allowed, relative(path)


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_are_pure(leaf: str) -> None:
    path = ROOT / "sparsekit" / f"{leaf}.py"
    modules = {module[0] for _, module in imported(path, ast.parse(path.read_text()))}
    assert modules <= {"torch", *sys.stdlib_module_names}
    assert ABSENT_FROM_LEAVES.get(leaf) not in modules


def test_patterns_import_nothing_of_ours_but_nm() -> None:
    path = ROOT / "sparsekit" / "patterns.py"
    assert {unit for _, unit in edges(path)} <= {"nm"}
    modules = {module[0] for _, module in imported(path, ast.parse(path.read_text()))}
    assert modules <= {"torch", "sparsekit", *sys.stdlib_module_names}


SHARED = ("config_cli", "recipe_cli")
COMMANDS = {f"sparsekit/{name}.py" for name in (*FAMILIES, *SHARED, "cli")}
ROOF = (*FAMILIES, *SHARED, "cli", "cli_docs", "console")


def test_only_the_cli_knows_the_benchmarks() -> None:
    users = {relative(p) for p in (ROOT / "sparsekit").rglob("*.py") for _, unit in edges(p) if unit == "benchmarks"}
    assert users <= COMMANDS


def test_nobody_imports_the_roof() -> None:
    importers = {(unit, relative(p)) for p in PYTHON for _, unit in edges(p) if unit in ROOF}
    allowed = {(unit, "sparsekit/cli.py") for unit in (*FAMILIES, "config_cli")}
    allowed |= {("cli", "sparsekit/__main__.py"), ("recipe_cli", "sparsekit/config_cli.py")}
    allowed |= {("recipe_cli", "sparsekit/export_cli.py"), ("cli", "sparsekit/cli_docs.py")} | {
        (unit, f"sparsekit/{name}_cli.py") for unit in SHARED for name in ("ablate", "compare", "prune", "speedup")
    }
    assert importers <= allowed | {("console", path) for path in COMMANDS}


@pytest.mark.parametrize("path", [p for p in PYTHON if "ops" not in p.parts], ids=relative)
def test_only_ops_touches_the_raw_ops(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.ops.sparsekit")), (
            node.lineno
        )


def test_the_rule_notices_what_it_forbids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    cases = {
        "sparsekit/mask.py": ["from sparsekit.nn import sparsify", "def f():\n    import sparsekit.projection"],
        "sparsekit/projection.py": ["from sparsekit import nn", "from . import nn", "from .pruners.base import Pruner"],
        "sparsekit/ops/schemas.py": ["from ..mask import Mask", "from sparsekit import Mask", "import sparsekit"],
        "sparsekit/io.py": ["from sparsekit import doctor", "import sparsekit.benchmarks.data as d"],
        "kernels/tile.py": ["from sparsekit import ops", "import sparsekit.mask"],
        "benchmarks/run.py": ["from sparsekit.cli import main"],
    }
    for name, sources in cases.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for source in sources:
            path.write_text(source)
            assert len(violations(path)) == 1, (name, source)
    path.write_text("import torch, sparsekit as sk\nfrom sparsekit.nn.linear import MaskedLinear\nfrom . import data")
    assert violations(path) == []


@pytest.mark.parametrize("path", [*PYTHON, *NATIVE], ids=relative)
def test_module_size(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES


def functions(path: Path) -> Iterator[tuple[ast.FunctionDef, int, int]]:
    """(function, lines without its docstring, limit)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            documented = ast.get_docstring(node) is not None
            docstring = first.end_lineno - first.lineno + 1 if documented else 0  # pyright: ignore[reportOperatorIssue]
            # The options of a command are a declaration of the command line; only what is done with them is code.
            start = first.lineno if relative(path) in COMMANDS else node.lineno
            kernel = any("jit" in ast.unparse(d) for d in node.decorator_list)
            yield node, node.end_lineno - start + 1 - docstring, KERNEL_LINES if kernel else FUNCTION_LINES  # pyright: ignore


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_function_size(path: Path) -> None:
    assert [f"{f.name}: {lines} lines" for f, lines, limit in functions(path) if lines > limit] == []


def undocumented(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    if ast.get_docstring(tree) is None:
        yield "the module"
    for node in tree.body:
        public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        if public and ast.get_docstring(node) is None:
            yield node.name


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_docstrings(path: Path) -> None:
    assert list(undocumented(path)) == []


@pytest.mark.parametrize("path", [*PYTHON, *NATIVE, *TESTS, ROOT / "setup.py"], ids=relative)
def test_licence_line(path: Path) -> None:
    assert path.read_text().splitlines()[0].lstrip("#/ ") == "SPDX-License-Identifier: Apache-2.0"


def test_public_names_are_frozen() -> None:
    assert sorted(sk.__all__) == sorted(PUBLIC)
    assert len(set(sk.__all__)) == len(sk.__all__)


@pytest.mark.parametrize("name", sorted(sk.__all__))
def test_public_names_exist_and_are_documented(name: str) -> None:
    value = getattr(sk, name)
    assert (value.__doc__ or "").strip(), name
    assert value.__module__.startswith("sparsekit")


def test_importing_the_package_is_light() -> None:
    heavy = {"torchvision", "timm", "matplotlib", "scipy", "sklearn", "typer", "rich", "jinja2", "triton"}
    heavy |= {"transformers", "lightning", "pytorch_lightning", "accelerate", "tensorboard", "wandb"}
    on_demand = {"benchmarks", "kernels", "integrations", *ROOF}
    for path in PYTHON:
        if unit_of(module_of(path)) in on_demand or path.stem == "conv1d_of_transformers":
            continue
        top = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
        names = {a.name.split(".")[0] for n in top if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module.split(".")[0] for n in top if isinstance(n, ast.ImportFrom) and n.module}
        assert not names & heavy, relative(path)
