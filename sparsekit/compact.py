# SPDX-License-Identifier: Apache-2.0
"""Channel surgery: a model with masked filters or channels becomes a smaller dense one that computes the same."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparsekit.channel_rules import TRANSPOSED, WITH_FILTERS
from sparsekit.channels import Channel, channels_of
from sparsekit.compact_report import CompactReport, LayerCut, Side
from sparsekit.examples import example_tensors, tried
from sparsekit.nn import finalize, masked_layers, silence_batchnorm_
from sparsekit.ops import replicas
from sparsekit.surgery import Proof, batch_statistics, can_fold, cut, places

Flags = dict[str, Tensor]
"""Layer -> one entry for each of its channels."""


def compact(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], *, silence_batchnorm: bool = False
) -> tuple[nn.Module, CompactReport]:
    """A smaller dense model without the channels that the masks remove, which computes the same; and what was done.

    A channel is removed where nothing changes by it: all filters that produce it are masked and what arrives at every layer
    that reads it is zero, or every layer that reads it has no weight for it. All coupled layers (additions, concatenations,
    grouped and depthwise convolutions, BatchNorm, flattening into a linear layer) have to agree; every other channel stays,
    and the report says why. Every removal is proven on the example and on noise of its kind, in eval mode and with
    BatchNorm in train mode; a group of channels that fails the proof stays. A layer whose filters are all masked keeps one.

    Args:
        model: sparsified, or plain with filters of zeros, as ``finalize`` leaves them; not changed.
        example_inputs: what the model is called with, a tensor or several, with two or more entries in dim 0.
        silence_batchnorm: first set weight and bias of BatchNorm to zero for masked filters (``silence_batchnorm_``). The
            small model then computes what the masked model computes with this done to it. Without it a masked filter with a
            BatchNorm behind it usually stays, because it emits a constant, which a convolution with padding does not even
            leave one.

    Returns:
        (small model, CompactReport): of plain layers, on the model's device, in its modes, with its requires_grad.

    Raises:
        ValueError: inputs that do not fit, a model that Torch-Pruning cannot trace, or Torch-Pruning is missing.
        TypeError: no Module, no tensors, no bool.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compact: model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(silence_batchnorm, bool):
        raise TypeError(f"compact: silence_batchnorm: expected a bool, got {type(silence_batchnorm).__name__}")
    return compacted("compact", model, example_tensors("compact", example_inputs, least=2), silence_batchnorm)


