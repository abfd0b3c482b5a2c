# SPDX-License-Identifier: Apache-2.0
"""What the processes of a group tell each other before they work together, so that all go on or all raise the same error.

A process that finds a fault in its own arguments cannot just raise: the others would wait for it. It states the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

# Bytes of one statement; every process sends as many.
STATEMENT = 1024
_FACT = 64
_ERRORS = {"TypeError": TypeError, "ValueError": ValueError}

Stated = list[dict[str, str]]
T = TypeVar("T")


def check_group(function: str, group: Any) -> Any:
    """The process group (None: the default one).

    Raises:
        ValueError: torch.distributed is not initialised. TypeError: not a group of processes with this one in it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        remedy = "start the processes with torchrun and call torch.distributed.init_process_group first"
        raise ValueError(f"{function}: group: expected an initialised torch.distributed, got none; {remedy}")
    group = dist.group.WORLD if group is None else group
    if not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0:
        raise TypeError(f"{function}: group: expected a process group with this process in it, got {group!r}")
    return group


def carrier(group: Any, device: torch.device) -> torch.device:
    """Where the group exchanges what lies on ``device``: there if a backend serves it, else on the CPU, else where it can."""
    pairs = [pair.split(":") for pair in dist.get_backend_config(group).split(",")]
    served = [kind for kind, backend in pairs if backend != "undefined"]
    if device.type in served:
        return device
    return here("cpu" if "cpu" in served else served[0])


def here(kind: str) -> torch.device:
    """The current device of a device type."""
    if kind in ("cpu", "mps"):
        return torch.device(kind)
    return torch.device(kind, torch.get_device_module(kind).current_device())


def gather(x: Tensor, group: Any) -> Tensor:
    """One row for each process, in the order of ranks; x has the same shape on all of them. One collective."""
    rows = x.new_empty((dist.get_world_size(group), *x.shape))
    dist.all_gather(list(rows.unbind(0)), x.contiguous(), group=group)
    return rows


def agree(function: str, group: Any, problem: Exception | None, facts: Mapping[str, object]) -> Stated:
    """Exchange facts: what every process states, in the order of ranks. One collective of ``STATEMENT`` bytes; waits for it.

    Args:
        function: who calls; it has to be the same on all.
        problem: what this process would have raised, or None.
        facts: name -> value with a short text; the names are the same on all processes that have no problem.

    Raises:
        ValueError, TypeError: on all processes alike, the problem of the lowest rank that has one, with that rank.
        RuntimeError: a process does not answer.
    """
    lines = [function, type(problem).__name__ if problem else "", str(problem) if problem else ""]
    if not problem:
        lines += [f"{name}={_short(value)}" for name, value in facts.items()]
    text = "\n".join(lines).encode("ascii", "backslashreplace")[:STATEMENT]
    own = torch.frombuffer(bytearray(text.ljust(STATEMENT, b"\0")), dtype=torch.uint8)
    try:
        rows = gather(own.to(carrier(group, own.device)), group).cpu()
    except RuntimeError as error:  # of the backend, in words about its sockets
        expected = f"word from all {dist.get_world_size(group)} ranks within the time-out of their group"
        reason = "one of them has failed, was killed or hangs; see the first error in the logs of the others"
        raise RuntimeError(f"{function}: group: expected {expected}, got none; {reason} ({error})") from error
    stated = [row.numpy().tobytes().rstrip(b"\0").decode("ascii").split("\n") for row in rows]
    calls = [{"call": lines[0]} for lines in stated]
    same(function, calls, "call")
    for rank, (_, kind, *rest) in enumerate(stated):
        if kind:
            raise _ERRORS.get(kind, RuntimeError)(f"{chr(10).join(rest)} (on rank {rank})") from problem
    return [dict(line.split("=", 1) for line in lines[3:]) for lines in stated]


def alike(function: str, group: Any, call: Callable[[], T], facts: Callable[[T], Mapping[str, object]]) -> T:
    """What ``call`` returns here, once it has returned on all ranks; without a group, ``call()``. One collective; waits for it.

    Args:
        facts: result -> what has to be the same on all ranks, by name; the names do not depend on the result.

    Raises:
        On all processes alike, the error of the lowest rank that has one, or ValueError when facts differ.
    """
    if group is None:
        return call()
    result, problem, own = None, None, {}
    try:
        result = call()
        own = facts(result)
    except Exception as error:  # whatever it is, the others have to learn of it
        problem = error
    stated = agree(function, group, problem, own)
    for name in own:
        same(function, stated, name)
    return result  # pyright: ignore[reportReturnType]


def same(function: str, stated: Stated, name: str, open_to: Sequence[str] = ()) -> str:
    """The value that all processes state for ``name``, those aside that state one of ``open_to``; "" if none is left.

    Raises ValueError on all processes alike when they differ.
    """
    first: tuple[int, str] | None = None
    for rank, facts in enumerate(stated):
        if facts[name] in open_to:
            continue
        first = first or (rank, facts[name])
        if facts[name] != first[1]:
            got = f"{first[1]} on rank {first[0]}, {facts[name]} on rank {rank}"
            raise ValueError(f"{function}: {name}: expected the same on all ranks, got {got}")
    return first[1] if first else ""


def _short(value: object) -> str:
    text = " ".join(str(value).split()).encode("ascii", "backslashreplace").decode()
    if len(text) <= _FACT:
        return text
    # Cut short, texts that differ further on would look the same.
    return f"{text[: _FACT - 16]}..[{crc32(text.encode()):08x}]"
