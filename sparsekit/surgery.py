# SPDX-License-Identifier: Apache-2.0
"""Cutting channels out of a model with Torch-Pruning's functions, and proving that nothing has changed."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from sparsekit.channel_rules import CONVOLUTIONS, NORMS
from sparsekit.channel_trace import torch_pruning
from sparsekit.channels import Channel
from sparsekit.modes import kept_modes

SIDES = ("outputs", "depthwise", "inputs", "through", "before", "behind")
# Largest difference, as a part of the largest value (at least 1): in float64 what rounds is what is folded into a bias.
TOLERANCE = {torch.float64: 1e-6}
_TOLERANCE_ELSE = 1e-5


def places(channels: Iterable[Channel]) -> dict[tuple[str, str], set[int]]:
    """(side, layer) -> indices of the channels there; sides are attributes of Channel."""
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    for channel in channels:
        for side in SIDES:
            for name, index in getattr(channel, side):
                found[side, name].add(index)
    return found


def can_fold(layer: nn.Module) -> bool:
    """Can a constant input of the layer become part of its bias? Not where zeros are padded, which are another constant."""
    if getattr(layer, "bias", None) is None:
        return False
    if isinstance(layer, CONVOLUTIONS):
        # In the form of numbers, whatever "same" comes to.
        return layer.groups == 1 and not any(layer._reversed_padding_repeated_twice)
    return isinstance(layer, nn.Linear)


@torch.no_grad()
def _fold(layer: Any, indices: Sequence[int], constants: Tensor) -> None:
    """Add what these inputs contribute, each of which is a constant, to the bias."""
    # An input that no weight reads need not be constant, and is NaN then.
    value = constants[indices].to(layer.weight.device, torch.float64).nan_to_num(0.0)
    weight = layer.weight[:, indices].double().reshape(layer.weight.shape[0], len(indices), -1).sum(2)
    layer.bias += (weight @ value).to(layer.bias.dtype)


def cut(model: nn.Module, channels: Sequence[Channel], constants: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a plain model without these channels; what stays is as it was, requires_grad included.

    Args:
        constants: layer -> value of each of its inputs, where it is constant.
    """
    small = copy.deepcopy(model)
    wanted = {name: parameter.requires_grad for name, parameter in small.named_parameters()}
    package = torch_pruning("compact")
    # What kind a layer is must be asked before the first cut, which may leave as many groups as outputs.
    kinds = {name: package.ops.module2type(module) for name, module in small.named_modules()}
    for (side, name), indices in places(channels).items():
        module = small.get_submodule(name)
        if side in ("before", "behind"):
            setattr(module, side, getattr(module, side) - len(indices))
            continue
        pruner = package.pruner.function.PrunerBox[kinds[name]]
        if side == "inputs" and can_fold(module) and name in constants:
            _fold(module, sorted(indices), constants[name])
        act = pruner.prune_in_channels if side == "inputs" else pruner.prune_out_channels
        act(module, sorted(indices))
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(wanted[name])
    return small


class Proof:
    """What a plain model gives in eval mode and with BatchNorm in train mode, for its inputs and for noise in their place.

    It is computed in float64 where the model can be, so that a difference is one of meaning.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        noise = [_noise(x, generator) for x in inputs]
        self.inputs = [list(inputs), noise]
        self.dtype: torch.dtype | None = torch.float64
        try:
            self.expected = self._results(model)
        except (RuntimeError, TypeError, ValueError):
            # A forward that makes tensors of a dtype of its own, or a device without float64.
            self.dtype = None
            self.expected = self._results(model)

    def gap(self, small: nn.Module, channels: Sequence[Channel]) -> float:
        """Largest relative difference of the model without these channels.

        Raises:
            RuntimeError: it gives something else; the text says what.
        """
        removed = places(channels)
        try:
            found = self._results(small)
        except Exception as error:  # whatever a forward may do that expects the old sizes
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RuntimeError(f"the forward pass fails without it: {text}") from error
        worst = 0.0
        for name, value in self.expected.items():
            layer = name.split(":")[1]
            gone = removed.get(("through", layer), set()) if layer else set()
            kept = [i for i in range(len(value)) if i not in gone] if gone else slice(None)
            worst = max(worst, _difference(value[kept], found[name]))
        return worst

    def _results(self, model: nn.Module) -> dict[str, Tensor]:
        """Outputs, and statistics of BatchNorm in train mode, by "<what>:<BatchNorm's name or nothing>"."""
        found: dict[str, Tensor] = {}
        for number, given in enumerate(self.inputs):
            network = copy.deepcopy(model).eval()
            if self.dtype is not None:
                network = network.to(self.dtype)
                given = [x.to(self.dtype) if x.is_floating_point() else x for x in given]
            for mode in ("eval", "train"):
                norms = {n: m for n, m in network.named_modules() if isinstance(m, NORMS)} if mode == "train" else {}
                for norm in norms.values():
                    norm.train()
                with torch.no_grad(), _own_batch(network):
                    leaves = tree_leaves(network(*given))
                outputs = [x for x in leaves if isinstance(x, Tensor)]
                found |= {f"{mode} {number} {i}:": x for i, x in enumerate(outputs)}
                for name, norm in norms.items():
                    for kind in ("running_mean", "running_var"):
                        if (value := getattr(norm, kind)) is not None:
                            found[f"{kind} {number}:{name}"] = value
        return found


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers like those of x: of its mean and deviation, or the same ones if they are not floats."""
    if not x.is_floating_point():
        return x
    drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device, x.dtype)
    return drawn * x.std(correction=0) + x.mean()


def _difference(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        raise RuntimeError(f"expected an output of shape {tuple(expected.shape)}, got {tuple(found.shape)}")
    if not torch.equal(expected.isfinite(), found.isfinite()):
        raise RuntimeError("expected inf and NaN where the masked model has them, got others")
    finite = expected.isfinite()
    a, b = (torch.where(finite, x, 0).double() for x in (expected, found))
    size = max(1.0, float(a.abs().max()) if a.numel() else 0.0)
    gap = float((a - b).abs().max()) / size if a.numel() else 0.0
    if gap > TOLERANCE.get(expected.dtype, _TOLERANCE_ELSE):
        raise RuntimeError(f"the outputs differ by {gap:.2g} of the largest without it")
    return gap


class _Alone(nn.SyncBatchNorm):
    """SyncBatchNorm that takes the statistics of its own process, which may be the only one that is here."""

    forward = _BatchNorm.forward


@contextmanager
def _own_batch(model: nn.Module) -> Iterator[None]:
    """Within it, no BatchNorm waits for other processes."""
    waiting = [module for module in model.modules() if type(module) is nn.SyncBatchNorm]
    try:
        for module in waiting:
            module.__class__ = _Alone
        yield
    finally:
        for module in waiting:
            module.__class__ = nn.SyncBatchNorm


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Within it, BatchNorm uses the batch, moves nothing, and everything else is in eval mode."""
    norms: list[Any] = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
    with kept_modes(model):
        try:
            model.eval()
            for norm in norms:
                norm.train()
                norm.track_running_stats = False
            with _own_batch(model):
                yield
        finally:
            for norm in norms:
                norm.track_running_stats = True
