# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: model, pruner, optimizer, random numbers and whatever else, in one safetensors file. No pickles.

The file holds the tensors, and under "training.json" of its metadata everything else (``state_tree`` says how) with a
digest over all. It is written beside the old one and renamed over it, so a killed save leaves the old checkpoint whole.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sparsekit.ops.replicas import bare
from sparsekit.pruners.base import BasePruner
from sparsekit.pruners.optimizer_state import check_optimizer_state
from sparsekit.random_state import random_state, set_random_state
from sparsekit.state_tree import decode, encode
from sparsekit.tensor_file import read_tensors, write_tensors

KEY, FORMAT, VERSION = "training.json", "sparsekit.training", 1
MISFITS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    AssertionError,
    OverflowError,
)


@runtime_checkable
class Stateful(Protocol):
    """What can be saved by its state: modules, pruners, optimizers, schedulers, scalers, stateful data loaders."""

    def state_dict(self) -> dict[str, Any]:
        """The state as nested dicts, lists and tuples of tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take over a state."""
        ...


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    pruner: BasePruner | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    **extra: Any,
) -> Path:
    """Save what a run needs to go on bit by bit, atomically, in one file.

    Args:
        path: the file; a name ending in .safetensors tells other tools what it is. Missing folders are made.
        model: masks are part of its state; names are those without DistributedDataParallel and ``torch.compile``.
        pruner: holds its own optimizers.
        optimizer: one of your own.
        extra: anything with state_dict (a scheduler, a stateful data loader), or plain values: tensors, numbers,
            strings, bytes, None and dicts, lists and tuples of them (the epoch, the number of the next batch).
            The states of PyTorch's (CPU, CUDA), Python's and NumPy's random numbers are always included.

    Returns:
        The path.

    Raises:
        TypeError, ValueError: something that cannot be saved, by name; nothing is written then. OSError: the disk is full
            or read-only; an earlier checkpoint is as it was, and nothing is left beside it.
    """
    file = _checked_path("save_checkpoint", path)
    if file.is_dir():
        raise ValueError(f"save_checkpoint: path: expected a file, got the folder {str(file)!r}")
    given = _given("save_checkpoint", model, pruner, optimizer, extra)
    sections = {name: v.state_dict() if isinstance(v, Stateful) else v for name, v in given.items()}
    try:
        node, tensors = encode(sections | {"rng": random_state()})
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"save_checkpoint: {error}") from error
    description = {"format": FORMAT, "version": VERSION, "torch": str(torch.__version__), "state": node}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(file, tensors, KEY, description)
    return file


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    pruner: BasePruner | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    rng: bool = True,
    **extra: Any,
) -> dict[str, Any]:
    """Restore a run in place from what ``save_checkpoint`` wrote.

    Args:
        path: the file.
        model: sparsified like the one saved.
        pruner: made with the same arguments; its model is ``model``, or holds or is part of it.
        optimizer: over the same parameters.
        rng: restore the random numbers too.
        extra: objects with load_state_dict, by the names that they were saved under.

    Returns:
        Everything saved that was not asked for, by name: plain values as they were, objects as their states.

    Raises:
        ValueError: no such file, another or a newer format, damaged, or a state that does not fit what it is for.
            Everything is then as it was. With a pruner of several processes, each of which loads its own file, all of
            them raise. TypeError: arguments of a wrong kind.
    """
    file = _checked_path("load_checkpoint", path)
    _check_pair(model, pruner)
    given = _given("load_checkpoint", model, pruner, optimizer, extra)
    for name, value in given.items():
        if not isinstance(value, Stateful):
            raise TypeError(f"load_checkpoint: {name}: expected an object with load_state_dict, got {value!r}")
    # Where several processes prune, each has a file of its own, and none may wait for one that cannot read it.
    alike = (lambda _, call: call()) if pruner is None else pruner.ranks.alike
    state = alike("load_checkpoint", lambda: _read_sections(file, given))
    generators = state.pop("rng", None)
    targets: dict[str, Stateful] = dict(given)
    if rng:
        targets["rng"] = _Generators()
    _restore(file, targets, state | {"rng": generators})
    return {name: value for name, value in state.items() if name not in given}


