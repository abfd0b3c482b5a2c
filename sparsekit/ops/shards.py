# SPDX-License-Identifier: Apache-2.0
"""Tensors spread over processes (DTensor): which ones the ops take, and how a function of local parts makes a new one.

A DTensor on a 1-D mesh is taken when it is replicated or sharded on dim 0 as ``torch.chunk`` cuts. Then the parts in mesh
order, one after the other, are the C order of the whole tensor, and rows of mask words lie where the rows of the weight
do. A plain tensor passes every function here as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekit.ops.reference import FLOATS


def is_spread(x: object) -> bool:
    """Is x a DTensor?"""
    # Asked of the object, because importing its class takes long.
    return isinstance(x, Tensor) and hasattr(x, "device_mesh")


def is_replicated(x: Any) -> bool:
    """Has every process the whole of this DTensor, which ``check_spread`` has let pass?"""
    return x.placements[0].is_replicate()


def check_spread(where: str, x: Any, words: bool = True) -> None:
    """Raise ValueError unless the DTensor is one that the ops take.

    Args:
        where: "function: argument", the start of the message.
        words: are mask words of it asked for? They keep a vector in one row, which cannot be sharded.
    """
    from torch.distributed.tensor import Replicate, Shard

    mesh, placements = x.device_mesh, tuple(x.placements)
    if mesh.ndim != 1 or mesh.get_coordinate() is None:
        raise ValueError(f"{where}: expected a 1-D device mesh with this process in it, got {mesh}")
    # The exact types: a strided shard, in some versions derived from Shard, has another order of rows.
    if type(placements[0]) is Replicate:
        return
    if type(placements[0]) is not Shard or placements[0].dim != 0:
        raise ValueError(f"{where}: expected placement Shard(0) or Replicate(), got {placements[0]}")
    if x.ndim < 2 and words:
        raise ValueError(f"{where}: expected at least 2 dimensions under Shard(0), got shape {tuple(x.shape)}")
    size, (rank,) = -(-x.shape[0] // mesh.size()), mesh.get_coordinate()
    rows = min(x.shape[0], (rank + 1) * size) - min(x.shape[0], rank * size)
    got, expected = tuple(x.to_local().shape), (rows, *x.shape[1:])
    if got != expected:
        raise ValueError(f"{where}: expected a shard of shape {expected} as torch.chunk cuts, got {got}")


def check_score(name: str, x: object) -> None:
    """Raise TypeError unless x is a tensor of a dtype and layout that selections read; ``name`` starts the message."""
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: expected a float64/32/16 or bfloat16 tensor, got {got}")
    if x.layout != torch.strided or x.is_nested:
        got = "a nested tensor" if x.is_nested else f"layout {x.layout}"
        raise TypeError(f"{name}: expected a strided tensor, got {got}")


def check_scores(names: Sequence[str], scores: Sequence[Any], group: Any, words: bool = True) -> None:
    """Raise unless the scores can be ranked together with those of other processes.

    They are strided float tensors on one device; all plain, or all DTensors that the ops take, on one mesh and without a group.

    Args:
        names: "function: argument" for each tensor.
        words: see ``check_spread``.
    """
    for i, (name, x) in enumerate(zip(names, scores, strict=True)):
        check_score(name, x)
        if x.device != scores[0].device:
            raise ValueError(f"{name}: expected device {scores[0].device}, got {x.device}")
        if is_spread(x) != is_spread(scores[0]):
            raise ValueError(f"{name}: expected either DTensors or plain tensors, got both")
        if not is_spread(x):
            continue
        if group is not None:
            raise ValueError(f"{name}: expected a plain tensor with a group, got a DTensor, which brings its own")
        check_spread(name, x, words)
        mesh, first = (s.device_mesh for s in (scores[i], scores[0]))
        if mesh != first:
            raise ValueError(f"{name}: expected {first} as for the first, got {mesh}")


def group_of(tensors: Any) -> Any:
    """The process group of the first DTensor of a list, or None where there is none or its mesh is not 1-D."""
    try:
        first = next((x for x in tensors if is_spread(x)), None)
    except Exception:  # a list that cannot be read is refused later, where the other processes learn of it
        first = None
    return first.device_mesh.get_group() if first is not None and first.device_mesh.ndim == 1 else None


def part(x: Any) -> Tensor:
    """This process's part of x, detached."""
    return x.detach().to_local() if is_spread(x) else x.detach()


