# SPDX-License-Identifier: Apache-2.0
"""Which layers can be masked, and in words why the others are not."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from sparsekit.nn.conv import MaskedConv1d, MaskedConv2d, MaskedConv3d
from sparsekit.nn.linear import MaskedLinear
from sparsekit.nn.masked import MaskedLayer

MASKED_CLASS: dict[type[nn.Module], type[MaskedLayer]] = {
    nn.Linear: MaskedLinear,
    nn.Conv1d: MaskedConv1d,
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
}
PLAIN_CLASS = {masked: plain for plain, masked in MASKED_CLASS.items()}

Rule = str | type[nn.Module]


def matches(name: str, module: nn.Module, rules: Sequence[Rule]) -> Rule | None:
    """The first glob over the module's name, or type of the module, that applies."""
    for rule in rules:
        if fnmatchcase(name, rule) if isinstance(rule, str) else isinstance(module, rule):
            return rule
    return None


def own_reason(module: nn.Module) -> str | None:
    """Why ``module``, seen alone, has no masked form; None if it has one."""
    kind, weight = type(module), module._parameters.get("weight")
    if isinstance(weight, UninitializedParameter):
        return "weight is not initialised yet; run one batch first"
    if "forward" in vars(module):
        return "its forward was replaced on the object itself"
    if is_parametrized(module):
        return "its weight is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    if kind not in MASKED_CLASS and not isinstance(module, MaskedLayer):
        if isinstance(module, tuple(MASKED_CLASS)):
            return f"{kind.__name__} is a subclass with a behaviour of its own"
        return f"{kind.__name__} has no masked form"
    if weight is None:
        return "weight is not a Parameter of the layer (weight_norm, spectral_norm and prune replace it)"
    if not weight.is_floating_point():
        return f"weight has dtype {weight.dtype}; expected a floating dtype"
    return None
