# SPDX-License-Identifier: Apache-2.0
"""Weights that are read without calling the module that owns them: a mask inside its forward would not reach the read.

Attention projections and fused fast paths do this. The source of a module's class is searched, and where it leaves a
doubt the answer is yes, because a layer skipped by name is better than one that is silently unmasked.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, TypeGuard

from torch import nn

# Reading these of a weight uses none of its values.
_HARMLESS = {"dtype", "device", "shape", "ndim", "size", "dim", "requires_grad", "is_cuda", "numel"}
# Methods whose names say that they set a module up or rebuild it (finalize comes before that): harmless outside forward.
_SETUP = ("init", "reset", "load", "tie_", "set_", "extra_repr", "fuse", "reparam", "deploy", "resize")
_SETUP += ("configure_", "optimizer", "_adapters")
# Attributes through which a weight is reached.
_SUSPECT = {"weight", "_parameters", "parameters", "named_parameters", "get_parameter"}
_ANY = "*"  # some child, it is not known which
Path = tuple[str, ...]


def bypassed(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Submodules whose weight ``module`` may read without calling them, each with the method that does.

    Seen are ``self.a.b.weight``, local names and loop variables that stand for submodules, subscripts, getattr and
    properties; not seen are reads in a function that is handed a whole submodule.
    """
    for function, name in _functions(module):
        for path in _weight_paths(function):
            for owner in _resolve(module, path):
                yield owner, name


def _functions(module: nn.Module) -> Iterator[tuple[Any, str]]:
    """Functions of the module's classes (and of the object itself) that may take part in a forward pass."""
    kinds = [kind for kind in type(module).__mro__ if kind not in (nn.Module, object)]
    owned = [(name, _plain(value), kind) for kind in kinds for name, value in vars(kind).items()]
    owned += [(name, value.__func__, None) for name, value in vars(module).items() if inspect.ismethod(value)]
    functions = [(name, function, kind) for name, function, kind in owned if inspect.isfunction(function)]
    reached = {"forward"}
    while more := {n for name, f, _ in functions if name in reached for n in _names_of_self(f)} - reached:
        reached |= more
    for name, function, kind in functions:
        # Libraries mix dozens of conveniences into their models; a class that is no module counts where a forward uses it.
        entry = (kind is None or issubclass(kind, nn.Module)) and not any(word in name for word in _SETUP)
        if name in reached or entry:
            yield function, f"{kind.__name__ if kind else 'its own'}.{name}"


def _plain(value: Any) -> Any:
    """The function inside a property, staticmethod or classmethod."""
    return value.fget if isinstance(value, property) else getattr(value, "__func__", value)


@functools.cache
def _tree(function: Any) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):
        return None


def _receiver(function: Any) -> str:
    """What the function calls its module: nearly always self."""
    return next(iter(function.__code__.co_varnames), "self")


@functools.cache
def _names_of_self(function: Any) -> frozenset[str]:
    receiver, tree = _receiver(function), _tree(function)
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute)) if tree else ()
    return frozenset(n.attr for n in attributes if isinstance(n.value, ast.Name) and n.value.id == receiver)


@functools.cache
def _weight_paths(function: Any) -> tuple[Path, ...]:
    """Paths p such that the function reads self.p.weight for more than its dtype, device or shape."""
    tree = _tree(function)
    if tree is None:
        # No source (a shell, a compiled file): the names in the byte code cannot tell whose weight it is.
        return ((_ANY,),) if _SUSPECT & set(function.__code__.co_names) else ()
    known = _bound_paths(tree, _receiver(function))
    harmless = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in _HARMLESS}
    harmless |= {id(part) for n in ast.walk(tree) if _asks_the_type(n) for part in (n, *n.args)}
    found: list[Path] = []
    for node in ast.walk(tree):
        if id(node) in harmless or not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            continue
        if isinstance(node, (ast.Attribute, ast.Call)):
            found += sorted(path[:-1] for path in _paths(node, known) if len(path) > 1 and path[-1] in _SUSPECT)
    return tuple(dict.fromkeys(found))


def _asks_the_type(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "type")


def _bound_paths(tree: ast.AST, receiver: str) -> dict[str, set[Path]]:
    """For every name in the function: the paths under self that it may stand for."""
    known: dict[str, set[Path]] = {receiver: {()}}
    bindings: list[tuple[ast.AST, ast.AST, Path]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            bindings += [(target, node.value, ()) for target in node.targets]
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            bindings.append((node.target, node.value, ()))
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            bindings.append((node.target, node.iter, (_ANY,)))
    for _ in range(2):  # a name may be bound through another one that is bound further down
        for target, value, suffix in bindings:
            new = {path + suffix for path in _paths(value, known) if len(path) < 8}
            for node in ast.walk(target):
                if isinstance(node, ast.Name) and node.id != receiver:
                    known.setdefault(node.id, set()).update(new)
    return known


def _paths(node: ast.AST, known: dict[str, set[Path]]) -> set[Path]:
    """Paths under self that the value of an expression may be, or hold."""
    if isinstance(node, ast.Name):
        return known.get(node.id, set())
    if isinstance(node, ast.Attribute):
        return {(*path, node.attr) for path in _paths(node.value, known)}
    if isinstance(node, ast.Subscript):
        return {(*path, _ANY) for path in _paths(node.value, known)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        name = node.args[1].value if isinstance(node.args[1], ast.Constant) else _ANY
        return {(*path, str(name)) for path in _paths(node.args[0], known)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return {path for argument in node.args for path in _paths(argument, known)}  # enumerate, zip, list, reversed
    if isinstance(node, ast.Call):
        return _paths(node.func, known)
    return {path for child in ast.iter_child_nodes(node) for path in _paths(child, known)}


def _resolve(module: nn.Module, path: Path) -> list[nn.Module]:
    modules = [module]
    for part in path:
        modules = [child for m in modules for child in _children(m, part)]
    return modules


def _children(module: nn.Module, part: str) -> list[nn.Module]:
    if part == _ANY:
        return list(module.children())
    value = module._modules.get(part, vars(module).get(part))
    if isinstance(value, (list, tuple)):
        return [m for m in value if isinstance(m, nn.Module)]
    if isinstance(value, nn.Module):
        return [value]
    # A method or property of the class may hand out anything below.
    return list(module.modules()) if hasattr(type(module), part) else []
