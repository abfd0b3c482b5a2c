# SPDX-License-Identifier: Apache-2.0
"""The libraries of the table, each used as its documentation says."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import sparsekit as sk
from sparsekit.benchmarks.peers.library import Library, no, state_into, through_file
from sparsekit.benchmarks.peers.of_torch import TORCH_AO, TORCH_PRUNE

# NNCF


def _nncf_prune(model: nn.Module, x: Any, sparsity: float) -> nn.Module:
    import nncf  # pyright: ignore[reportMissingImports]

    mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
    return nncf.prune(model, mode=mode, ratio=sparsity, examples_inputs=x)


def _nncf_baked(model: nn.Module, x: Any) -> nn.Module:
    import nncf  # pyright: ignore[reportMissingImports]

    return nncf.strip(model, do_copy=True, strip_format=nncf.StripFormat.IN_PLACE, example_input=x)


def _nncf_sparsity(model: nn.Module) -> float:
    import nncf  # pyright: ignore[reportMissingImports]

    return nncf.pruning_statistic(model).pruning_ratio


def _nncf_resume(model: nn.Module, fresh: nn.Module, x: Any) -> nn.Module:
    import nncf.torch  # pyright: ignore[reportMissingImports]

    state = through_file({"model": model.state_dict(), "nncf": nncf.torch.get_config(model)})
    again = nncf.torch.load_from_config(fresh, state["nncf"])
    again.load_state_dict(state["model"])
    return again


def _nncf_stored(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    # "__nncf_hooks.post_hooks.block/fc:weight__0.0.binary_mask" is of the parameter block.fc.weight.
    masks = {key.split("post_hooks.")[1].split("__")[0]: m for key, m in model.state_dict().items() if "mask" in key}
    return [(model.get_parameter(re.sub("[:/]", ".", key)), mask.bool()) for key, mask in masks.items()]


# Torch-Pruning: takes whole channels out, so that there are no masks.


def _tp_prune(model: nn.Module, x: Any, sparsity: float) -> nn.Module:
    import torch_pruning  # pyright: ignore[reportMissingImports]

    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    options: dict[str, Any] = {"importance": importance, "pruning_ratio": sparsity, "global_pruning": True}
    torch_pruning.pruner.MagnitudePruner(model, x, ignored_layers=last, **options).step()
    return model


def _tp_resume(model: nn.Module, fresh: nn.Module, x: Any) -> nn.Module:
    import torch_pruning  # pyright: ignore[reportMissingImports]

    return torch_pruning.load_state_dict(fresh, state_dict=through_file(torch_pruning.state_dict(model)))


_SMALLER = "no masks: whole channels are taken out of the model"


# Ours


def _own_prune(model: nn.Module, x: Any, sparsity: float) -> nn.Module:
    sk.sparsify(model)
    weights = {name: layer.weight.detach() for name, layer in sk.masked_layers(model).items()}
    sk.set_masks(model, sk.Projection()(weights, sparsity).masks)
    return model


def _own_resume(model: nn.Module, fresh: nn.Module, x: Any) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        return sk.load(fresh, sk.save(model, folder))


def _own_stored(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(layer.weight, layer.mask.dense()) for layer in sk.masked_layers(model).values()]


def _own_dense(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    model.load_state_dict(state, strict=False)


NNCF = Library(
    "NNCF",
    "nncf",
    _nncf_prune,
    _nncf_baked,
    _nncf_sparsity,
    _nncf_resume,
    no("no means to protect stored weights"),
    _nncf_stored,
    state_into,
)
TORCH_PRUNING = Library(
    "Torch-Pruning",
    "torch-pruning",
    _tp_prune,
    lambda model, x: copy.deepcopy(model),
    no(_SMALLER),
    _tp_resume,
    no(_SMALLER),
    no(_SMALLER),
    no(_SMALLER),
    single=False,
)
OWN = Library(
    "sparsekit",
    "torch-sparsekit",
    _own_prune,
    lambda model, x: sk.finalize(copy.deepcopy(model)),
    lambda model: sk.masks(model).sparsity,
    _own_resume,
    sk.guard_,
    _own_stored,
    _own_dense,
)
LIBRARIES = (TORCH_PRUNE, TORCH_AO, NNCF, TORCH_PRUNING, OWN)
