# SPDX-License-Identifier: Apache-2.0
"""Bad input to every public function and class: the kind of exception, and a text "who: what: expected ..., got ..."."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekit as sk
from sparsekit.coupled import FilterGroup

NAN = math.nan
BATCH = torch.ones(5, 4)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def net() -> nn.Sequential:
    model = plain()
    sk.sparsify(model)
    return model


def emptied(*names: str, half: bool = False) -> nn.Sequential:
    """A model in which the layers named keep nothing, or the first one only a part of every filter."""
    model = net()
    if half:
        sk.set_masks(model, {"0": sk.Mask.from_dense(torch.arange(24).reshape(6, 4) % 2 == 0)})
    sk.set_masks(model, {name: ~sk.masks(model)[name] for name in names})
    return model


def loss(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).square().mean()


def nan_loss(model: nn.Module, batch: Any) -> Tensor:
    return loss(model, batch) * NAN


def vector_loss(model: nn.Module, batch: Any) -> Tensor:
    return model(batch)[0]


def float_loss(model: nn.Module, batch: Any) -> Any:
    return 1.0


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, 0.1)


def make(kind: Any, model: Any = None, objective: Any = loss, sparsity: Any = 0.5, **changes: Any) -> Any:
    """A pruner with whatever else it needs."""
    model = net() if model is None else model
    needed: dict[Any, dict[str, Any]] = {
        sk.BiP: {"steps": 3, "lower": changes.get("lower") or sgd(model.parameters())},
        sk.SpODE: {"steps": 3},
        sk.IMP: {"optimizer": sgd, "steps_per_round": 2, "rewind": "lr"},
        sk.OMP: {"optimizer": sgd, "steps": 2, "dense_steps": 1},
        sk.OneShotMagnitude: {"optimizer": sgd, "steps": 2},
        sk.GMP: {"optimizer": sgd, "steps": 2},
        sk.DPF: {"optimizer": sgd, "steps": 2},
        sk.SNIP: {"optimizer": sgd, "steps": 2},
        sk.GraSP: {"optimizer": sgd, "steps": 2},
        sk.CriterionPruning: {"criterion": changes.get("criterion") or "magnitude"},
        sk.SynFlow: {"optimizer": sgd, "steps": 2, "rounds": 2},
        sk.Hydra: {"optimizer": sgd, "steps": 2, "finetune_steps": 1},
        sk.Movement: {"optimizer": sgd, "steps": 2},
        sk.ProbMask: {"optimizer": sgd, "steps": 2, "finetune_steps": 1},
        sk.WoodFisher: {"optimizer": sgd, "steps": 2, "fisher_batches": 2},
        sk.STR: {"optimizer": sgd, "steps": 2},
        sk.Powerprop: {"optimizer": sgd, "steps": 2},
        sk.RigL: {
            "optimizer": sgd,
            "steps": 2,
            "projection": changes.get("projection") or sk.Projection(allocation="erk"),
        },
        sk.SET: {
            "optimizer": sgd,
            "steps": 2,
            "projection": changes.get("projection") or sk.Projection(allocation="erk"),
        },
        sk.Iterative: {"optimizer": sgd, "steps_per_round": 2, "rounds": 2},
        sk.RandomPruning: {"optimizer": sgd, "steps": 2, "projection": changes.get("projection") or sk.Projection()},
    }
    if kind is sk.Iterative and "pruner" not in changes:  # it has no projection of its own
        projection = changes.pop("projection", None)
        changes["pruner"] = lambda m, s: sk.OneShotMagnitude(m, objective, s, projection=projection)
    return kind(model, objective, sparsity, **(needed[kind] | changes))


def batches() -> Iterator[Tensor]:
    while True:
        yield BATCH


def step(kind: Any, given: Any = None, **changes: Any) -> None:
    make(kind, **changes).step(batches() if given is None else given)


def fit(kind: Any, loader: Any, **changes: Any) -> None:
    make(kind, **changes).fit(loader)


def load_state(kind: Any, state: Any) -> None:
    make(kind).load_state_dict(state)


def gradients_at(model: Any, objective: Any, batch: Any, name: str = "0", shape: tuple[int, ...] = (6, 4)) -> None:
    sk.gradients_at(model, objective, batch, {name: torch.ones(shape)})


def use_weights(z: Any) -> None:
    with sk.effective_weights(net(), z):
        pass


def guard(model: nn.Module, other: nn.Module) -> None:
    sk.guard_(sgd(other.parameters()), model)


def put_mask(layer: Any, *mask: Any) -> None:
    (layer.mask,) = mask or (MASK,)


def allocate(allocation: Any, units: Any, sparsity: Any) -> None:
    allocation({"fc": (2, 2)}, units, sparsity)


def both(operator: Callable[[Any, Any], Any], other: Any) -> None:
    operator(MASK, other)


def per_layer(**arguments: Any) -> sk.PerLayer:
    return sk.PerLayer({"fc": 0.5}, **arguments)


MASK, SMALL = sk.Mask.full((6, 4)), sk.Mask.full((2, 2))
WORDS = torch.zeros(3, 1, dtype=torch.int32)
SCORES, WEIGHT = [torch.ones(3)], {"fc": torch.ones(4, 8)}
NORMED = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
PROBLEM = {"BiP: loss: expected a finite value, got NaN or inf (step 3)": torch.tensor(True)}
RANGE = "expected a number in [0, 1), got"
V, T = ValueError, TypeError

# (public name, what is wrong, exception, how its text begins, call)
Case = tuple[str, str, type[Exception], str, Callable[[], Any]]
CASES: list[Case] = []


def case(thing: str, what: Any, error: type[Exception], text: str, call: Any, *args: Any, **kwargs: Any) -> None:
    CASES.append((thing, str(what), error, text, partial(call, *args, **kwargs)))


# Pruners
SCORED = (sk.SNIP, sk.GraSP, sk.SynFlow)
LEARNED = (sk.Hydra, sk.Movement, sk.ProbMask)
OTHERS = (sk.WoodFisher, sk.STR, sk.Powerprop, sk.RigL, sk.SET)
PHASED = (
    sk.IMP,
    sk.OMP,
    sk.OneShotMagnitude,
    sk.GMP,
    sk.DPF,
    sk.RandomPruning,
    sk.Iterative,
    *SCORED,
    *LEARNED,
    *OTHERS,
)
for kind in (sk.BiP, sk.SpODE, *PHASED):
    n = kind.__name__
    for value in (1.0, 1.5, -0.1, NAN, math.inf):
        case(n, f"sparsity {value}", V, f"{n}: sparsity: {RANGE} {value!r}", make, kind, sparsity=value)
    for value in ("0.5", None, True):
        case(n, f"sparsity {value!r}", T, f"{n}: sparsity: {RANGE} {value!r}", make, kind, sparsity=value)
    text = f"{n}: model: expected masked layers, got nothing to prune; call sparsify first"
    case(n, "nothing to prune", V, text, make, kind, plain())
    case(n, "no loss", T, f"{n}: loss: expected a callable (model, batch) -> scalar, got 3", make, kind, objective=3)
    at = 2 if kind is sk.SynFlow else 1  # its first step needs no loss
    text = f"{n}: loss: expected a finite value, got NaN or inf (step {at})"
    case(n, "a NaN loss", V, text, fit, kind, [BATCH], objective=nan_loss)
    text = f"{n}: loss: expected a"
    case(n, "a vector loss", V, f"{text} scalar tensor, got", fit, kind, [BATCH], objective=vector_loss)
    case(n, "a loss that is no tensor", V, f"{text} scalar tensor, got", fit, kind, [BATCH], objective=float_loss)
    text = f"{n}: batches: expected another batch at step 1, got none"
    case(n, "exhausted batches", V, text, step, kind, iter([]))
    case(n, "a list of batches", T, f"{n}: batches: expected an iterator, got list", step, kind, [BATCH])
    text = f"{n}: loader: expected batches at each pass, got none (is it a used-up iterator?)"
    case(n, "an empty loader", V, text, fit, kind, [])
    case(n, "a used-up loader", V, text, fit, kind, iter([BATCH]))
    case(n, "an empty state", V, f"{n}: load_state_dict: expected pruner '{n}', got None", load_state, kind, {})
    text = f"{n}: load_state_dict: expected a state dict, got NoneType"
    case(n, "no state", T, text, load_state, kind, None)
    case(n, "no loader", T, f"{n}: loader: expected an iterable of batches, got NoneType", fit, kind, None)
    text = "PerLayer: sparsities: expected names or globs of layers, got 'fc9'"
    case(n, "an unknown layer", V, text, fit, kind, [BATCH], projection=sk.Projection(allocation={"fc9": 0.5}))

for kind in PHASED:
    n = kind.__name__
    text = f"{n}: optimizer: expected a callable (parameters) -> optimizer, got 0.1"
    case(n, "no optimizer factory", T, text, make, kind, optimizer=0.1)
    text = f"{n}: optimizer: expected a callable that makes a torch optimizer, got int"
    case(n, "a factory of something else", T, text, fit, kind, [BATCH], optimizer=len)
    text = f"{n}: curve: expected a callable or one of constant, cosine, linear, step, got 'zig'"
    case(n, "an unknown curve", V, text, make, kind, curve="zig")
    if kind in SCORED:
        text = f"{n}: model: expected masks that keep at least 21 units, got 18 kept"
        case(n, "masks that are too sparse", V, text, make, kind, emptied("0"))
        text = f"{n}: model: expected masks of whole units of Filter(p=2.0), got others in `0`"
        case(n, "masks of parts", V, text, make, kind, emptied(half=True), projection=sk.Projection("filter"))
        text = f"{n}: rewind_state: expected the keys of the model's state_dict, got missing"
        case(n, "a state of something else", V, text, make, kind, rewind_state={})
        case(n, "steps", V, f"{n}: steps: expected an int >= 0, got -1", make, kind, steps=-1)
        case(n, "rounds", V, f"{n}: rounds: expected an int >= 1, got 0", make, kind, rounds=0)
        text = f"{n}: batchnorm: expected one of train, eval, got 'frozen'"
        case(n, "batchnorm", V, text, make, kind, batchnorm="frozen")
        text = f"{n}: rounds: expected 1 for 2:4, got 2"
        case(n, "rounds of 2:4", V, text, make, kind, rounds=2, projection=sk.Projection("2:4"))
        continue
    text = f"{n}: model: expected full masks (make the pruner before loading a saved state), got sparsity 0.5714"
    case(n, "masks that are not full", V, text, make, kind, emptied("0"))

for kind in (sk.BiP, sk.SpODE, sk.OMP, sk.GMP, sk.DPF, *LEARNED, sk.WoodFisher, sk.STR, sk.Powerprop, sk.RigL, sk.SET):
    for value, error in ((0, V), (-1, V), (1.5, T), ("3", T), (None, T), (True, T)):
        text = f"{kind.__name__}: steps: expected an int >= 1, got {value!r}"
        case(kind.__name__, f"steps {value!r}", error, text, make, kind, steps=value)

for thing, arguments, error, text in (
    ("BiP", {"gamma": 0}, V, "gamma: expected a number > 0 or inf, got 0"),
    ("BiP", {"upper_lr": NAN}, V, "upper_lr: expected a finite number >= 0, got nan"),
    ("BiP", {"lower": sgd}, T, "lower: expected a torch optimizer over the model's parameters, got function"),
    (
        "BiP",
        {"lower": sgd(net().parameters())},
        V,
        "lower: expected an optimizer over every masked weight, got one without",
    ),
    (
        "BiP",
        {"lower_curve": "zig"},
        V,
        "lower_curve: expected a callable or one of constant, cosine, linear, step, got 'zig'",
    ),
    (
        "BiP",
        {"upper_curve": "zig"},
        V,
        "upper_curve: expected a callable or one of constant, cosine, linear, step, got 'zig'",
    ),
    ("SpODE", {"radius": 0.5}, V, "radius: expected a finite number >= 1, got 0.5"),
    ("SpODE", {"energy": "l3"}, V, "energy: expected one of l2, l1, got 'l3'"),
    ("SpODE", {"polariser": "x"}, V, "polariser: expected one of oh, ohm, ohh, ohhm, qt, qtm, gau, gaum, got 'x'"),
    ("SpODE", {"recalibrate": -1}, V, "recalibrate: expected an int >= 0, got -1"),
    (
        "SpODE",
        {"projection": sk.Projection("2:4")},
        V,
        "projection: expected the pattern Unstructured, Filter, Channel or CoupledFilters",
    ),
    ("SpODE", {"model": emptied("0")}, V, "model: expected masks that keep at least 21 units, got 18 kept"),
    ("SpODE", {"options": 3}, T, "options: expected SpODEOptions, got int"),
    ("IMP", {"steps_per_round": None}, V, "steps_per_round: expected either it or budget, got neither"),
    ("IMP", {"budget": 9}, V, "steps_per_round: expected either it or budget, got both"),
    ("IMP", {"steps_per_round": None, "budget": 2}, V, "budget: expected an int >= 3, got 2"),
    ("IMP", {"steps_per_round": 0}, V, "steps_per_round: expected an int >= 1, got 0"),
    ("IMP", {"dense_steps": -1}, V, "dense_steps: expected an int >= 0, got -1"),
    ("IMP", {"rewind": "late"}, V, "rewind: expected one of init, early, lr, none, got 'late'"),
    (
        "IMP",
        {"rewind": "init"},
        V,
        "rewind_state: expected a state dict for rewind='init', or dense_steps, got neither",
    ),
    (
        "IMP",
        {"rewind": "init", "rewind_state": {}},
        V,
        "rewind_state: expected the keys of the model's state_dict, got missing",
    ),
    ("IMP", {"projection": sk.Projection("2:4")}, V, "projection: expected a pattern of any sparsity, got NM"),
    ("OMP", {"dense_steps": 0}, V, "rewind_state: expected a state dict without dense_steps, got None"),
    ("OMP", {"dense_steps": 0, "rewind_state": 3}, T, "rewind_state: expected a state dict of the model, got int"),
    ("OneShotMagnitude", {"steps": -1}, V, "steps: expected an int >= 0, got -1"),
    ("OneShotMagnitude", {"recalibrate": -1}, V, "recalibrate: expected an int >= 0, got -1"),
    ("GMP", {"ramp": 0}, V, "ramp: expected a number in (0, 1], got 0"),
    ("GMP", {"ramp": NAN}, V, "ramp: expected a number in (0, 1], got nan"),
    ("GMP", {"every": 0}, V, "every: expected an int >= 1, got 0"),
    ("GMP", {"projection": sk.Projection("2:4")}, V, "schedule: expected 'constant' for 2:4, got Cubic"),
    ("SNIP", {"batches": 0}, V, "batches: expected an int >= 1, got 0"),
    ("GraSP", {"batches": 1.5}, T, "batches: expected an int >= 1, got 1.5"),
    ("GraSP", {"temperature": 0.0}, V, "temperature: expected a finite number > 0, got 0.0"),
    ("GraSP", {"temperature": "hot"}, T, "temperature: expected a finite number > 0, got 'hot'"),
    ("GraSP", {"samples_per_class": 0}, V, "samples_per_class: expected an int >= 1, got 0"),
    ("SynFlow", {"input_shape": 4}, T, "input_shape: expected dimensions without the batch, got 4"),
    ("SynFlow", {"input_shape": (0,)}, V, "input_shape: expected an int >= 1, got 0"),
    ("SynFlow", {"double": 1}, T, "double: expected a bool, got 1"),
    ("CriterionPruning", {"criterion": "x"}, V, "criterion: expected a Criterion or one of magnitude, random, snip"),
    ("CriterionPruning", {"schedule": "cubic"}, V, "schedule: expected one of geometric, linear, got 'cubic'"),
    ("CriterionPruning", {"seed": -1}, V, "seed: expected an int >= 0, got -1"),
    ("DPF", {"ramp": 1.5}, V, "ramp: expected a number in (0, 1], got 1.5"),
    ("DPF", {"every": 1.0}, T, "every: expected an int >= 1, got 1.0"),
    ("Hydra", {"finetune_steps": -1}, V, "finetune_steps: expected an int >= 0, got -1"),
    ("Hydra", {"score_lr": -0.1}, V, "score_lr: expected a finite number >= 0, got -0.1"),
    ("Hydra", {"score_momentum": "0.9"}, T, "score_momentum: expected a finite number >= 0, got '0.9'"),
    ("Hydra", {"score_weight_decay": NAN}, V, "score_weight_decay: expected a finite number >= 0, got nan"),
    ("Hydra", {"start": "theta"}, V, "start: expected one of scaled, raw, got 'theta'"),
    ("Hydra", {"score_curve": "zig"}, V, "score_curve: expected a callable or one of constant, cosine, linear, step"),
    ("Movement", {"score_lr": 0}, V, "score_lr: expected a finite number > 0, got 0"),
    ("Movement", {"warm_up": 0.9}, V, "warm_up: expected a number in [0, 0.8) (ramp), got 0.9"),
    ("Movement", {"ramp": 2}, V, "ramp: expected a number in (0, 1], got 2"),
    ("Movement", {"projection": sk.Projection("2:4")}, V, "schedule: expected 'constant' for 2:4, got Cubic("),
    ("ProbMask", {"finetune_steps": 1.0}, T, "finetune_steps: expected an int >= 0, got 1.0"),
    ("ProbMask", {"score_lr": 0.0}, V, "score_lr: expected a finite number > 0, got 0.0"),
    ("ProbMask", {"projection": sk.Projection("filter")}, V, "projection: expected single weights and no group, got"),
    ("ProbMask", {"rewind_state": {}}, V, "rewind_state: expected the keys of the model's state_dict, got missing"),
    ("WoodFisher", {"fisher_batches": 0}, V, "fisher_batches: expected an int >= 1, got 0"),
    ("WoodFisher", {"block": 1.5}, T, "block: expected an int >= 1, got 1.5"),
    ("WoodFisher", {"damping": 0}, V, "damping: expected a finite number > 0, got 0"),
    ("WoodFisher", {"update": "obs"}, V, "update: expected one of sum, joint, none, got 'obs'"),
    ("WoodFisher", {"ramp": -0.1}, V, "ramp: expected a number in [0, 1], got -0.1"),
    ("STR", {"first": NAN}, V, "first: expected a finite number"),
    ("STR", {"scope": "row"}, V, "scope: expected one of layer, global, got 'row'"),
    ("STR", {"ramp": 0}, V, "ramp: expected a number in (0, 1], got 0"),
    ("STR", {"finetune_steps": -1}, V, "finetune_steps: expected an int >= 0, got -1"),
    ("Powerprop", {"alpha": 0.5}, V, "alpha: expected a finite number >= 1, got 0.5"),
    ("Powerprop", {"alpha": None}, T, "alpha: expected a finite number >= 1, got None"),
    ("Powerprop", {"finetune_steps": 1.0}, T, "finetune_steps: expected an int >= 0, got 1.0"),
    ("RigL", {"every": 1}, V, "every: expected an int >= 2, got 1"),
    (
        "RigL",
        {"projection": sk.Projection()},
        V,
        "projection: expected an allocation per layer, such as erk, got Global(",
    ),
    ("SET", {"alpha": 0}, V, "alpha: expected a number in (0, 1], got 0"),
    ("SET", {"decay": "x"}, V, "decay: expected one of cosine, constant, got 'x'"),
    ("Iterative", {"pruner": 3}, T, "pruner: expected a callable (model, sparsity) -> pruner, got 3"),
    ("Iterative", {"rounds": 0}, V, "rounds: expected an int >= 1, got 0"),
    ("Iterative", {"steps_per_round": 0}, V, "steps_per_round: expected an int >= 1, got 0"),
    ("Iterative", {"final_steps": -1}, V, "final_steps: expected an int >= 0, got -1"),
    ("Iterative", {"final_optimizer": 3}, T, "final_optimizer: expected a callable (parameters) -> optimizer, got 3"),
    ("Iterative", {"final_curve": "zig"}, V, "final_curve: expected a callable or one of constant, cosine, linear"),
    (
        "Iterative",
        {"pruner": lambda m, s: m},
        T,
        "pruner: expected a callable (model, sparsity) -> pruner, got one of ",
    ),
    (
        "Iterative",
        {"pruner": lambda m, s: sk.OneShotMagnitude(m, loss, 0.25)},
        V,
        "pruner: expected a pruner of the model given to the sparsity 0.2928932188134524, got one to 0.25",
    ),
    (
        "OneShotMagnitude",
        {"steps": 0, "model": emptied("0")},
        V,
        "model: expected masks that keep at least 21 units of",
    ),
    ("RandomPruning", {"steps": -1}, V, "steps: expected an int >= 0, got -1"),
    ("RandomPruning", {"seed": -1}, V, "seed: expected an int >= 0, got -1"),
    ("RandomPruning", {"seed": 0.5}, T, "seed: expected an int >= 0, got 0.5"),
    (
        "RandomPruning",
        {"rewind_state": {}},
        V,
        "rewind_state: expected the keys of the model's state_dict, got missing",
    ),
    (
        "RandomPruning",
        {"projection": sk.Projection("filter")},
        V,
        "projection: expected an allocation per layer for filter, got Global",
    ),
):
    case(thing, ", ".join(arguments), error, f"{thing}: {text}", make, getattr(sk, thing), **arguments)
for thing, fields, error, text in (
    ("Criterion", {"name": ""}, V, "Criterion: name: expected a name, got ''"),
    ("Criterion", {"scores": 3}, T, "Criterion: scores: expected a callable Scoring -> scores by layer, got 3"),
    ("Criterion", {"batches": -1}, V, "Criterion: batches: expected an int >= 0, got -1"),
    ("Criterion", {"rounds": 0}, V, "Criterion: rounds: expected an int >= 1, got 0"),
    ("Criterion", {"units": "l2"}, V, "Criterion: units: expected one of norm, sum, abs_sum, got 'l2'"),
    ("Criterion", {"batchnorm": "x"}, V, "Criterion: batchnorm: expected one of train, eval, got 'x'"),
):
    case(thing, fields, error, text, sk.Criterion, **({"name": "mine", "scores": loss} | fields))
text = "criterion: name: expected one that is not taken, got 'snip'"
case("criterion", "a name of ours", V, text, sk.criterion("snip"), loss)
text = "BiP: schedule: expected a callable iteration -> sparsity, got 3"
case("BiP", "a schedule that is a number", T, text, make, sk.BiP, schedule=3)
case("BiP", "a schedule out of range", V, f"Global: sparsity: {RANGE} 2.0", make, sk.BiP, schedule=lambda step: 2.0)

for thing, option, value, text in (
    ("BiP", "key", "rank", "BiP: key: expected one of magnitude, value, got 'rank'"),
    ("BiP", "passes", 3, "BiP: passes: expected one of 1, 2, got 3"),
    ("BiP", "scores", "x", "BiP: scores: expected one of separate, tied, got 'x'"),
    ("BiP", "upper_batchnorm", "x", "BiP: upper_batchnorm: expected one of frozen, train, eval, got 'x'"),
    ("BiP", "variant", "x", "BiP: variant: expected one of paper, released, got 'x'"),
    ("BiP", "lower_steps", 0, "BiP: lower_steps: expected an int >= 1, got 0"),
    ("BiP", "upper_every", 0, "BiP: upper_every: expected an int >= 1, got 0"),
    ("BiP", "upper_batches", 0, "BiP: upper_batches: expected an int >= 1, got 0"),
    ("BiP", "start", "x", "BiP: start: expected one of magnitude, masks, got 'x'"),
    ("SpODE", "step_schedule", "x", "SpODE: step_schedule: expected one of exp, lin, invexp, hess, got 'x'"),
    ("SpODE", "radius_schedule", "x", "SpODE: radius_schedule: expected one of fix, invexp, hess, got 'x'"),
    ("SpODE", "batchnorm", "x", "SpODE: batchnorm: expected one of train, eval, frozen, got 'x'"),
    ("SpODE", "radius_search", "x", "SpODE: radius_search: expected one of none, auto, autor, got 'x'"),
    ("SpODE", "mask_option", "x", "SpODE: mask_option: expected one of one, mask, sign, got 'x'"),
    ("SpODE", "recalibration", "x", "SpODE: recalibration: expected one of average, released, released_reset, got 'x'"),
    ("SpODE", "score_momentum", 1.0, "SpODE: score_momentum: expected a number in [0, 1), got 1.0"),
    ("SpODE", "ratio", 0.0, "SpODE: ratio: expected a number in (0, 1), got 0.0"),
    ("SpODE", "eps", 0.5, "SpODE: eps: expected a number in (0.5, 1), got 0.5"),
    ("ProbMask", "samples", 0, "ProbMask: samples: expected an int >= 1, got 0"),
    ("ProbMask", "clip", 0.0, "ProbMask: clip: expected a finite number > 0, got 0.0"),
    ("ProbMask", "warm_up", 0.7, "ProbMask: warm_up: expected a number in [0, 0.6) (ramp), got 0.7"),
    ("ProbMask", "ramp", 0, "ProbMask: ramp: expected a number in (0, 1], got 0"),
    ("ProbMask", "coolest", 1.5, "ProbMask: coolest: expected a number in (0, 1], got 1.5"),
    ("ProbMask", "finetune_rate", 0, "ProbMask: finetune_rate: expected a finite number > 0, got 0"),
    ("ProbMask", "seed", -1, "ProbMask: seed: expected an int >= 0, got -1"),
    ("IMP", "rate", 1.0, "imp_ladder: rate: expected a number in (0, 1), got 1.0"),
    ("IMP", "rewind_step", 2, "IMP: rewind_step: expected 0 with rewind='lr', got 2"),
    ("IMP", "finetune_factor", 0.0, "IMP: finetune_factor: expected a finite number > 0, got 0.0"),
):
    options = getattr(sk, f"{thing}Options")(**{option: value})
    case(f"{thing}Options", option, V, text, make, getattr(sk, thing), options=options)

# Layers, masks and gradients
for thing, what, error, text, call in (
    ("sparsify", "no module", T, "model: expected a torch.nn.Module, got str", partial(sk.sparsify, "model")),
    (
        "sparsify",
        "nothing to mask",
        V,
        "model: expected at least one layer to mask, got none",
        partial(sk.sparsify, nn.ReLU()),
    ),
    (
        "sparsify",
        "a string",
        T,
        "skip: expected a sequence of globs and module types, got 'f'",
        partial(sk.sparsify, plain(), "f"),
    ),
    ("sparsify", "a number", T, "skip: expected globs and module types, got 3", partial(sk.sparsify, plain(), [3])),
    (
        "sparsify",
        "unknown glob",
        V,
        "skip: expected globs that match a module, got 'f'",
        partial(sk.sparsify, plain(), ["f"]),
    ),
    (
        "sparsify",
        "only",
        V,
        "only: expected globs that match a module, got 'f'",
        partial(sk.sparsify, plain(), only=["f"]),
    ),
    (
        "finalize",
        "nothing masked",
        V,
        "model: expected masked layers, got none; call sparsify",
        partial(sk.finalize, plain()),
    ),
    ("check_ranks", "nothing masked", V, "model: expected masked layers, got none", partial(sk.check_ranks, plain())),
    ("check_ranks", "one process", V, "group: expected an initialised torch", partial(sk.check_ranks, net())),
    (
        "set_masks",
        "unknown layer",
        V,
        "masks: expected names of masked layers, got '9'",
        partial(sk.set_masks, net(), {"9": MASK}),
    ),
    ("set_masks", "nothing masked", V, "masks: expected names of masked", partial(sk.set_masks, plain(), {"0": MASK})),
    (
        "set_masks",
        "shape",
        V,
        "masks['2']: expected shape (3, 6), got (6, 4)",
        partial(sk.set_masks, net(), {"2": MASK}),
    ),
    (
        "effective_weights",
        "unknown layer",
        V,
        "z: expected names of masked layers, got '9'",
        partial(use_weights, {"9": BATCH}),
    ),
    ("effective_weights", "shape", V, "z: expected shape (6, 4), got (5, 4)", partial(use_weights, {"0": BATCH})),
    (
        "dense_gradients",
        "vector loss",
        V,
        "loss: expected a diff",
        partial(sk.dense_gradients, net(), vector_loss, BATCH),
    ),
    ("dense_gradients", "no tensor", V, "loss: expected a diff", partial(sk.dense_gradients, net(), float_loss, BATCH)),
    ("gradients_at", "vector loss", V, "loss: expected a diff", partial(gradients_at, net(), vector_loss, BATCH)),
    ("gradients_at", "no tensor", V, "loss: expected a diff", partial(gradients_at, net(), float_loss, BATCH)),
    (
        "guard_",
        "other model",
        V,
        "optimizer: expected an optimizer over masked weights of the model",
        partial(guard, net(), net()),
    ),
    ("guard_", "nothing masked", V, "optimizer: expected an optimizer over masked", partial(guard, NORMED, NORMED)),
    (
        "recalibrate_batchnorm",
        "",
        V,
        "batches: expected at least one batch",
        partial(sk.recalibrate_batchnorm, NORMED, iter([])),
    ),
    ("set_masks", "no masks", T, "masks: expected masks by layer name, got list", partial(sk.set_masks, net(), [MASK])),
    (
        "set_masks",
        "a tensor",
        T,
        "masks['0']: expected a Mask, got Tensor;",
        partial(sk.set_masks, net(), {"0": BATCH}),
    ),
    ("Mask", "no words", T, "words: expected an int32 tensor, got NoneType", partial(sk.Mask, None, (3, 4))),
    ("Mask", "shape", V, "words: expected shape (3, 2) for a mask of shape (3, 40)", partial(sk.Mask, WORDS, (3, 40))),
    ("Mask", "dtype", T, "words: expected dtype torch.int32, got torch.int64", partial(sk.Mask, WORDS.long(), (3, 4))),
    ("Mask", "shapes", V, "operand: expected shape (6, 4), got (2, 2)", partial(both, sk.Mask.__and__, SMALL)),
    ("Mask", "no mask", T, "operand: expected a Mask, got int", partial(both, sk.Mask.__or__, 3)),
    (
        "Masks",
        "layers",
        V,
        "operand: expected the same layers",
        partial(sk.Masks({"a": MASK}).overlap, sk.Masks({"b": MASK})),
    ),
):
    case(thing, what, error, f"{thing}: {text}", call)
case("Mask", "a float mask", T, "pack_mask: mask: expected a bool tensor, got torch", sk.Mask.from_dense, torch.ones(2))
text = "effective_weights: z: expected names of masked layers, got '9'"
case("gradients_at", "an unknown layer", V, text, gradients_at, net(), loss, BATCH, "9")
text = "effective_weights: z: expected shape (6, 4), got (2,)"
case("gradients_at", "a wrong shape", V, text, gradients_at, net(), loss, BATCH, "0", (2,))

for layer, x, text in (
    (sk.MaskedLinear(3, 2), torch.ones(2, 4), "masked_linear: x: expected last dimension 3, got shape (2, 4)"),
    (sk.MaskedConv1d(2, 3, 3), torch.ones(1, 9, 9), "masked_conv1d: x: expected 2 input channels for weight (3, 2, 3)"),
    (
        sk.MaskedConv2d(2, 3, 3),
        torch.ones(1, 9, 9, 9),
        "masked_conv2d: x: expected 2 input channels for weight (3, 2, 3, 3)",
    ),
    (
        sk.MaskedConv3d(2, 3, 3),
        torch.ones(1, 9, 9, 9, 9),
        "masked_conv3d: x: expected 2 input channels for weight (3, 2, 3,",
    ),
):
    case(type(layer).__name__, "an input of another shape", V, text, layer, x)
    text = f"mask: expected shape {tuple(layer.weight.shape)}, got (6, 4)"
    case("MaskedLayer", f"a mask of another shape for {type(layer).__name__}", V, text, put_mask, layer)

text = "mask: expected a Mask, got NoneType; Mask.from_dense packs a bool tensor"
case("MaskedLayer", "no mask", T, text, put_mask, sk.MaskedLinear(3, 2), None)

# Selection
for what, args, arguments, error, text in (
    ("one tensor", (torch.ones(3), 1), {}, T, "scores: expected a sequence of tensors, got one tensor"),
    ("integers", ([WORDS], 1), {}, T, "scores[0]: expected a float64/32/16 or bfloat16 tensor, got torch.int32"),
    ("too many", (SCORES, 4), {}, V, "kept: expected an int in [0, 3], got 4"),
    ("negative", (SCORES, -1), {}, V, "kept: expected an int in [0, 3], got -1"),
    ("a list", (SCORES, [1]), {}, V, "kept: expected one int for scope 'global', got [1]"),
    ("one int", (SCORES, 1), {"scope": "row"}, V, "kept: expected a sequence of 1 ints for scope 'row', got 1"),
    ("scope", (SCORES, 1), {"scope": "x"}, V, "scope: expected one of global, tensor, row, got 'x'"),
    ("key", (SCORES, 1), {"key": "x"}, V, "key: expected one of value, magnitude, got 'x'"),
    ("nan", (SCORES, 1), {"nan": "x"}, V, "nan: expected one of error, drop, keep, got 'x'"),
    ("out", (SCORES, 1), {"out": "x"}, V, "out: expected one of words, bool, got 'x'"),
):
    case("topk_mask", what, error, f"topk_mask: {text}", sk.topk_mask, *args, **arguments)
for what, projection, args, error, text in (
    ("no scores", sk.Projection(), ({}, 0.5), V, "scores: expected at least one layer, got none"),
    ("a list", sk.Projection(), (SCORES, 0.5), T, "scores: expected a mapping of layer names to tensors, got list"),
    ("a number", sk.Projection(), ({"fc": 3}, 0.5), T, "scores['fc']: expected a floating point tensor, got int"),
    ("key", sk.Projection(), (WEIGHT, 0.5, "x"), V, "key: expected one of value, magnitude, got 'x'"),
    ("sparsity of N:M", sk.Projection("2:4"), (WEIGHT, 0.9), V, "sparsity: expected 0.5 for 2:4, got 0.9"),
    ("nan", sk.Projection, ("filter", "global", "x"), V, "nan: expected one of error, drop, keep, got 'x'"),
    (
        "budget of N:M",
        sk.Projection,
        ("2:4", "erk"),
        V,
        "allocation: expected global or uniform, as 2:4 fixes the budget",
    ),
):
    case("Projection", what, error, f"Projection: {text}", projection, *args)
text = "PerLayer: sparsities: expected names or globs of layers, got 'conv'"
case("Projection", "an unknown layer", V, text, sk.Projection(allocation={"conv": 0.5}), WEIGHT, 0.5)
case("Projection", "sparsity", V, f"Global: sparsity: {RANGE} 1.0", sk.Projection(), WEIGHT, 1.0)

# Patterns, allocations and schedules
for thing, what, text, call, args in (
    (
        "Unstructured",
        "shape",
        "shape: expected at least 0 dimensions, all integers",
        sk.Unstructured().unit_shape,
        ((-1,),),
    ),
    (
        "Filter",
        "shape",
        "shape: expected at least 2 dimensions, all integers >= 0, got (3,)",
        sk.Filter().unit_shape,
        ((3,),),
    ),
    ("Filter", "p", "p: expected a number > 0 or inf, got 0", sk.Filter, (0,)),
    ("Channel", "p", "p: expected a number > 0 or inf, got nan", sk.Channel, (NAN,)),
    ("NM", "n > m", "n, m: expected integers, 1 <= n <= m, got 3, 2", sk.NM, (3, 2)),
    ("NM", "shape", "shape: expected dim 1 divisible by 4, got (3, 5)", sk.NM(2, 4).unit_shape, ((3, 5),)),
    ("Block", "h", "h, w: expected integers >= 1, got 0, 1", sk.Block, (0, 1)),
    ("Global", "rounding", "rounding: expected nearest or floor, got 'up'", sk.Global, (0, "up")),
    ("ERK", "power", "power: expected a number in [0, 8], got 9", sk.ERK, (9,)),
    ("PerLayer", "sparsity", f"sparsities['a']: {RANGE} 1.5", sk.PerLayer, ({"a": 1.5},)),
    ("PerLayer", "default", f"default: {RANGE} nan", sk.PerLayer, ({}, NAN)),
    ("kept_count", "n", "n: expected an integer >= 0, got -1", sk.kept_count, (-1, 0.5)),
    ("kept_count", "sparsity", f"sparsity: {RANGE} nan", sk.kept_count, (3, NAN)),
    ("Constant", "final", f"final: {RANGE} 1.0", sk.Constant, (1.0,)),
    ("Constant", "step", "step: expected an integer >= 0, got -1", sk.Constant(0.5), (-1,)),
):
    case(thing, what, V, f"{thing}: {text}", call, *args)
case(
    "PerLayer",
    "no mapping",
    T,
    "PerLayer: sparsities: expected a mapping of names to numbers, got float",
    sk.PerLayer,
    0.5,
)
text = "PerLayer: sparsities: expected names or globs of layers, got 'fcs'; close names: fc"
case("PerLayer", "an unknown layer", V, text, allocate, sk.PerLayer({"fcs": 0.5}), {"fc": 4}, 0.5)
for n, make_allocation in (("Global", sk.Global), ("Uniform", sk.Uniform), ("ERK", sk.ERK), ("PerLayer", per_layer)):
    case(n, "min_keep", V, f"{n}: min_keep: expected an integer >= 0, got -1", make_allocation, min_keep=-1)
    case(n, "sparsity", V, f"{n}: sparsity: {RANGE} 1.0", allocate, make_allocation(), {"fc": 4}, 1.0)
    text = f"{n}: min_keep: expected at most 2 units in all, got 3"
    case(n, "too large a min_keep", V, text, allocate, make_allocation(min_keep=3), {"fc": 4}, 0.5)
    text = f"{n}: units: expected the layers of shapes, got a difference in a, fc"
    case(n, "other layers", V, text, allocate, make_allocation(), {"a": 4}, 0.5)
for ramp in (sk.Linear, sk.Cubic, sk.Geometric):
    n = ramp.__name__
    case(n, "final", V, f"{n}: final: {RANGE} 1.0", ramp, 0, 1.0, 0, 1)
    case(n, "initial", V, f"{n}: initial: expected at most final=0.2, got 0.5", ramp, 0.5, 0.2, 0, 1)
    case(n, "start", V, f"{n}: start: expected an integer >= 0, got -1", ramp, 0, 0.5, -1, 1)
    case(n, "end", V, f"{n}: end: expected an integer >= start=2, got 1", ramp, 0, 0.5, 2, 1)
    case(n, "step", V, f"{n}: step: expected an integer >= 0, got 1.5", ramp(0, 0.5, 0, 1), 1.5)

# Files and metrics
for thing, what, error, text, args in (
    ("save", "nothing masked", V, "model: expected masked layers, got none; call sparsify first", (plain(), "never")),
    ("save", "no module", T, "model: expected a torch.nn.Module, got int", (3, "never")),
    ("save", "no path", T, "path: expected a str or Path, got NoneType", (net(), None)),
    ("load", "no module", T, "model: expected a torch.nn.Module, got NoneType", (None, "never")),
    ("load", "no path", T, "path: expected a str or Path, got int", (net(), 3)),
    ("load", "no file", V, "path: expected a directory with model.safetensors or a safetensors file", (net(), "never")),
    ("load", "masks", V, "masks: expected one of stored, dense, infer, got 'all'", (net(), "never", "all")),
):
    case(thing, what, error, f"{thing}: {text}", getattr(sk, thing), *args)
for what, error, text, path, given in (
    ("no path", T, "path: expected a str or Path, got NoneType", None, {}),
    ("a folder", V, "path: expected a file, got the folder", Path(__file__).parent, {}),
    ("no model", T, "model: expected Module, got int", "never", {"model": 3}),
    ("no pruner", T, "pruner: expected BasePruner, got int", "never", {"pruner": 3}),
    ("no optimizer", T, "optimizer: expected Optimizer, got int", "never", {"optimizer": 3}),
    ("a reserved name", V, "rng: expected another name, got that of the random", "never", {"rng": 3}),
    ("a set", T, "seen: expected tensors, numbers, strings, bytes, None and dicts,", "never", {"seen": {1, 2}}),
    ("a sparse tensor", V, "x: expected a dense tensor with data, got", "never", {"x": BATCH.to_sparse()}),
    ("a meta tensor", V, "x: expected a dense tensor with data, got", "never", {"x": BATCH.to("meta")}),
):
    case("save_checkpoint", what, error, f"save_checkpoint: {text}", partial(sk.save_checkpoint, path, **given))
for what, error, text, path, given in (
    ("no path", T, "path: expected a str or Path, got int", 3, {}),
    ("no file", V, "path: expected a checkpoint, got 'never', which is no file", "never", {}),
    ("no model", T, "model: expected Module, got int", "never", {"model": 3}),
    ("no state", T, "epoch: expected an object with load_state_dict, got 3", "never", {"epoch": 3}),
):
    case("load_checkpoint", what, error, f"load_checkpoint: {text}", partial(sk.load_checkpoint, path, **given))
for what, error, text, arguments, options in (
    ("no module", T, "model: expected a torch.nn.Module, got int", (3, torch.ones(1)), {}),
    ("repeats", V, "repeats: expected an int >= 1, got 0", (net(), torch.ones(2, 4)), {"repeats": 0}),
    ("a bool for repeats", V, "repeats: expected an int >= 1, got True", (net(), torch.ones(2, 4)), {"repeats": True}),
):
    case("speed", what, error, f"speed: {text}", partial(sk.speed, *arguments, **options))
for thing, what, error, text, args in (
    ("inspect", "no model", T, "inspect: source: expected a torch.nn.Module or a path, got int", (3,)),
    ("inspect", "nothing masked", V, "inspect: source: expected masked layers, got none", (plain(),)),
    ("inspect", "a meta tensor", V, "inspect: source: expected tensors with data", (nn.Linear(2, 2, device="meta"),)),
    ("inspect", "no file", V, "load: path: expected a directory with model.safetensors or a safetensors", ("never",)),
    (
        "inspect",
        "no such layer",
        V,
        "inspect: layers: expected a glob that matches one of 0, 2, got 'fc'",
        (net(), "fc"),
    ),
    ("diff", "no masks", T, "diff: b: expected a Module, masks or a path, got NoneType", (net(), None)),
    ("diff", "no Mask", T, "diff: a: expected values of type Mask, got int", ({"0": 1}, net())),
    ("diff", "an empty dict", V, "diff: a: expected at least one mask, got none", ({}, net())),
    (
        "diff",
        "no layer in common",
        V,
        "diff: b: expected layers of a (fc), got 0, 2",
        ({"fc": sk.Mask.full((2, 2))}, net()),
    ),
    (
        "diff",
        "another shape",
        V,
        "diff: b['0']: expected shape (2, 2), got (6, 4)",
        ({"0": sk.Mask.full((2, 2))}, net()),
    ),
    ("export", "no model", T, "export: model: expected a torch.nn.Module, got int", (3, "a.pt2")),
    ("export", "no path", T, "export: path: expected a str or Path, got NoneType", (net(), None)),
    (
        "export",
        "an unknown end",
        V,
        "export: to: expected one of safetensors, torch-export, onnx, hub, compact, got",
        (net(), "a.b"),
    ),
    (
        "export",
        "a format",
        V,
        "export: to: expected one of safetensors, torch-export, onnx, hub, compact, got",
        (net(), "a", "pb"),
    ),
    ("export", "a folder", V, "export: path: expected a file for onnx, got the folder", (net(), ".", "onnx")),
    ("export", "no example", V, "export: example: expected inputs with two or more entries", (net(), "never/a.pt2")),
):
    case(thing, what, error, text, getattr(sk, thing), *args)


def export_of(example: Any) -> None:
    sk.export(net(), "never/a.onnx", example=example)


for what, got in (
    ("one entry", torch.ones(1, 4)),
    ("a scalar", torch.ones(())),
    ("a list with a text", [torch.ones(2, 4), "x"]),
    ("a number", 3),
    ("two lengths", [torch.ones(2, 4), torch.ones(3, 4)]),
):
    case("export", f"example: {what}", V, "export: example: expected inputs ", export_of, got)
for what, error, text, options in (
    ("no example", V, "example: expected inputs with two or more entries", {"to": "compact"}),
    ("no bool", T, "silence_batchnorm: expected a bool, got int", {"to": "compact", "silence_batchnorm": 1}),
    ("silent hub", V, "silence_batchnorm: expected False for hub, got True", {"to": "hub", "silence_batchnorm": True}),
):
    case("export", f"compact: {what}", error, f"export: {text}", partial(sk.export, net(), "never/small", **options))


for kind in (sk.MaskedSGD, sk.MaskedAdamW):
    for what, error, text, model in (
        ("no module", T, "expected a torch.nn.Module, got str", "net"),
        ("no masks", V, "expected masked layers, got none; call sparsify first", nn.Linear(2, 2)),
    ):
        case(kind.__name__, what, error, f"{kind.__name__}: model: {text}", partial(kind, [torch.ones(1)], model))


def enter(context: Any, model: Any) -> None:
    with context(model):
        pass


NO_MODULE = "prepared_weights: model: expected a torch.nn.Module, got int"
case("prepared_weights", "no module", T, NO_MODULE, enter, sk.prepared_weights, 3)
case(
    "captured",
    "no pruner",
    T,
    "captured: pruner: expected one that trains in one go, got Linear",
    sk.captured,
    nn.Linear(2, 2),
)
for what, error, text, model in (
    ("no module", T, "expected a torch.nn.Module, got NoneType", None),
    ("no masks", V, "expected masked Conv2d layers, got none; call sparsify first", nn.Linear(2, 2)),
):
    case("compacted_filters", what, error, f"compacted_filters: model: {text}", enter, sk.compacted_filters, model)
for what, error, text, model in (
    ("no module", T, "expected a torch.nn.Module, got NoneType", None),
    ("no masks", V, "expected masked layers, got none; call sparsify first", nn.Linear(2, 2)),
):
    case("cached_weights", what, error, f"cached_weights: model: {text}", enter, sk.cached_weights, model)
for what, error, text, arguments in (
    ("no masks", V, "model: expected masked layers, got nothing to prune; call sparsify first", {"model": plain()}),
    ("sparsity", V, f"sparsity: {RANGE} 1.0", {"sparsity": 1.0}),
    ("steps", V, "steps: expected an int >= 1, got 0", {"steps": 0}),
    ("every", T, "every: expected an int >= 1, got 1.5", {"every": 1.5}),
    ("projection", T, "projection: expected a Projection, got 'filter'", {"projection": "filter"}),
):
    options = {"model": net(), "sparsity": 0.5, "steps": 2} | arguments
    case("Gradual", what, error, f"Gradual: {text}", partial(sk.Gradual, **options))
COUPLED = sk.CoupledFilters((FilterGroup("0", (("0", ((0,), (1,))),)),), (("0", (6, 4)), ("2", (3, 6))))
for thing, what, error, text, call in (
    ("compact", "no module", T, "model: expected a torch.nn.Module, got int", partial(sk.compact, 3, BATCH)),
    (
        "compact",
        "no tensor",
        T,
        "example_inputs: expected a tensor or a sequence of tensors, got str",
        partial(sk.compact, net(), "x"),
    ),
    (
        "compact",
        "one entry",
        V,
        "example_inputs: expected inputs with 2 or more entries in dim 0, got shapes (1, 4)",
        partial(sk.compact, net(), BATCH[:1]),
    ),
    (
        "compact",
        "a wrong shape",
        V,
        "example_inputs: expected inputs that the model takes, got shapes (5, 3)",
        partial(sk.compact, net(), BATCH[:, :3]),
    ),
    (
        "compact",
        "no bool",
        T,
        "silence_batchnorm: expected a bool, got int",
        partial(sk.compact, net(), BATCH, silence_batchnorm=1),
    ),
    (
        "coupled_filters",
        "no module",
        T,
        "model: expected a torch.nn.Module, got",
        partial(sk.coupled_filters, 3, BATCH),
    ),
    (
        "coupled_filters",
        "no masks",
        V,
        "model: expected masked layers, got none",
        partial(sk.coupled_filters, plain(), BATCH),
    ),
    (
        "coupled_filters",
        "no tensors",
        V,
        "example_inputs: expected inputs with 2",
        partial(sk.coupled_filters, net(), ()),
    ),
    (
        "CoupledFilters",
        "other layers",
        V,
        "scores: expected the layers of the",
        partial(sk.Projection(COUPLED), WEIGHT, 0.5),
    ),
    (
        "silence_batchnorm_",
        "no module",
        T,
        "model: expected a torch.nn.Module",
        partial(sk.silence_batchnorm_, 3, BATCH),
    ),
    ("silence_batchnorm_", "no tensor", T, "example_inputs: expected a", partial(sk.silence_batchnorm_, NORMED, None)),
    ("save_compact", "no module", T, "model: expected a torch.nn.Module, got int", partial(sk.save_compact, 3, "x")),
    (
        "save_compact",
        "masked",
        V,
        "model: expected plain layers, got masked ones",
        partial(sk.save_compact, net(), "x"),
    ),
    ("save_compact", "no path", T, "path: expected a str or Path, got int", partial(sk.save_compact, plain(), 3)),
    ("load_compact", "no module", T, "model: expected a torch.nn.Module, got int", partial(sk.load_compact, 3, "x")),
    ("load_compact", "no file", V, "path: expected a directory with", partial(sk.load_compact, plain, "nowhere")),
):
    case(thing, what, error, f"{thing}: {text}", call)
for what, error, text, args in (
    ("no masks", T, "masks: expected masks by layer name, got int", (3, 0)),
    ("no Mask", T, "masks: expected masks by layer name, got dict", ({"0": 1}, 0)),
    ("a negative seed", V, "seed: expected an int in [0, 2**32), got -1", ({"0": MASK}, -1)),
    ("a seed of 33 bits", V, "seed: expected an int in [0, 2**32), got 4294967296", ({"0": MASK}, 2**32)),
    ("a fraction for a seed", T, "seed: expected an int in [0, 2**32), got 0.5", ({"0": MASK}, 0.5)),
):
    case("shuffled", what, error, f"shuffled: {text}", sk.shuffled, *args)
    case("random_like", what, error, f"random_like: {text}", sk.random_like, *args)
for thing, what, error, text, args in (
    (
        "shuffled",
        "units",
        V,
        "units: expected one of unstructured, filter, channel, got 'row'",
        ({"0": MASK}, 0, "row"),
    ),
    ("random_like", "global", V, "allocation: expected numbers for layers, got 'global'", ({"0": MASK}, 0, "global")),
    ("random_like", "nothing kept", V, "masks: expected at least one kept weight", ({"0": ~MASK}, 0, "erk")),
    ("inverted_choice", "no masks", T, "masks: expected masks by layer name, got int", (3, {})),
    ("inverted_choice", "no weight", V, "weights['0']: expected finite values of (6, 4), got none", ({"0": MASK}, {})),
    ("inverted_choice", "NaN", V, "weights['0']: expected finite", ({"0": MASK}, {"0": torch.full((6, 4), NAN)})),
    ("effective_masks", "no module", T, "model: expected a torch.nn.Module, got int", (3, BATCH)),
    ("effective_masks", "no masks", V, "model: expected masked layers, got none; call sparsify", (plain(), BATCH)),
    ("effective_masks", "no inputs", T, "example_inputs: expected a tensor, or several in a list", (net(), 3)),
):
    case(thing, what, error, f"{thing}: {text}", getattr(sk, thing), *args)
case("Metrics", "a NaN on the device", V, next(iter(PROBLEM)), sk.Metrics({}, PROBLEM).read)

# These take any Module, or nothing at all.
TOTAL = {"dense_gradient", "dense_state_dict", "diagnose", "frozen_batchnorm", "masked_layers", "masks", "summary"}
# A protocol, a warning and results: nobody calls them.
NOT_CALLED = {
    "Pruner",
    "CollapseWarning",
    "SparsifyReport",
    "SpeedReport",
    "Inspection",
    "MaskDifference",
    "ExportReport",
    "CompactReport",
}


@pytest.mark.parametrize(
    "error, text, call", [pytest.param(*rest, id=f"{thing}-{what}") for thing, what, *rest in CASES]
)
def test_bad_input(error: type[Exception], text: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error and message.startswith(text), message
    # The setter of a layer's mask is the one that has no argument to name.
    assert re.match(r"[A-Za-z_]\w*: .+: expected .+, got .+", message) or message.startswith("mask: expected ")


def test_every_public_name_is_in_the_table() -> None:
    public, tested = {name for name in sk.__all__ if callable(getattr(sk, name))}, {thing for thing, *_ in CASES}
    assert public - tested == (TOTAL | NOT_CALLED) & public
    assert tested <= public and not tested & (TOTAL | NOT_CALLED)


@pytest.mark.parametrize("name", sorted(TOTAL))
def test_functions_that_take_any_module(name: str) -> None:
    function = getattr(sk, name)
    for model in (plain(), net(), nn.ReLU()):
        result = function(model) if inspect.signature(function).parameters else function()
        if hasattr(result, "__enter__"):
            with result:
                pass
