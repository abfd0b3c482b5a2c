# SPDX-License-Identifier: Apache-2.0
"""What torch itself offers for pruning, used as its documentation says."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsekit.benchmarks.peers.library import Library, layers, no, state_into, through_file, zeros

# torch.nn.utils.prune


def _torch_prune(model: nn.Module, x: Any, sparsity: float) -> nn.Module:
    from torch.nn.utils import prune

    targets = [(layer, "weight") for layer in layers(model).values()]
    prune.global_unstructured(targets, pruning_method=prune.L1Unstructured, amount=sparsity)
    return model


def _torch_baked(model: nn.Module, x: Any) -> nn.Module:
    from torch.nn.utils import prune

    for layer in layers(model).values():
        prune.remove(layer, "weight")
    return model


def _torch_resume(model: nn.Module, fresh: nn.Module, x: Any) -> nn.Module:
    from torch.nn.utils import prune

    for layer in layers(fresh).values():
        prune.identity(layer, "weight")
    fresh.load_state_dict(through_file(model.state_dict()))
    return fresh


def _torch_stored(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(layer.weight_orig, layer.weight_mask.bool()) for layer in layers(model).values()]


# torch.ao.pruning: its norms take matrices alone, so that convolutions stay dense in all rows but the one about them.

_SPARSIFIERS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


def _ao_prune(model: nn.Module, x: Any, sparsity: float) -> nn.Module:
    from torch.ao.pruning import WeightNormSparsifier  # pyright: ignore[reportPrivateImportUsage]

    sparsifier = WeightNormSparsifier(sparsity_level=sparsity, sparse_block_shape=(1, 1), zeros_per_block=1)
    matrices = [name for name, layer in layers(model).items() if layer.weight.ndim == 2]
    sparsifier.prepare(model, config=[{"tensor_fqn": f"{name}.weight"} for name in matrices or layers(model)])
    sparsifier.step()
    _SPARSIFIERS[model] = sparsifier
    return model


def _ao_baked(model: nn.Module, x: Any) -> nn.Module:
    # What squash_mask does, on a copy too.
    for layer in layers(model).values():
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return model


def _ao_resume(model: nn.Module, fresh: nn.Module, x: Any) -> nn.Module:
    from torch.ao.pruning import WeightNormSparsifier  # pyright: ignore[reportPrivateImportUsage]

    saved = through_file({"sparsifier": _SPARSIFIERS[model].state_dict(), "model": model.state_dict()})
    again = WeightNormSparsifier()
    again.load_state_dict(saved["sparsifier"])
    fresh.load_state_dict(saved["model"])
    return fresh


def _ao_stored(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    found = [layer for layer in layers(model).values() if parametrize.is_parametrized(layer)]
    parts = [layer.parametrizations.weight for layer in found]
    return [(part.original, part[0].mask.bool()) for part in parts]


TORCH_PRUNE = Library(
    "torch.nn.utils.prune",
    "torch",
    _torch_prune,
    _torch_baked,
    lambda model: zeros([layer.weight for layer in layers(model).values()]),
    _torch_resume,
    no("no means to protect weight_orig"),
    _torch_stored,
    state_into,
)
TORCH_AO = Library(
    "torch.ao.pruning",
    "torch",
    _ao_prune,
    _ao_baked,
    lambda model: zeros([layer.weight for layer in layers(model).values()]),
    _ao_resume,
    no("no means to protect the original weights"),
    _ao_stored,
    state_into,
)
