# SPDX-License-Identifier: Apache-2.0
"""What every pruner promises, asked of all of them alike."""

from __future__ import annotations

import copy
import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from states import equal
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekit as sk
from sparsekit.allocation import Global, kept_count
from sparsekit.projection import Projection
from sparsekit.pruners import (
    DPF,
    GMP,
    IMP,
    OMP,
    SET,
    SNIP,
    STR,
    BiP,
    BiPOptions,
    CollapseWarning,
    CriterionPruning,
    GraSP,
    Hydra,
    IMPOptions,
    Iterative,
    Movement,
    OneShotMagnitude,
    Powerprop,
    ProbMask,
    ProbMaskOptions,
    Pruner,
    RandomPruning,
    RigL,
    SpODE,
    SynFlow,
    WoodFisher,
)
from sparsekit.pruners.spode_options import SpODEOptions
from sparsekit.schedules import Linear

SPARSITY = 0.45
LOCAL = Projection(allocation="uniform")
Batch = tuple[Tensor, Tensor]


def build(seed: int = 0) -> nn.Sequential:
    """Convolution, norm, dropout and two linear layers with one weight, which is pruned once."""
    torch.manual_seed(seed)
    body = [
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(36, 8),
        nn.ReLU(),
    ]
    model = nn.Sequential(*body, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    model[9].weight = model[7].weight
    sk.sparsify(model)
    return model


TWINS = ("7", "9")
INITIAL = build(seed=5).state_dict()


class Stream(Iterator[Batch]):
    """Endless batches that depend on their number alone; counts how many were drawn."""

    def __init__(self, start: int = 0) -> None:
        self.drawn = start

    def __next__(self) -> Batch:
        generator = torch.Generator().manual_seed(100 + self.drawn)
        self.drawn += 1
        return torch.randn(6, 1, 5, 5, generator=generator), torch.randint(3, (6,), generator=generator)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    torch.manual_seed(int(batch[1].sum()))  # dropout then depends on the batch alone
    return F.cross_entropy(model(batch[0]), batch[1])


def seeded_outside(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def sgd(parameters: Any, lr: float = 0.05) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-3)


def still(parameters: Any) -> torch.optim.SGD:
    return sgd(parameters, lr=1e-12)


def imp(**arguments: Any) -> Callable[..., Any]:
    def make(
        model: nn.Module, objective: Any = loss, sparsity: float = SPARSITY, optimizer: Any = sgd, **more: Any
    ) -> IMP:
        return IMP(model, objective, sparsity, optimizer=optimizer, **arguments, **more)

    return make


def omp(**arguments: Any) -> Callable[..., Any]:
    def make(
        model: nn.Module, objective: Any = loss, sparsity: float = SPARSITY, optimizer: Any = sgd, **more: Any
    ) -> OMP:
        return OMP(model, objective, sparsity, optimizer=optimizer, steps=4, **arguments, **more)

    return make


def one_shot(**arguments: Any) -> Callable[..., Any]:
    def make(
        model: nn.Module, objective: Any = loss, sparsity: float = SPARSITY, optimizer: Any = sgd, **more: Any
    ) -> OneShotMagnitude:
        return OneShotMagnitude(model, objective, sparsity, optimizer=optimizer, **arguments, **more)

    return make


def ramped(kind: Any, **arguments: Any) -> Callable[..., Any]:
    def make(
        model: nn.Module, objective: Any = loss, sparsity: float = SPARSITY, optimizer: Any = sgd, **more: Any
    ) -> Any:
        return kind(model, objective, sparsity, optimizer=optimizer, **(arguments | more))

    return make


def drawn(**arguments: Any) -> Callable[..., Any]:
    def make(
        model: nn.Module, objective: Any = loss, sparsity: float = SPARSITY, optimizer: Any = sgd, **more: Any
    ) -> RandomPruning:
        return RandomPruning(model, objective, sparsity, optimizer=optimizer, steps=4, **arguments, **more)

    return make


def bip(**arguments: Any) -> Callable[..., Any]:
    def make(
        model: nn.Module, objective: Any = loss, sparsity: float = SPARSITY, optimizer: Any = sgd, **more: Any
    ) -> BiP:
        upper_lr = 1e-12 if optimizer is still else 0.1
        lower = optimizer(model.parameters())
        return BiP(model, objective, sparsity, steps=5, lower=lower, upper_lr=upper_lr, **arguments, **more)

    return make


def bip_from_masks(model: nn.Module, *arguments: Any, **more: Any) -> BiP:
    """BiP from random masks."""
    sparsity = more.get("sparsity", SPARSITY)
    RandomPruning(model, loss, sparsity, seed=1, projection=more.get("projection", Projection()))
    return bip(options=BiPOptions(start="masks", upper_every=2))(model, *arguments, **more)


def spode(**arguments: Any) -> Callable[..., Any]:
    def make(
        model: nn.Module, objective: Any = loss, sparsity: float = SPARSITY, optimizer: Any = None, **more: Any
    ) -> SpODE:
        radius = 1.0 if optimizer is still else 1.3
        return SpODE(model, objective, sparsity, steps=5, radius=radius, recalibrate=2, **arguments, **more)

    return make


def hydra(**arguments: Any) -> Callable[..., Any]:
    def make(
        model: nn.Module, objective: Any = loss, sparsity: float = SPARSITY, optimizer: Any = sgd, **more: Any
    ) -> Hydra:
        score_lr = 1e-12 if optimizer is still else 0.5
        chosen = {"projection": Projection(), "optimizer": optimizer, "score_lr": score_lr, **arguments, **more}
        return Hydra(model, objective, sparsity, **{"steps": 4, **chosen})

    return make


def iterative(inner: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
    def make(
        model: nn.Module, objective: Any = loss, sparsity: float = SPARSITY, optimizer: Any = sgd, **more: Any
    ) -> Iterative:
        own = {"rounds": 3, "steps_per_round": 2} | arguments
        return Iterative(
            model, objective, sparsity, pruner=lambda m, s: inner(m, objective, s), optimizer=optimizer, **own, **more
        )

    return make


def slow(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, 0.01)


def short_spode(model: nn.Module, objective: Any, sparsity: float) -> SpODE:
    return SpODE(model, objective, sparsity, steps=2, radius=1.3, recalibrate=2)


def recalibrated(model: nn.Module, objective: Any, sparsity: float) -> SpODE:
    """Whose one step needs several batches."""
    return SpODE(model, objective, sparsity, steps=1, recalibrate=3, options=SpODEOptions(score_momentum=0.3))


MAKERS: dict[str, Callable[..., Any]] = {
    "bip": bip(),
    "bip-value": bip(options=BiPOptions(key="value")),
    "bip-1pass": bip(options=BiPOptions(passes=1, scores="tied")),
    "bip-lower2": bip(options=BiPOptions(lower_steps=2, upper_batchnorm="eval")),
    "bip-released": bip(options=BiPOptions(variant="released")),
    "bip-upper3": bip(options=BiPOptions(upper_every=3)),
    "bip-batches2": bip(options=BiPOptions(upper_batches=2, lower_steps=2)),
    "bip-upper2-1pass": bip(options=BiPOptions(passes=1, scores="tied", upper_every=2)),
    "bip-masks": bip_from_masks,
    "bip-ramp-upper2": bip(schedule=Linear(0.1, SPARSITY, 0, 4), options=BiPOptions(upper_every=2)),
    "bip-ramp": bip(schedule=Linear(0.1, SPARSITY, 0, 4)),
    "spode": spode(),
    "spode-l1-gau": spode(energy="l1", polariser="gau", options=SpODEOptions(score_momentum=0.5)),
    "spode-hess": spode(polariser="qtm", options=SpODEOptions(step_schedule="hess", radius_schedule="hess")),
    "spode-bare": spode(options=SpODEOptions(reproject=False, batchnorm="frozen")),
    "spode-search": spode(
        options=SpODEOptions(radius_search="auto", mask_option="mask", recalibration="released_reset")
    ),
    "imp-init": imp(steps_per_round=2, rewind="init", rewind_state=INITIAL),
    "imp-init-dense": imp(steps_per_round=2, rewind="init", dense_steps=2),
    "imp-early": imp(steps_per_round=2, rewind="early", dense_steps=3, options=IMPOptions(rewind_step=1)),
    "imp-lr": imp(steps_per_round=2, rewind="lr"),
    "imp-none": imp(steps_per_round=2, rewind="none"),
    "imp-budget": imp(budget=7),
    "omp": omp(rewind_state=INITIAL),
    "omp-dense": omp(dense_steps=2),
    "oneshot": one_shot(steps=4),
    "oneshot-recalibrated": one_shot(steps=2, recalibrate=2),
    "gmp": ramped(GMP, steps=6, every=2),
    "gmp-linear": ramped(GMP, steps=5, ramp=1.0, schedule="linear", curve="constant"),
    "dpf": ramped(DPF, steps=7, every=2),
    "hydra": hydra(finetune_steps=2),
    "hydra-layerwise": hydra(projection=LOCAL, start="raw", finetune_steps=1),
    "hydra-alone": hydra(optimizer=None),
    "movement": ramped(Movement, steps=6, projection=Projection()),
    "movement-layerwise": ramped(Movement, steps=5, warm_up=0.4, schedule="linear", score_curve="linear"),
    "probmask": ramped(ProbMask, steps=5, finetune_steps=2, score_lr=0.2),
    "probmask-init": ramped(
        ProbMask, steps=6, score_lr=0.2, rewind_state=INITIAL, options=ProbMaskOptions(samples=1, seed=4)
    ),
    "woodfisher": ramped(WoodFisher, steps=6, every=2, fisher_batches=3, block=20),
    "woodfisher-oneshot": ramped(WoodFisher, steps=3, ramp=0, fisher_batches=2, update="joint"),
    "str": ramped(STR, steps=4, first=-3.0, rewind_state=INITIAL),
    "str-tail": ramped(STR, steps=3, first=-40.0, scope="global", finetune_steps=2),
    "str-climb": ramped(STR, steps=5, every=2, ramp=0.7, finetune_steps=2),
    "powerprop": ramped(Powerprop, steps=4),
    "powerprop-tail": ramped(Powerprop, steps=3, alpha=3.0, finetune_steps=2, rewind_state=INITIAL),
    "powerprop-climb": ramped(Powerprop, steps=5, every=2, ramp=0.7, finetune_steps=2, alpha=1.5),
    "rigl": ramped(RigL, steps=7, every=2),
    "rigl-init": ramped(RigL, steps=6, every=3, until=1.0, rewind_state=INITIAL, decay="constant"),
    "set": ramped(SET, steps=7, every=2),
    "iter-magnitude": iterative(OneShotMagnitude, final_steps=3, final_optimizer=slow),
    "iter-spode": iterative(short_spode, final_steps=2),
    "iter-spode-recalibrated": iterative(recalibrated, steps_per_round=1, curve="linear"),
    "random": drawn(rewind_state=INITIAL),
    "random-global": drawn(projection=Projection(), seed=3),
    "snip": ramped(SNIP, steps=3, batches=2, rounds=2, rewind_state=INITIAL),
    "grasp": ramped(GraSP, steps=3),
    "synflow": ramped(SynFlow, steps=3, rounds=5),
    "synflow-released": ramped(SynFlow, steps=2, input_shape=(1, 5, 5), batchnorm="train", double=False),
    "magnitude-rounds": ramped(CriterionPruning, steps=2, criterion="magnitude", rounds=3, schedule="linear"),
}
EVERY = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def copied(state: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def counters(pruner: Any) -> tuple[int, int, int]:
    return pruner.cost.steps, pruner.cost.passes, pruner.cost.samples


def planned(pruner: Any) -> int:
    """Weights that must be kept at this moment."""
    total = pruner.masks.numel
    if isinstance(pruner, BiP):
        step = pruner.cost.steps
        every = pruner.options.upper_every
        sparsity = SPARSITY if pruner.done else pruner.schedule(step // every * every)
        return (
            total - math.floor(sparsity * total)
            if pruner.options.variant == "released"
            else kept_count(total, sparsity)
        )
    if isinstance(pruner, SpODE):
        return kept_count(total, SPARSITY if pruner.done else round(1 - pruner.density, 12))
    if isinstance(pruner, (STR, Powerprop)) and (isinstance(pruner, STR) or pruner.ramp is None):
        return kept_count(total, SPARSITY) if pruner.cost.steps >= pruner.ends[0] else total
    if isinstance(pruner, (GMP, DPF, WoodFisher, Powerprop)):
        return kept_count(total, pruner.ramp.latest(pruner.cost.steps - 1) if pruner.cost.steps else 0.0)
    if isinstance(pruner, Hydra):
        return budgeted(pruner, SPARSITY)
    if isinstance(pruner, Movement):
        return budgeted(pruner, pruner.ramp.latest(pruner.cost.steps - 1)) if pruner.cost.steps else total
    if isinstance(pruner, ProbMask):
        return total if pruner.learning else kept_count(total, SPARSITY)
    if isinstance(pruner, Iterative):
        inner: Any = pruner.inner
        return kept_count(total, pruner.targets[pruner.round - 1] if inner.done else round(1 - inner.density, 12))
    if isinstance(pruner, IMP):
        return kept_count(total, pruner.ladder[pruner.round - 1]) if pruner.round else total
    return kept_count(total, SPARSITY) if pruner.round else total


def budgeted(pruner: Any, sparsity: float) -> int:
    """Weights kept at a sparsity, over all layers or layer by layer."""
    sizes = [mask.numel for mask in pruner.masks.values()]
    local = not isinstance(pruner.projection.allocation, Global)
    return sum(kept_count(n, sparsity) for n in (sizes if local else [sum(sizes)]))


def in_sync(pruner: Any) -> bool:
    """Do the layers that share a weight have one mask, and the live layers the masks of the snapshot?"""
    model, masks = pruner.model, pruner.masks
    one, two = (model[int(name)] for name in TWINS)
    return one.weight is two.weight and one.mask == two.mask == masks[TWINS[0]] and TWINS[1] not in masks


@EVERY
def test_the_protocol_and_what_holds_after_every_step(make: Callable[..., Any]) -> None:
    model = build()
    pruner, batches = make(model), Stream()
    assert isinstance(pruner, Pruner) and pruner.model is model and not pruner.done
    assert pruner.masks.count() == planned(pruner) and in_sync(pruner)
    for step in range(1, 100):
        training, before, was = [m.training for m in model.modules()], counters(pruner), pruner.masks
        metrics = pruner.step(batches)
        masks = pruner.masks
        assert masks.count() == planned(pruner) and in_sync(pruner)
        assert masks.numel == sum(layer.weight.numel() for layer in sk.masked_layers(model).values())
        assert [m.training for m in model.modules()] == training
        for name, value in metrics.items():
            assert isinstance(name, str) and isinstance(value, Tensor)
            assert value.ndim == 0 and not value.requires_grad and value.device == model[0].weight.device
        numbers = metrics.read()
        assert all(isinstance(value, float) and math.isfinite(value) for value in numbers.values())
        flips = sum((was[name] ^ masks[name]).count() for name in masks)
        regrown = sum((masks[name] & ~was[name]).count() for name in masks)
        assert (numbers["flips"], numbers["regrown"]) == (flips, regrown)
        assert pruner.cost.steps == step and pruner.cost.passes >= before[1] and pruner.cost.samples >= before[2]
        if pruner.done:
            break
    alone = pruner.rounds if isinstance(pruner, SynFlow) else 0  # passes of one sample, without data
    assert pruner.done and pruner.cost.samples == 6 * (pruner.cost.passes - alone) + alone > 0
    assert pruner.cost.selection_seconds > 0 and pruner.steps == pruner.cost.steps
    state, drawn = copied(model.state_dict()), batches.drawn
    with pytest.raises(ValueError, match=rf"^{type(pruner).__name__}: step: expected a run that is not done, got step"):
        pruner.step(batches)
    assert equal(copied(model.state_dict()), state) and batches.drawn == drawn and pruner.cost.steps == step
    assert torch.equal(sk.finalize(model)[7].weight, model[9].weight)


@EVERY
def test_masks_are_snapshots(make: Callable[..., Any]) -> None:
    pruner = make(build())
    masks = pruner.masks
    before = masks.hash()
    pruner.fit([next(Stream(i)) for i in range(3)])
    assert masks.hash() == before


@EVERY
def test_a_run_is_a_function_of_its_seed(make: Callable[..., Any]) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        model = build()
        pruner, batches = make(model, seeded_outside), Stream()
        torch.manual_seed(seed)
        while not pruner.done:
            pruner.step(batches)
        return copied(model.state_dict())

    first, second, other = run(3), run(3), run(4)
    assert equal(first, second)
    assert not equal(first, other)  # dropout: the seed does enter


def through_a_file(state: Any) -> Any:
    """As a user stores it: torch.save, then a load that unpickles nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@EVERY
def test_resume_from_any_step_is_bit_equal(make: Callable[..., Any]) -> None:
    model = build()
    pruner, batches, cuts = make(model), Stream(), []
    while True:
        cuts.append(copy.deepcopy((batches.drawn, model.state_dict(), pruner.state_dict())))
        if pruner.done:
            break
        pruner.step(batches)
    final, masks = copied(model.state_dict()), pruner.masks
    for drawn, weights, state in cuts:
        again = build(seed=9)
        resumed, rest = make(again), Stream(drawn)
        again.load_state_dict(weights)
        stored = through_a_file(state)
        resumed.load_state_dict(stored)
        assert counters(resumed) == (state["cost"]["steps"], state["cost"]["passes"], state["cost"]["samples"])
        assert resumed.cost.selection_seconds == state["cost"]["selection_seconds"]
        while not resumed.done:
            resumed.step(rest)
        assert equal(copied(again.state_dict()), final) and resumed.masks == masks
        assert rest.drawn == batches.drawn and counters(resumed) == counters(pruner)
        assert in_sync(resumed)


@EVERY
def test_a_state_stays_what_it_was_and_serves_twice(make: Callable[..., Any]) -> None:
    model = build()
    pruner, batches = make(model), Stream()
    for _ in range(2):
        pruner.step(batches)
    drawn, weights, state = copy.deepcopy((batches.drawn, model.state_dict(), pruner.state_dict()))
    finals = []
    for _ in range(2):
        again = build(seed=9)
        resumed, rest = make(again), Stream(drawn)
        again.load_state_dict(weights)
        resumed.load_state_dict(state)
        while not resumed.done:
            resumed.step(rest)
        finals.append(copied(again.state_dict()))
    assert equal(*finals)


@EVERY
def test_fit_goes_through_the_loader_as_often_as_needed(make: Callable[..., Any]) -> None:
    model, told = build(), []
    pruner = make(model)
    loader = [next(Stream(i)) for i in range(2)]
    masks = pruner.fit(loader, told.append)
    assert pruner.done and masks == pruner.masks and masks.count() == planned(pruner)
    assert len(told) == pruner.cost.steps == pruner.steps and all(isinstance(m, sk.Metrics) for m in told)
    state = copied(model.state_dict())
    assert pruner.fit(loader) == masks and equal(copied(model.state_dict()), state)  # nothing is left to do

    twin = build()
    by_hand, batches = make(twin), itertools.cycle(loader)
    while not by_hand.done:
        by_hand.step(batches)
    assert equal(copied(twin.state_dict()), state)


@EVERY
def test_fit_refuses_a_loader_that_runs_dry(make: Callable[..., Any]) -> None:
    for loader in ([], iter([next(Stream())])):
        pruner = make(build())
        expected = r": loader: expected batches at each pass, got none \(is it a used-up iterator\?\)"
        with pytest.raises(ValueError, match=type(pruner).__name__ + expected):
            pruner.fit(loader)


OTHERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    **{
        f"{a} into {b}": (MAKERS[a], MAKERS[b])
        for a, b in itertools.permutations(("bip", "spode", "imp-lr", "oneshot"), 2)
    },
    **{
        f"sparsity of {n}": (lambda model, n=n: MAKERS[n](model, sparsity=0.6), MAKERS[n])
        for n in MAKERS
        if "ramp" not in n
    },
    **{
        f"projection of {n}": (lambda model, n=n: MAKERS[n](model, projection=LOCAL), MAKERS[n])
        for n in (
            "bip",
            "spode",
            "omp",
            "gmp",
            "random",
            "hydra",
            "movement",
            "probmask",
            "woodfisher",
            "str",
            "powerprop",
            "rigl",
            "set",
        )
    },
    "options of bip": (MAKERS["bip-1pass"], MAKERS["bip"]),
    "options of bip, tied": (MAKERS["bip"], MAKERS["bip-released"]),
    "upper steps of bip": (MAKERS["bip-upper3"], MAKERS["bip"]),
    "upper batches of bip": (bip(options=BiPOptions(upper_batches=2)), MAKERS["bip"]),
    "curve of imp": (imp(steps_per_round=2, rewind="lr", curve="linear"), imp(steps_per_round=2, rewind="lr")),
    "factor of imp": (
        imp(steps_per_round=2, rewind="none", options=IMPOptions(finetune_factor=0.1)),
        imp(steps_per_round=2, rewind="none"),
    ),
    "curve of omp": (omp(rewind_state=INITIAL, curve="constant"), MAKERS["omp"]),
    "curve of oneshot": (one_shot(steps=4, curve=lambda t: 1.0), one_shot(steps=4, curve=lambda t: 1.0 - t)),
    "curve of gmp": (ramped(GMP, steps=6, every=2, curve="step"), MAKERS["gmp"]),
    "curve of dpf": (ramped(DPF, steps=7, every=2, curve="constant"), MAKERS["dpf"]),
    "curve of random": (drawn(rewind_state=INITIAL, curve="linear"), MAKERS["random"]),
    "curve of bip": (bip(upper_curve=lambda t: 1.0), bip(upper_curve=lambda t: 0.5)),
    "start of bip": (bip(options=BiPOptions(upper_every=2)), MAKERS["bip-masks"]),
    "gamma of bip": (bip(gamma=2.0), MAKERS["bip"]),
    "polariser of spode": (MAKERS["spode-l1-gau"], MAKERS["spode"]),
    "options of spode": (MAKERS["spode-bare"], MAKERS["spode"]),
    "rewind of imp": (MAKERS["imp-init-dense"], MAKERS["imp-early"]),
    "steps of imp": (imp(steps_per_round=3, rewind="lr"), MAKERS["imp-lr"]),
    "steps of oneshot": (one_shot(steps=5), MAKERS["oneshot"]),
    "gmp into dpf": (ramped(GMP, steps=7, every=2), MAKERS["dpf"]),
    "period of dpf": (ramped(DPF, steps=7, every=3), MAKERS["dpf"]),
    "ramp of gmp": (ramped(GMP, steps=6, every=2, ramp=0.9), MAKERS["gmp"]),
    "schedule of gmp": (ramped(GMP, steps=6, every=2, schedule="linear"), MAKERS["gmp"]),
    "hydra into movement": (MAKERS["hydra"], MAKERS["movement"]),
    "start of hydra": (hydra(finetune_steps=2, start="raw"), MAKERS["hydra"]),
    "rate of hydra's scores": (hydra(finetune_steps=2, score_lr=0.4), MAKERS["hydra"]),
    "fine-tuning of hydra": (hydra(finetune_steps=3), MAKERS["hydra"]),
    "warm-up of movement": (
        ramped(Movement, steps=6, warm_up=0.4, projection=Projection()),
        MAKERS["movement"],
    ),
    "seed of probmask": (
        ramped(ProbMask, steps=6, score_lr=0.2, rewind_state=INITIAL, options=ProbMaskOptions(samples=1, seed=5)),
        MAKERS["probmask-init"],
    ),
    "rate of probmask": (ramped(ProbMask, steps=5, finetune_steps=2, score_lr=0.3), MAKERS["probmask"]),
    "batches of woodfisher": (
        ramped(WoodFisher, steps=6, every=2, fisher_batches=2, block=20),
        MAKERS["woodfisher"],
    ),
    "update of woodfisher": (
        ramped(WoodFisher, steps=3, ramp=0, fisher_batches=2, update="sum"),
        MAKERS["woodfisher-oneshot"],
    ),
    "gmp into woodfisher": (ramped(GMP, steps=6, every=2, ramp=0.4), MAKERS["woodfisher"]),
    "first of str": (ramped(STR, steps=4, first=-2.0, rewind_state=INITIAL), MAKERS["str"]),
    "ramp of str": (ramped(STR, steps=5, every=2, finetune_steps=2), MAKERS["str-climb"]),
    "tail of str": (ramped(STR, steps=3, first=-40.0, scope="global", finetune_steps=3), MAKERS["str-tail"]),
    "alpha of powerprop": (ramped(Powerprop, steps=4, alpha=3.0), MAKERS["powerprop"]),
    "ramp of powerprop": (ramped(Powerprop, steps=5, finetune_steps=2, alpha=1.5), MAKERS["powerprop-climb"]),
    "rigl into set": (MAKERS["rigl"], MAKERS["set"]),
    "period of rigl": (ramped(RigL, steps=7, every=3), MAKERS["rigl"]),
    "end of set": (ramped(SET, steps=7, every=2, until=0.5), MAKERS["set"]),
    "seed of set": (ramped(SET, steps=7, every=2, seed=1), MAKERS["set"]),
    "rounds of iterative": (iterative(OneShotMagnitude, rounds=2), iterative(OneShotMagnitude)),
    "final steps of iterative": (MAKERS["iter-magnitude"], iterative(OneShotMagnitude)),
    "pruner of iterative": (iterative(OneShotMagnitude), iterative(short_spode)),
    "steps of the pruner of iterative": (MAKERS["iter-spode"], iterative(spode(), final_steps=2)),
    "seed of random": (drawn(rewind_state=INITIAL, seed=1), MAKERS["random"]),
}


@pytest.mark.parametrize("source, target", OTHERS.values(), ids=OTHERS)
def test_states_of_other_runs_are_refused(source: Callable[..., Any], target: Callable[..., Any]) -> None:
    donor = source(build(seed=7))
    donor.step(Stream())
    pruner = target(build())
    before, own = copied(pruner.model.state_dict()), copy.deepcopy(pruner.state_dict())
    with pytest.raises(ValueError, match=rf"^{type(pruner).__name__}: load_state_dict: expected .*, got "):
        pruner.load_state_dict(donor.state_dict())
    assert equal(copied(pruner.model.state_dict()), before)
    pruner.load_state_dict(own)  # still the run that it was
    assert pruner.fit([next(Stream(i)) for i in range(3)]) == target(build()).fit([next(Stream(i)) for i in range(3)])


@EVERY
def test_a_step_without_its_batches_changes_nothing_and_can_be_repeated(make: Callable[..., Any]) -> None:
    model, twin = build(), build()
    pruner, other, batches, same = make(model), make(twin), Stream(), Stream()
    while not pruner.done:
        start = batches.drawn
        other.step(same)
        for have in range(same.drawn - start):
            before, counted = copied(model.state_dict()), counters(pruner)
            with pytest.raises(ValueError, match=r": batches: expected another batch at step \d+, got none"):
                pruner.step(itertools.islice(Stream(start), have))
            assert equal(copied(model.state_dict()), before) and counters(pruner) == counted
        pruner.step(batches)
    assert equal(copied(model.state_dict()), copied(twin.state_dict())) and pruner.masks == other.masks


@EVERY
def test_errors_of_the_loader_come_through(make: Callable[..., Any]) -> None:
    def broken() -> Iterator[Batch]:
        raise TypeError("not iterable: something inside of the data set")
        yield

    with pytest.raises(TypeError, match="something inside of the data set"):
        make(build()).fit(broken())


# Collapse

SINGLE = ["bip", "bip-1pass", "spode", "imp-lr", "imp-init-dense", "imp-budget", "omp-dense", "oneshot", "gmp", "dpf"]
SINGLE += ["hydra-raw"]
MAKERS_OF_SINGLE = MAKERS | {"hydra-raw": hydra(start="raw", finetune_steps=2)}
SINGLE += ["str-climb", "powerprop", "powerprop-climb"]


def shrunken() -> nn.Sequential:
    model = build()
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    return model


@pytest.mark.parametrize("name", SINGLE)
def test_a_layer_without_weights_is_told_once_at_the_end(name: str) -> None:
    pruner, batches = MAKERS_OF_SINGLE[name](shrunken(), sparsity=0.6, optimizer=still), Stream()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        while pruner.cost.steps < pruner.steps - 1:
            pruner.step(batches)
        assert not caught
        pruner.step(batches)
    assert pruner.masks["0"].count() == 0
    assert [(w.category, w.filename) for w in caught] == [(CollapseWarning, __file__)]
    kind = type(pruner).__name__
    assert str(caught[0].message) == f"{kind}: layer `0` keeps 0 of 36 weights; set min_keep in the allocation"


@pytest.mark.parametrize("name", SINGLE)
def test_min_keep_prevents_it(name: str) -> None:
    model = shrunken()
    pruner = MAKERS_OF_SINGLE[name](
        model, sparsity=0.6, optimizer=still, projection=Projection(allocation=Global(min_keep=2))
    )
    masks = pruner.fit([next(Stream())])  # a warning would be an error here
    assert masks["0"].count() == 2 and masks.count() == kept_count(masks.numel, 0.6)
