# SPDX-License-Identifier: Apache-2.0
"""Torch-Pruning's DepGraph of a network, and what it does not say: inputs, outputs, calls, paddings of channels.

Source of the graph: Fang et al., "DepGraph: towards any structural pruning", CVPR 2023.
"""

from __future__ import annotations

import importlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsekit.channel_rules import Pad, PadsChannels, Traced


class Index(NamedTuple):
    """A channel of a node, and the channel of the layer where the search began from which it is reached."""

    idx: int
    root_idx: int


def torch_pruning(function: str) -> Any:
    """The package Torch-Pruning; ValueError in the name of ``function`` if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("torch_pruning")
    except ModuleNotFoundError as error:
        need = f"the package {error.name} (pip install 'torch-sparsekit[compact]')"
        raise ValueError(f"{function}: expected {need}, got none") from None


def trace(function: str, plain: nn.Module, inputs: Sequence[Tensor]) -> tuple[Any, Traced]:
    """Torch-Pruning's graph of a network, and the rest.

    Args:
        function: whose arguments these are, for errors.
        plain: without masked layers. It is traced, so it must be a copy that nobody needs.
        inputs: what the network is called with.

    Raises:
        ValueError: Torch-Pruning is missing, or cannot trace the network.
    """
    package = torch_pruning(function)
    # Of other memory formats autograd shows how bytes move, and not what is done to channels.
    plain.requires_grad_(True).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    inputs = [x.contiguous() for x in inputs]
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph, traced = _traced(package, plain, inputs)
    except Exception as error:  # whatever a network may do while it is traced
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        expected = "a network that Torch-Pruning can trace"
        raise ValueError(f"{function}: model: expected {expected}, got {type(plain).__name__}: {text}") from error
    _join_pads(graph, traced)
    return graph, traced


def _traced(package: Any, plain: nn.Module, inputs: Sequence[Tensor]) -> tuple[Any, Traced]:
    names = {module: name for name, module in plain.named_modules()}
    calls: Counter[nn.Module] = Counter()
    pads: dict[str, Pad] = {}
    ends: list[frozenset[Any]] = []

    def ran(module: nn.Module, given: Any, output: Any) -> None:
        calls[module] += 1
        if isinstance(module, PadsChannels) and (pad := _pad(module, given, output)):
            pads[names[module]] = pad

    def run(network: nn.Module, given: Sequence[Tensor]) -> Any:
        # Copies, so that an input is the result of an operation, which the graph can hold.
        tracked = [x.detach().requires_grad_(x.is_floating_point()).clone() for x in given]
        output = network(*tracked)
        found = (frozenset(t.grad_fn for t in tree_leaves(x) if isinstance(t, Tensor)) for x in (tracked, output))
        ends[:] = (x - {None} for x in found)
        return [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.grad_fn is not None]

    hooks = [module.register_forward_hook(ran) for module in plain.modules()]
    try:
        run(plain.eval(), inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not ends[1]:
        raise ValueError("its outputs are not differentiable")
    kinds = {type(plain.get_submodule(name)): _PadPruner(names, pads) for name in pads}
    graph = package.DependencyGraph().build_dependency(
        plain, list(inputs), forward_fn=run, customized_pruners=kinds, verbose=False
    )
    return graph, Traced(names, calls, ends[0], ends[1], pads, _sharing(plain))


def _pad(module: PadsChannels, given: Any, output: Any) -> Pad | None:
    """What the module does, if it does pad channels as its attributes say."""
    saved = getattr(getattr(output, "grad_fn", None), "_saved_pad", ())
    own = (module.before, module.behind)
    if not (isinstance(output, Tensor) and output.ndim > 2 and tuple(saved[2 * (output.ndim - 2) :]) == own):
        return None
    return Pad(module.before, given[0].shape[1], module.behind)


class _PadPruner:
    """What Torch-Pruning asks about a module that pads: channels that go in go out, and nothing has to be cut."""

    def __init__(self, names: Mapping[nn.Module, str], pads: Mapping[str, Pad]) -> None:
        self.names, self.pads = names, pads

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int | None:
        pad = self.pads.get(self.names[layer])
        return None if pad is None else sum(pad)

    def get_in_channels(self, layer: nn.Module) -> int | None:
        pad = self.pads.get(self.names[layer])
        return None if pad is None else pad.channels


def _sharing(plain: nn.Module) -> frozenset[nn.Module]:
    owners: dict[int, list[nn.Module]] = defaultdict(list)
    for module in plain.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].append(module)
    return frozenset(module for group in owners.values() if len(group) > 1 for module in group)


class _Shift:
    """How indices of channels change at a padding; backwards, the channels of zeros end."""

    def __init__(self, pad: Pad, backwards: bool) -> None:
        self.pad, self.backwards = pad, backwards

    def __call__(self, indices: Sequence[Any]) -> list[Index]:
        before, channels = self.pad.before, self.pad.channels
        if self.backwards:
            return [Index(i.idx - before, i.root_idx) for i in indices if before <= i.idx < before + channels]
        return [Index(i.idx + before, i.root_idx) for i in indices]


def _join_pads(graph: Any, traced: Traced) -> None:
    """Torch-Pruning takes a padding for an operation that leaves channels where they are."""
    for name, pad in traced.pads.items():
        node = next(n for m, n in graph.module2node.items() if traced.names.get(m) == name)
        for other in node.inputs:
            for dep in other.dependencies:
                if dep.target is node:
                    dep.index_mapping[1] = _Shift(pad, backwards=False)
            for dep in node.dependencies:
                if dep.target is other:
                    dep.index_mapping[0] = _Shift(pad, backwards=True)
