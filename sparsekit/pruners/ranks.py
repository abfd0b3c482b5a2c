# SPDX-License-Identifier: Apache-2.0
"""What a pruner does in common with the other processes that prune copies, or shards, of the same model.

The processes differ in their batches alone. Whatever decides masks is averaged before it is used, so that all compute
the same; whatever may fail on one of them is stated to the others, so that all raise and none waits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsekit.gradients import Loss
from sparsekit.nn import check_ranks
from sparsekit.nn.batchnorm import average_batchnorm
from sparsekit.nn.masked import WORDS, MaskedLayer
from sparsekit.ops import agreement, replicas, shards
from sparsekit.projection import Projected, Projection
from sparsekit.unit_masks import is_ours

T = TypeVar("T")


class Ranks:
    """The processes of one pruner, or this process alone.

    Args:
        trains: does the pruner train, so that processes without a common group part?

    group: of the DistributedDataParallel around the model, or of the mesh that its weights are sharded over; else None.
    """

    def __init__(
        self, name: str, model: nn.Module, layers: Mapping[str, MaskedLayer], projection: Projection, trains: bool
    ) -> None:
        self.name, self.model, self.layers, self.trains = name, model, layers, trains
        weights = {n: layer.weight for n, layer in layers.items()}
        check_sharding(name, model, weights)
        self.sharded = any(map(shards.is_spread, weights.values()))
        self.group = replicas.group_of(model) or shards.group_of(weights.values())
        if self.group is None and trains:
            check_wrapper(name, model)
            self._warn_of_isolation(projection)
        elif self.group is None:
            return
        elif projection.group is not None:
            expected = "no group for a model that DistributedDataParallel or fully_shard spreads"
            raise ValueError(f"{name}: projection: expected {expected}, got {projection!r}")

    def ready(self) -> None:
        """Before a step: have fully_shard put away whole weights; raise if it was called after the pruner was made."""
        shards.reshard(self.model)
        if self.trains and self.sharded != any(shards.is_spread(layer.weight) for layer in self.layers.values()):
            expected = "fully_shard called before the pruner is made"
            raise ValueError(f"{self.name}: model: expected {expected}, got weights that were spread since")

    def _warn_of_isolation(self, projection: Projection) -> None:
        started = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if started and projection.group is None:
            message = f"{self.name}: model: {dist.get_world_size()} processes, but the model is not in "
            message += "DistributedDataParallel or under fully_shard, so each process prunes on its own"
            warnings.warn(message, UserWarning, stacklevel=5)

    def alike(self, what: str, call: Callable[[], T], **stated: object) -> T:
        """What ``call`` returns here, once it has returned on all ranks; else the error of the first rank that has one.

        Args:
            what: the moment, the same on all ranks.
            stated: values that have to be the same on all ranks.
        """
        return agreement.alike(f"{self.name}: {what}", self.group, call, lambda _: stated)

    def loss(self, loss: Loss, batch: Any, model: nn.Module, check: Callable[[Any], None]) -> tuple[Tensor, Tensor]:
        """The loss of this rank, to be differentiated, and its mean over the ranks, detached.

        Args:
            check: raises for a value that is no finite scalar.

        Raises:
            Whatever ``loss`` or ``check`` raise; on a CPU on all ranks alike. A GPU's value is not read: there the rank at
            fault raises, and the others see a NaN. What ``loss`` raises under fully_shard is raised by its rank alone.
        """
        if self.group is None:
            value = loss(model, batch)
            check(value)
            return value, value.detach()
        value, problem = None, None
        replicas.share_buffers(model, {WORDS})
        try:
            with replicas.quiet_buffers(model):
                value = loss(model, batch)
            check(value)
        except Exception as error:  # whatever it is, the others have to learn of it
            if value is None and self.sharded:
                raise  # they may be waiting for this process's part of a weight, and listen to nothing else
            problem = error
        device = next(model.parameters()).device
        if device.type == "cpu":
            mean = self._mean_on_host(value, problem)
        else:
            mean = self._mean_on_device(value, problem, device)
            check(mean)
        assert value is not None
        return value, mean.to(value.dtype).reshape(value.shape)

    def project(self, projection: Projection, *arguments: Any) -> Projected:
        """The projection; where a pattern of someone else's making fails on one rank, its error is raised on all."""
        if is_ours(projection.pattern):
            return projection(*arguments)
        return self.alike("projection", lambda: projection(*arguments))

    def _mean_on_host(self, value: Tensor | None, problem: Exception | None) -> Tensor:
        own = math.nan if problem or value is None else float(value.detach())
        rows = agreement.agree(f"{self.name}: loss", self.group, problem, {"loss": own.hex()})
        shares = [float.fromhex(row["loss"]) for row in rows]
        return torch.tensor(sum(shares) / len(shares), dtype=torch.float64)

    def _mean_on_device(self, value: Tensor | None, problem: Exception | None, device: torch.device) -> Tensor:
        own = torch.full((), math.nan, device=device) if problem or value is None else value.detach().reshape(())
        sent = own.double().to(agreement.carrier(self.group, device))
        mean = agreement.gather(sent, self.group).mean().to(device)
        if problem:
            raise problem
        return mean

    def settle(self) -> None:
        """Average the BatchNorm statistics, which every rank has gathered from batches of its own."""
        if self.group is not None:
            average_batchnorm(self.model, self.group)

    def check(self, step: int, weights: bool = False) -> None:
        """``check_ranks`` where there are several."""
        if self.group is not None:
            check_ranks(self.model, self.group, step=step, weights=weights)


def check_wrapper(name: str, model: nn.Module) -> None:
    """Raise ValueError for a DistributedDataParallel somewhere inside, of which the pruner's averages would not know."""
    if inner := next((n for n, m in model.named_modules() if isinstance(m, DistributedDataParallel)), None):
        expected = "a network in one DistributedDataParallel around all of it"
        raise ValueError(f"{name}: model: expected {expected}, got one inside it, `{inner}`")


def check_sharding(name: str, model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Raise ValueError for weights spread over processes in a way that the masks cannot follow."""
    if old := next((m for m in model.modules() if type(m).__name__ == "FullyShardedDataParallel"), None):
        raise ValueError(
            f"{name}: model: expected fully_shard (FSDP2), got {type(old).__name__}, whose weights are flat"
        )
    spread = {n: w for n, w in weights.items() if shards.is_spread(w)}
    for n, weight in spread.items():
        shards.check_spread(f"{name}: model: `{n}.weight`", weight)
    meshes = {w.device_mesh for w in spread.values()}
    if len(meshes) > 1 or (spread and len(spread) < len(weights)):
        expected = "the masked weights all plain, or all DTensors on one mesh"
        raise ValueError(f"{name}: model: expected {expected}, got {len(spread)} of {len(weights)} on {len(meshes)}")