def _given(function: str, model: Any, pruner: Any, optimizer: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to save or load, in the order in which it is restored."""
    if "rng" in extra:
        raise ValueError(f"{function}: rng: expected another name, got that of the random numbers")
    kinds = {"model": nn.Module, "pruner": BasePruner, "optimizer": torch.optim.Optimizer}
    named = {"model": bare(model) if isinstance(model, nn.Module) else model, "pruner": pruner, "optimizer": optimizer}
    for name, kind in kinds.items():
        if not (named[name] is None or isinstance(named[name], kind)):
            raise TypeError(f"{function}: {name}: expected {kind.__name__}, got {type(named[name]).__name__}")
    return {name: value for name, value in named.items() if value is not None} | dict(extra)


def _check_pair(model: Any, pruner: Any) -> None:
    """A pruner of another model would go on with its own, old weights."""
    if not (isinstance(model, nn.Module) and isinstance(pruner, BasePruner)):
        return
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for p in pruner.model.parameters()):
        raise ValueError("load_checkpoint: pruner: expected a pruner of the model given, got one of another model")


def _checked_path(function: str, path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{function}: path: expected a str or Path, got {type(path).__name__}")
    return Path(path)


def _read(file: Path) -> dict[str, Any]:
    """The state in ``file``, as it was given to ``save_checkpoint``, with "rng"."""
    function = "load_checkpoint"
    if not file.is_file():
        raise ValueError(f"{function}: path: expected a checkpoint, got {str(file)!r}, which is no file")
    tensors, description, _ = read_tensors(function, file, KEY, FORMAT, VERSION)
    if description is None:
        raise ValueError(f"{function}: path: expected a file of save_checkpoint, got {str(file)!r} without {KEY!r}")
    try:
        if description.get("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT!r}, got {description.get('format')!r}")
        state = decode(description.get("state"), tensors)
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise ValueError(f"expected named sections, got {type(state).__name__}")
    except ValueError as error:
        raise ValueError(f"{function}: path: {error} (in {str(file)!r})") from error
    return state


def _read_sections(file: Path, names: Iterable[str]) -> dict[str, Any]:
    """As ``_read``, with all of these names."""
    state = _read(file)
    for name in names:
        if name not in state or name == "rng":
            sections = ", ".join(section for section in state if section != "rng")
            raise ValueError(
                f"load_checkpoint: {name}: expected one of {sections}, got no such section in {str(file)!r}"
            )
    return state


def _restore(file: Path, targets: Mapping[str, Stateful], state: Mapping[str, Any]) -> None:
    """Hand the states to their objects; if one does not take its own, all go back to what they were."""
    before: dict[str, Any] = {}
    name = ""
    try:
        for name, target in targets.items():
            own = target.state_dict()
            _check_section(target, own, state[name])
            before[name] = copy.deepcopy(own)
            target.load_state_dict(state[name])
    except BaseException as error:
        for changed, own in reversed(before.items()):
            targets[changed].load_state_dict(own)
        if isinstance(error, MISFITS):
            expected = f"load_checkpoint: {name}: expected a state that fits"
            raise ValueError(f"{expected}, got another ({error}) (in {str(file)!r})") from error
        raise


def _check_section(target: Stateful, own: Mapping[str, Any], given: Any) -> None:
    """What torch would take without a word although training could then not go on as it was."""
    if not isinstance(given, dict):
        raise ValueError(f"expected a dict, got {type(given).__name__}")
    if isinstance(target, torch.optim.Optimizer):
        check_optimizer_state(target, given)
    if not isinstance(target, nn.Module):
        return
    for problem, names in (("missing", own.keys() - given.keys()), ("unknown", given.keys() - own.keys())):
        if names:
            raise ValueError(f"expected the model's keys, got {problem} {', '.join(sorted(map(str, names))[:5])}")
    for name, value in own.items():
        other = given[name]
        if isinstance(value, Tensor) != isinstance(other, Tensor):
            raise ValueError(f"{name}: expected {type(value).__name__}, got {type(other).__name__}")
        if isinstance(value, Tensor) and (value.shape, value.dtype) != (other.shape, other.dtype):
            expected, got = (f"{t.dtype} {tuple(t.shape)}" for t in (value, other))
            raise ValueError(f"{name}: expected {expected}, got {got}")


class _Generators:
    """The process's random numbers as something with a state."""

    def state_dict(self) -> dict[str, Any]:
        return random_state()

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        set_random_state(state)
