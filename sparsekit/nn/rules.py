# SPDX-License-Identifier: Apache-2.0
"""Which layers can be masked, and in words why the others are not."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from sparsekit.nn.conv import MaskedConv1d, MaskedConv2d, MaskedConv3d
from sparsekit.nn.linear import MaskedLinear
from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import shards

MASKED_CLASS: dict[type[nn.Module], type[MaskedLayer]] = {
    nn.Linear: MaskedLinear,
    nn.Conv1d: MaskedConv1d,
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
}
# Layers of packages that need not be there: (module, class) -> (our module, our class), imported on demand.
_FOREIGN = {
    ("transformers.pytorch_utils", "Conv1D"): ("sparsekit.nn.conv1d_of_transformers", "MaskedConv1D"),
}


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The module's class; that beneath the one which fully_shard has given it."""
    kind = type(module)
    sharded = kind.__bases__[0].__name__ == "FSDPModule" and len(kind.__bases__) == 2
    return kind.__bases__[1] if sharded else kind


def change_kind(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give the module another class, beneath that of fully_shard if there is one."""
    own = type(module)
    module.__class__ = kind if kind_of(module) is own else _sharded_kind(own, kind)


@cache
def _sharded_kind(own: type[nn.Module], kind: type[nn.Module]) -> type[nn.Module]:
    extras = {name: value for name, value in vars(own).items() if name == "__deepcopy__"}
    return type(f"FSDP{kind.__name__}", (own.__bases__[0], kind), extras)


Rule = str | type[nn.Module]


def masked_class(kind: type[nn.Module]) -> type[MaskedLayer] | None:
    """The masked layer that a layer of class ``kind`` becomes, or None."""
    if kind in MASKED_CLASS:
        return MASKED_CLASS[kind]
    module, name = _FOREIGN.get((kind.__module__, kind.__name__), ("", ""))
    return getattr(importlib.import_module(module), name) if module else None


def plain_class(kind: type[MaskedLayer]) -> type[nn.Module] | None:
    """The class that ``sparsify`` made ``kind`` from; None for a masked layer that it never makes."""
    plain = kind.__bases__[-1]
    return plain if masked_class(plain) is kind else None


def matches(name: str, module: nn.Module, rules: Sequence[Rule]) -> Rule | None:
    """The first glob over the module's name, or type of the module, that applies."""
    for rule in rules:
        if fnmatchcase(name, rule) if isinstance(rule, str) else isinstance(module, rule):
            return rule
    return None


def own_reason(module: nn.Module) -> str | None:
    """Why ``module``, seen alone, has no masked form; None if it has one."""
    kind, weight = kind_of(module), module._parameters.get("weight")
    if isinstance(weight, UninitializedParameter):
        return "weight is not initialised yet; run one batch first"
    if "forward" in vars(module):
        return "its forward was replaced on the object itself"
    if is_parametrized(module):
        return "its weight is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    if not isinstance(module, MaskedLayer) and masked_class(kind) is None:
        if isinstance(module, tuple(MASKED_CLASS)):
            return f"{kind.__name__} is a subclass with a behaviour of its own"
        return f"{kind.__name__} has no masked form"
    if weight is None:
        return "weight is not a Parameter of the layer (weight_norm, spectral_norm and prune replace it)"
    if not weight.is_floating_point():
        return f"weight has dtype {weight.dtype}; expected a floating dtype"
    try:
        shards.check_spread("its weight", weight) if shards.is_spread(weight) else None
    except ValueError as error:
        return f"{error}"
    return None
