# SPDX-License-Identifier: Apache-2.0
"""sparsify and finalize: turn layers into masked layers and back, exact inverses of each other.

The layer object itself changes class. References to it, hooks on it, ties and the identity of its Parameters all stay,
which a replacement object could not promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from sparsekit.nn.access import check_ties, layers_by_weight
from sparsekit.nn.bypass import bypassed
from sparsekit.nn.masked import WORDS, MaskedLayer
from sparsekit.nn.rules import MASKED_CLASS, Rule, change_kind, kind_of, masked_class, matches, own_reason, plain_class
from sparsekit.ops import replicas, shards


@dataclass
class SparsifyReport:
    """What ``sparsify`` did: names of the masked layers, and name -> reason for every other module with weights."""

    masked: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"masked {len(self.masked)} layers, skipped {len(self.skipped)}"]
        lines += [f"  skipped {name or '(the model itself)'}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def _check_rules(argument: str, rules: Sequence[Rule], names: dict[str, nn.Module]) -> None:
    if isinstance(rules, str) or not isinstance(rules, Sequence):
        raise TypeError(f"sparsify: {argument}: expected a sequence of globs and module types, got {rules!r}")
    for rule in rules:
        if not isinstance(rule, str) and not (isinstance(rule, type) and issubclass(rule, nn.Module)):
            raise TypeError(f"sparsify: {argument}: expected globs and module types, got {rule!r}")
        if isinstance(rule, str) and not any(matches(name, module, [rule]) for name, module in names.items()):
            raise ValueError(f"sparsify: {argument}: expected globs that match a module, got {rule!r}")


def _has_matrix(module: nn.Module) -> bool:
    if is_lazy(module):
        return True
    return any(p is not None and p.ndim >= 2 for p in module._parameters.values()) or hasattr(
        module, "parametrizations"
    )


def is_lazy(module: nn.Module) -> bool:
    """Does the module own parameters that have no shape yet?"""
    return any(isinstance(p, nn.parameter.UninitializedParameter) for p in module._parameters.values())


def _choose(model: nn.Module, skip: Sequence[Rule], only: Sequence[Rule] | None) -> SparsifyReport:
    modules = dict(model.named_modules())
    _check_rules("skip", skip, modules)
    _check_rules("only", only or (), modules)
    # By identity: a module that is registered twice may be read through either name.
    reads = {id(owner): method for module in modules.values() for owner, method in bypassed(module)}
    report = SparsifyReport()
    for name, module in modules.items():
        if not _has_matrix(module):
            continue
        reason = own_reason(module)
        if reason is None and isinstance(module, MaskedLayer):
            report.masked.append(name)
            continue
        if reason is None and id(module) in reads:
            reason = f"{reads[id(module)]} reads its weight without calling it"
        if reason is None and (rule := matches(name, module, skip)):
            reason = f"skip={rule if isinstance(rule, str) else rule.__name__}"
        if reason is None and only is not None and not matches(name, module, only):
            reason = "not in only"
        if reason is None:
            report.masked.append(name)
        else:
            report.skipped[name] = reason
    _drop_half_tied(modules, report)
    return report


def _drop_half_tied(modules: dict[str, nn.Module], report: SparsifyReport) -> None:
    """A weight shared with a module that would read it unmasked cannot be masked in one place only."""
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    for name in list(report.masked):
        outside = [o for o in owners[id(modules[name].weight)] if o not in report.masked]
        if outside:
            report.masked.remove(name)
            report.skipped[name] = f"its weight is tied to {outside[0]}, which is not masked"
            _drop_half_tied(modules, report)
            return


def sparsify(model: nn.Module, skip: Sequence[Rule] = (), only: Sequence[Rule] | None = None) -> SparsifyReport:
    """Turn the Linear and Conv1d/2d/3d layers of ``model`` into masked layers with full masks, in place.

    So become the Conv1D layers of Hugging Face transformers, where a model has them. Parameters, names, hooks and
    references stay what they were; each layer gains one buffer ``mask_words``. Shared modules are converted once. A layer
    that is already masked keeps its mask.

    Args:
        model: any module; may itself be such a layer. In DistributedDataParallel names are those inside it.
        skip: globs over module names ("layer1.*", "fc") and module types to leave alone.
        only: if given, globs and types outside which nothing is masked. Neither rule unmasks what is masked already.

    Returns:
        SparsifyReport: the masked layers, and every other module that owns a matrix with the reason why not.

    Raises:
        ValueError: nothing to mask, or a glob that matches no module. TypeError: arguments of a wrong kind.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"sparsify: model: expected a torch.nn.Module, got {type(model).__name__}")
    model = replicas.unwrapped(model)
    shards.reshard(model)
    report = _choose(model, skip, only)
    if not report.masked:
        raise ValueError(f"sparsify: model: expected at least one layer to mask, got none\n{report}")
    modules = dict(model.named_modules())
    new = [modules[name] for name in report.masked if not isinstance(modules[name], MaskedLayer)]
    for module in new:
        change_kind(module, masked_class(kind_of(module)))  # pyright: ignore[reportArgumentType]
        module._init_mask()  # pyright: ignore[reportCallIssue]
    _join_twins(model, new)
    return report


@torch.no_grad()
def _join_twins(model: nn.Module, new: Sequence[nn.Module]) -> None:
    """Make layers that share a weight share its mask; the one that was masked before has it."""
    fresh = set(map(id, new))
    for group in layers_by_weight(model).values():
        old = [layer for layer in group if id(layer) not in fresh]
        for layer in group:
            if old and id(layer) in fresh:
                layer.mask_words.copy_(old[0].mask_words)
            if len(group) > 1:
                layer._twins = tuple(twin for twin in group if twin is not layer)


def unmasked(model: nn.Module) -> dict[str, str]:
    """Name -> reason for every module that owns a matrix and has no mask."""
    report = _choose(model, (), None)
    reasons = {
        name: reason
        for name, reason in report.skipped.items()
        if not isinstance(model.get_submodule(name), MaskedLayer)
    }
    for name in report.masked:
        if not isinstance(model.get_submodule(name), MaskedLayer):
            reasons[name] = "left out, it could be masked"
    return {name: reasons[name] for name, _ in model.named_modules() if name in reasons}


@torch.no_grad()
def finalize(model: nn.Module) -> nn.Module:
    """Undo ``sparsify`` in place: plain layers again, with zeros written where the masks are zero.

    Returns:
        ``model``, with the keys, classes and Parameter objects that it had before ``sparsify``.

    Raises:
        ValueError: the model has no masked layer, or tied layers with different masks.
        TypeError: a masked layer has a class that sparsify does not make.
    """
    layers = [module for module in model.modules() if isinstance(module, MaskedLayer)]
    if not layers:
        raise ValueError("finalize: model: expected masked layers, got none; call sparsify first")
    shards.reshard(model)
    for layer in layers:
        if plain_class(kind_of(layer)) is None:  # pyright: ignore[reportArgumentType]
            expected = ", ".join(kind.__name__ for kind in MASKED_CLASS.values())
            raise TypeError(f"finalize: model: expected layers of class {expected}, got {type(layer).__name__}")
    check_ties("finalize", model)
    for layer in layers:
        layer.weight.copy_(layer.masked_weight())
        del layer._buffers[WORDS]
        layer._non_persistent_buffers_set.discard(WORDS)
        for attribute in ("dense_grad", "_effective", "_cache", "_filters", "_prepared", "_twins"):
            layer.__dict__.pop(attribute, None)
        change_kind(layer, plain_class(kind_of(layer)))  # pyright: ignore[reportArgumentType]
    return model