def compacted(
    function: str, model: nn.Module, inputs: Sequence[Tensor], silence: bool
) -> tuple[nn.Module, CompactReport]:
    """``compact`` of arguments that are of the right kind; errors are those of ``function``."""
    plain = plain_copy(replicas.plain_network(function, model))
    tried(function, plain, inputs)
    silenced = silence_batchnorm_(plain, inputs) if silence else {}
    done = operate(function, plain, inputs)
    layers = _layer_cuts(plain, done)
    parameters, flops = (
        (_parameters(plain), _parameters(done.small)),
        (_flops(plain, inputs), _flops(done.small, inputs)),
    )
    return done.small, CompactReport(layers, parameters, flops, silenced, done.gap, (plain, done.small), inputs)


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy with plain layers, zeros where the masks are zero, and nothing compiled in it."""
    plain = replicas.uncompiled(copy.deepcopy(model))
    return finalize(plain) if masked_layers(plain) else plain


class Operation(NamedTuple):
    """A surgery. why: why each of the channels stays, "" for those that were removed. removable: those that could be, were
    it not for the last one of a layer or for the proof. empty: of every layer its outputs, and its inputs, without a weight."""

    small: nn.Module
    gap: float
    channels: list[Channel]
    why: list[str]
    removable: list[Channel]
    empty: tuple[Flags, Flags]


def operate(function: str, plain: nn.Module, inputs: Sequence[Tensor]) -> Operation:
    """Remove from a copy of a plain model what can be removed, and prove it; errors are those of ``function``."""
    channels = channels_of(function, copy.deepcopy(plain), inputs)
    dead, unread = _empty(plain)
    constants = _constants(plain, inputs)
    harmless = {n: v.isfinite() if can_fold(plain.get_submodule(n)) else v == 0 for n, v in constants.items()}
    why = [_verdict(channel, dead, unread, harmless) for channel in channels]
    removable = [c for c, reason in zip(channels, why, strict=True) if not reason]
    _keep_one(plain, channels, why)
    small, gap = _proven(plain, inputs, channels, why, constants)
    return Operation(small, gap, channels, why, removable, (dead, unread))


def _filtered(plain: nn.Module) -> dict[str, Any]:
    """Layers with filters, by name."""
    return {n: m for n, m in plain.named_modules() if type(m) in WITH_FILTERS}


@torch.no_grad()
def _empty(plain: nn.Module) -> tuple[Flags, Flags]:
    """Of every layer: bool [outputs] without any weight, and bool [inputs] without any."""
    dead, unread = {}, {}
    for name, module in _filtered(plain).items():
        used = (module.weight != 0).reshape(*module.weight.shape[:2], -1).any(2)
        if type(module) in TRANSPOSED:
            used = used.transpose(0, 1)
        used = used.cpu()  # decisions are made channel by channel
        dead[name] = ~used.any(1)
        groups = 1 if type(module) in TRANSPOSED else getattr(module, "groups", 1)
        # [groups, filters of a group, inputs of a group]
        unread[name] = ~used.unflatten(0, (groups, -1)).any(1).flatten()
    return dead, unread


def _constants(plain: nn.Module, inputs: Sequence[Tensor]) -> Flags:
    """Of every layer that ran: [inputs], the value of a channel that never changed, in eval mode and with BatchNorm in
    train mode, else NaN."""
    constants: Flags = {}
    names = {module: name for name, module in _filtered(plain).items()}

    def runs(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        name, entries = names[module], given[0].movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)
        value = torch.where((entries == entries[:, :1]).all(1), entries[:, 0], torch.nan)
        constants[name] = torch.where(constants.get(name, value) == value, value, torch.nan)

    hooks = [module.register_forward_pre_hook(runs) for module in names]
    try:
        tried("compact", plain, inputs)
        with torch.no_grad(), batch_statistics(plain):
            plain(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: value.cpu() for name, value in constants.items()}


def _verdict(channel: Channel, dead: Flags, unread: Flags, harmless: Flags) -> str:
    """Why a channel has to stay, or "". harmless: inputs of layers that are always zero, or can be folded into a bias."""
    if channel.obstacle:
        return channel.obstacle
    if not channel.inputs:
        return "no layer reads it"
    readers = [(name, i) for name, i in channel.inputs if not unread[name][i]]
    if not readers:
        return ""
    alive = [name for name, i in channel.outputs if not dead[name][i]]
    if alive:
        return f"`{alive[0]}` gives it too, unmasked" if len(channel.outputs) > 1 else f"`{readers[0][0]}` reads it"
    loud = [name for name, i in readers if name not in harmless or not harmless[name][i]]
    return f"it emits a constant (bias or BatchNorm), which `{loud[0]}` reads" if loud else ""


def _keep_one(plain: nn.Module, channels: Sequence[Channel], why: list[str]) -> None:
    """No layer may lose all its channels; where it would, the first of them stays."""
    layers = _filtered(plain)
    for side, name in places(channels):
        if name not in layers or side not in ("outputs", "depthwise", "inputs"):
            continue
        attributes = ("in_channels", "in_features") if side == "inputs" else ("out_channels", "out_features")
        width = next(getattr(layers[name], a) for a in attributes if hasattr(layers[name], a))
        here = [i for i, channel in enumerate(channels) if any(n == name for n, _ in getattr(channel, side))]
        gone = sum(n == name for i in here if not why[i] for n, _ in getattr(channels[i], side))
        if gone == width:
            why[here[0]] = f"it is the last one of `{name}`, which needs one"


def _proven(
    plain: nn.Module, inputs: Sequence[Tensor], channels: Sequence[Channel], why: list[str], constants: Flags
) -> tuple[nn.Module, float]:
    """The model without the channels that may go, and how far it is from before; groups that fail the proof stay."""
    proof, going = Proof(plain, inputs), [i for i, reason in enumerate(why) if not reason]
    small = cut(plain, [channels[i] for i in going], constants)
    with suppress(RuntimeError):
        return small, proof.gap(small, [channels[i] for i in going])
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in going:
        groups[tuple(sorted({name for name, _ in (*channels[i].filters, *channels[i].inputs)}))].append(i)
    good: list[Channel] = []
    small, gap = cut(plain, [], {}), 0.0
    for group in groups.values():
        more = [*good, *(channels[i] for i in group)]
        tried_out = cut(plain, more, constants)
        try:
            gap = proof.gap(tried_out, more)
            small, good = tried_out, more
        except RuntimeError as error:
            for i in group:
                why[i] = str(error)
    return small, gap


def _layer_cuts(plain: nn.Module, done: Operation) -> tuple[LayerCut, ...]:
    channels, why, empty = done.channels, done.why, done.empty
    removed = places([c for c, reason in zip(channels, why, strict=True) if not reason])
    removable = places(done.removable)
    # A depthwise convolution has the same channels on both sides.
    kinds = {False: ("outputs", "depthwise"), True: ("inputs", "depthwise")}
    reasons = {
        (into, name, index): reason
        for channel, reason in zip(channels, why, strict=True)
        for into, sides in kinds.items()
        for side in sides
        for name, index in getattr(channel, side)
    }
    cuts = []
    for name, module in _filtered(plain).items():
        stays: Counter[str] = Counter()
        sides = []
        for into, flags in zip((False, True), empty, strict=True):
            asked = flags[name].nonzero().flatten().tolist()
            counts = [sum(len(found.get((side, name), ())) for side in kinds[into]) for found in (removable, removed)]
            sides.append(Side(len(flags[name]), len(asked), *counts))
            elsewhere = "it is an input of the network" if into else "the example does not reach it"
            stays.update(r for i in asked if (r := reasons.get((into, name, i), elsewhere)))
        cuts.append(LayerCut(name, type(module).__name__, sides[0], sides[1], dict(stays)))
    return tuple(cuts)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _flops(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        tried("compact", model, inputs)
    return counter.get_total_flops()
