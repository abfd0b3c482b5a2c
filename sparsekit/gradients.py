# SPDX-License-Identifier: Apache-2.0
"""Gradients at the effective weight z = where(m, theta, 0): dense, first order fused, or of any order on the plain path.

``autograd.grad`` is used throughout, so no ``.grad`` of the user's is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsekit.nn import MaskedLayer, dense_gradient, effective_weights, masked_layers, prepared_weights
from sparsekit.ops import replicas, shards

Loss = Callable[[nn.Module, Any], Tensor]


def _checked_loss(function: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{function}: loss: expected a differentiable scalar tensor, got {got}")
    return value.reshape(())


def check_requires_grad(function: str, layers: Mapping[str, MaskedLayer]) -> None:
    """Raise ValueError for a frozen masked weight, of which the function called so could not get a gradient."""
    if frozen := [name for name, layer in layers.items() if not layer.weight.requires_grad]:
        raise ValueError(f"{function}: model: expected masked weights that require grad, got {frozen[0]!r} frozen")


def dense_gradients(model: nn.Module, loss: Loss, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """dl/dz for every masked layer, pruned entries included, by one forward and one backward pass.

    Args:
        model: sparsified; its modes and ``.grad`` are left alone.
        loss: (model, batch) -> scalar.
        batch: whatever ``loss`` understands.

    Returns:
        (loss value, detached 0-d; {layer name: tensor of the weight's shape and dtype}).

    Raises:
        ValueError: the loss is no differentiable scalar, a masked weight is frozen, or reentrant checkpoints hide one.
    """
    layers = masked_layers(model)
    check_requires_grad("dense_gradients", layers)
    if any(shards.is_spread(layer.weight) for layer in layers.values()):
        return _sharded_gradients(model, loss, batch)
    with torch.enable_grad(), dense_gradient(model), replicas.local_gradients(model), prepared_weights(model):
        value = _checked_loss("dense_gradients", loss(model, batch))
        dz = torch.autograd.grad(value, [layer.weight for layer in layers.values()], allow_unused=True)
    check_reached("dense_gradients", value, dz)
    return value.detach(), _averaged(model, _named(layers, dz))


def gradients_at(
    model: nn.Module, loss: Loss, batch: Any, z: Mapping[str, Tensor], create_graph: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """dl/dz with the layers' effective weights set to ``z``, on the plain dense path.

    Args:
        z: layer name -> tensor of the weight's shape; never modified. Names left out keep their masked weight and get
            no gradient.
        create_graph: keep the graph, for second derivatives; the values of z should then require grad. The layers left
            out take the plain path too, because the masked ops are differentiable once.

    Returns:
        (loss value, {layer name: gradient}); both attached to the graph when ``create_graph``, else detached.
    """
    if create_graph and replicas.group_of(model) is not None:
        raise ValueError("gradients_at: create_graph: expected False in DistributedDataParallel, got True")
    value, dz = _local_gradients(model, loss, batch, z, create_graph)
    return value, _averaged(model, dz)


def curvature_at(
    model: nn.Module, loss: Loss, batch: Any, z: Mapping[str, Tensor], vector: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """H v at the effective weights ``z`` of all masked layers, H the Hessian of the loss in them; the mean over all processes.

    Args:
        model, loss, batch, z: see ``gradients_at``. vector: v by layer name; the same on all processes.

    Returns:
        {layer name: tensor of the weight's shape}, detached.
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in z.items()}
    # The fused attention kernels have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        # Each process takes its own Hessian along the common vector: of an average autograd would see its own share alone.
        _, dz = _local_gradients(model, loss, batch, leaves, create_graph=True)
        slope = torch.stack([(dz[name] * vector[name]).sum() for name in leaves]).sum()
        found: Any = (None,) * len(leaves)
        if slope.requires_grad:  # else the loss is linear
            found = torch.autograd.grad(slope, list(leaves.values()), allow_unused=True)
    return _averaged(model, _named(leaves, found))


def _local_gradients(
    model: nn.Module, loss: Loss, batch: Any, z: Mapping[str, Tensor], create_graph: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """``gradients_at`` of this process alone."""
    shards.reshard(model)
    if any(shards.is_spread(p) for p in model.parameters()):
        raise ValueError("gradients_at: model: expected plain weights, got DTensors; use dense_gradients")
    keep = {name for name, value in z.items() if create_graph and value.requires_grad}
    leaves = {name: value if name in keep else value.detach().requires_grad_() for name, value in z.items()}
    others = _plain_weights(model, leaves) if create_graph else {}
    with torch.enable_grad(), effective_weights(model, {**others, **leaves}), replicas.local_gradients(model):
        value = _checked_loss("gradients_at", loss(model, batch))
        dz = torch.autograd.grad(value, list(leaves.values()), create_graph=create_graph, allow_unused=True)
    check_reached("gradients_at", value, dz)
    return value if create_graph else value.detach(), _named(leaves, dz)


def check_reached(function: str, value: Tensor, gradients: Sequence[Tensor | None]) -> None:
    """Raise where a missing gradient means that ``autograd.grad`` does not look into a checkpoint, and not that it is zero."""
    if all(gradient is not None for gradient in gradients):
        return
    seen, rest = set(), [value.grad_fn]
    while rest:
        node = rest.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == "CheckpointFunctionBackward":
            expected = "no checkpoints, or those of use_reentrant=False"
            got = "some of use_reentrant=True, whose weights get gradients in .backward() alone"
            raise ValueError(f"{function}: model: expected {expected}, got {got}")
        seen.add(node)
        rest += [parent for parent, _ in node.next_functions]


def _averaged(model: nn.Module, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over the processes of a DistributedDataParallel model, whose own averaging ``autograd.grad`` passes by."""
    means = replicas.averages(list(gradients.values()), replicas.group_of(model))
    return dict(zip(gradients, means, strict=True))


def _sharded_gradients(model: nn.Module, loss: Loss, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Means over the processes, as DTensors: fully_shard forms them in a backward pass alone, and leaves them in ``.grad``."""
    layers, parameters = masked_layers(model), list(model.parameters())
    before = [p.grad for p in parameters]
    try:
        for p in parameters:
            p.grad = None
        with torch.enable_grad(), dense_gradient(model):
            value = _checked_loss("dense_gradients", loss(model, batch))
            value.backward()
        found = _named(layers, tuple(layer.weight.grad for layer in layers.values()))
    finally:
        for p, gradient in zip(parameters, before, strict=True):
            p.grad = gradient
    return value.detach(), found


def _plain_weights(model: nn.Module, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masked weights of the layers that ``known`` leaves out, formed by plain differentiable ops."""
    layers = {name: layer for name, layer in masked_layers(model).items() if name not in known}
    with torch.enable_grad():
        return {n: torch.where(layer.mask.dense(), layer.weight, 0) for n, layer in layers.items()}


def _named(owners: Mapping[str, Any], gradients: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    """Gradients by name; a layer that the loss did not use has a zero gradient."""
    named: dict[str, Tensor] = {}
    for (name, owner), gradient in zip(owners.items(), gradients, strict=True):
        like = owner if isinstance(owner, Tensor) else owner.weight
        named[name] = torch.zeros_like(like) if gradient is None else gradient
    return named