def spread(part: Tensor, like: Any, shape: Sequence[int]) -> Tensor:
    """The tensor of ``shape`` that has this part here and is spread as ``like`` is; a plain ``like`` leaves it as it is."""
    if not is_spread(like):
        return part
    from torch.distributed.tensor import DTensor

    whole = torch.empty(tuple(shape), device="meta")
    placing = {"run_check": False, "shape": whole.shape, "stride": whole.stride()}
    return DTensor.from_local(part, like.device_mesh, like.placements, **placing)


def spread_as(x: Tensor, like: Any) -> Tensor:
    """A plain x of which every process has the whole, as a DTensor spread as ``like`` is; anything else as it is."""
    if is_spread(x) or not is_spread(like):
        return x
    return spread(x if is_replicated(like) else rows_here(x, like), like, x.shape)


def rows_here(x: Tensor, like: Any) -> Tensor:
    """Of a whole tensor with one row (dim 0) for each of ``like``, a DTensor under Shard(0), the rows of this process."""
    size, (rank,) = -(-like.shape[0] // like.device_mesh.size()), like.device_mesh.get_coordinate()
    return x[rank * size : (rank + 1) * size]


def pair_parts(where: str, owner: Any, x: Any) -> Tensor:
    """This process's part of x, which is spread as ``owner`` is; ``where`` starts the message if it is not."""
    if is_spread(x) != is_spread(owner) or (is_spread(x) and (x.device_mesh, x.placements) != _place(owner)):
        got = f"{x.placements}" if is_spread(x) else "a plain tensor"
        expected = f"{owner.placements}" if is_spread(owner) else "a plain tensor"
        raise ValueError(f"{where}: expected {expected} on the mesh of the first list, got {got}")
    return part(x)


def _place(x: Any) -> tuple[Any, Any]:
    return x.device_mesh, x.placements


def reshard(model: torch.nn.Module) -> None:
    """Let fully_shard put away the whole weights that a forward pass may have left, so that parameters are DTensors again."""
    for module in model.modules():
        if type(module).__name__.startswith("FSDP") and callable(getattr(module, "reshard", None)):
            module.reshard()  # pyright: ignore[reportCallIssue]


def on_parts(function: Callable[..., Tensor], *tensors: Any, shape: Sequence[int]) -> Tensor:
    """``function`` of the local parts of ``tensors``, as a tensor of ``shape`` that is spread as the first of them is."""
    return spread(function(*map(part, tensors)), tensors[0], shape)


def total(function: Callable[[Tensor], Tensor], x: Any) -> Tensor:
    """Sum over all processes of ``function`` of their parts, 0-d and plain. All processes of the mesh have to call."""
    return function(part(x)) if is_replicated(x) else added(function(part(x)), x)


def added(here: Tensor, like: Any) -> Tensor:
    """Sum of ``here`` over the processes that have parts of the DTensor ``like``, plain. All of them have to call."""
    from torch.distributed.tensor import DTensor, Partial

    return DTensor.from_local(here, like.device_mesh, [Partial()], run_check=False).full_tensor()


def gathered(x: Any) -> Tensor:
    """The whole of x, plain. All processes of the mesh have to call."""
    return x.full_tensor() if is_spread(x) else x


def part_here(x: Any) -> Tensor:
    """This process's part of x if it answers for that, else an empty tensor."""
    return part(x) if numel_here(x) else part(x).new_empty(0)


def numel_here(x: Any) -> int:
    """Elements of x that this process answers for: its part; a replicated tensor belongs to the first process."""
    if not is_spread(x):
        return x.numel()
    owned = not is_replicated(x) or x.device_mesh.get_coordinate()[0] == 0
    return part(x).numel() if owned else 0
