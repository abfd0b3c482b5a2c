# SPDX-License-Identifier: Apache-2.0
"""check_ranks: do all processes that train copies of one model still have the same masks?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.nn.access import masked_layers
from sparsekit.nn.masked import WORDS
from sparsekit.ops import agreement, replicas, shards

_FIGURES = ("layers", "step", "masks", "weights")


def check_ranks(model: nn.Module, group: Any = None, *, step: int = 0, weights: bool = False) -> None:
    """Raise on all ranks if one of them has other masks than the rest. Every process of the group has to call.

    Each process sends 32 bytes: hashes of its layers' names and shapes, of its masks and of its weights, and its step. Only
    when these differ, a second collective finds the first layer that does. The masks are copied to the host.

    Args:
        model: sparsified; alone, in DistributedDataParallel, or under fully_shard.
        group: process group; by default that of the DistributedDataParallel or of the device mesh, else all processes.
        step: compared as well, for instance the number of the training step.
        weights: compare all parameters too, which copies them to the host; of sharded ones no two ranks have the same part,
            so they are left out.

    Raises:
        ValueError: on all ranks alike, naming the ranks that differ from most others (from rank 0 where there is no
            majority) and the layer. Without an initialised torch.distributed, and for a model without masks, the process
            raises alone.
    """
    layers = masked_layers(model)
    if not layers:
        raise ValueError("check_ranks: model: expected masked layers, got none; call sparsify first")
    if group is None:
        group = replicas.group_of(model) or shards.group_of(model.parameters())
    group = agreement.check_group("check_ranks", group)
    inner = replicas.unwrapped(model)
    tensors = {f"{name}.{WORDS}": layer.mask_words for name, layer in layers.items()}
    parts = dict(inner.named_parameters()) if weights else {}
    plain = {name: p for name, p in parts.items() if not shards.is_spread(p)}
    names = _digest(f"{name}:{tuple(t.shape)}".encode() for name, t in (*tensors.items(), *parts.items()))
    own = [names, int(step), _of_tensors(tensors.values()), _of_tensors(plain.values())]
    rows = _gathered(own, group)
    for place, figure in enumerate(_FIGURES):
        column = [row[place] for row in rows]
        if odd := _odd(column):
            where = {"masks": tensors, "weights": plain}.get(figure)
            name = _first_difference(where, group) if where is not None else ""
            raise ValueError(_message(figure, odd, column, name))


def _gathered(numbers: Sequence[int], group: Any) -> list[list[int]]:
    own = torch.tensor(numbers, dtype=torch.int64, device=agreement.carrier(group, torch.device("cpu")))
    return agreement.gather(own, group).tolist()


def _first_difference(tensors: dict[str, Tensor], group: Any) -> str:
    """Name of the first tensor that is not the same on all ranks, which know by now that there is one."""
    rows = _gathered([_of_tensors([t]) for t in tensors.values()], group)
    return next(name for name, column in zip(tensors, zip(*rows, strict=True), strict=True) if len(set(column)) > 1)


def _odd(column: Sequence[int]) -> list[int]:
    """Ranks whose value is not that of most ranks; of equally frequent values that of the lowest rank is the right one."""
    usual = max(column, key=lambda value: (column.count(value), -column.index(value)))
    return [rank for rank, value in enumerate(column) if value != usual]


def _message(figure: str, odd: Sequence[int], column: Sequence[int], name: str) -> str:
    """What differs on which ranks."""
    usual = next(rank for rank in range(len(column)) if rank not in odd)
    who = f"rank {odd[0]} differs" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))} differ"
    where = f", first in `{name}`" if name else ""
    got = ", ".join(_shown(figure, column[rank]) for rank in (*odd[:4], usual))
    return f"check_ranks: {figure}: expected the same on all ranks, {who}{where} (got {got} on rank {usual})"


def _shown(figure: str, value: int) -> str:
    return str(value) if figure == "step" else f"{value & (1 << 64) - 1:016x}"


def _of_tensors(tensors: Iterable[Tensor]) -> int:
    return _digest(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() for t in tensors)


def _digest(parts: Iterable[Any]) -> int:
    """64 bits of a hash, signed as int64 is."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "little", signed=True)
