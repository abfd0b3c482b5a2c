# SPDX-License-Identifier: Apache-2.0
"""Captured BiP: the numbers of the eager run, on a GPU by CUDA graphs, elsewhere by an imitation of them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import replay
import torch
from test_bip import loss, small_net, stream
from torch import nn

import sparsekit as sk
from sparsekit.pruners import base, capture
from sparsekit.pruners.bip import BiP
from sparsekit.pruners.bip_options import BiPOptions

STEPS = 12


def build(device: str = "cpu", fused: bool = True, **arguments: Any) -> BiP:
    model = small_net().to(device)
    lr: Any = torch.tensor(0.05, device=device) if fused else 0.05
    lower = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3, fused=fused)
    return BiP(model, loss, 0.8, steps=STEPS, lower=lower, **arguments)


def batches(device: str = "cpu"):
    return (tuple(t.to(device) for t in batch) for batch in stream())


def tensors(pruner: Any) -> dict[str, torch.Tensor]:
    own = {f"score {n}": s.detach() for n, s in pruner.scores.items()}
    return {**own, **pruner.model.state_dict()}


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> list[replay.Graphs]:
    """CPU tensors count as a device on which nobody looks at flags, with graphs that are imitated."""
    made: list[replay.Graphs] = []

    def graphs(device: torch.device) -> replay.Graphs:
        made.append(replay.Graphs(device))
        return made[-1]

    def check(self: Any, flag: torch.Tensor, message: str) -> None:
        earlier = self._problems.get(message)
        self._problems[message] = flag if earlier is None else earlier | flag

    monkeypatch.setattr(capture, "CudaGraphs", graphs)
    monkeypatch.setattr(capture.Captured, "_device", lambda self, pruner: torch.device("cuda"))
    monkeypatch.setattr(base.BasePruner, "_check", check)
    return made


@pytest.mark.parametrize(
    ("arguments", "graphs"),
    [
        ({}, 3),
        ({"upper_curve": "constant"}, 1),
        ({"upper_curve": "constant", "schedule": lambda step: 0.4 if step < 8 else 0.8}, 1),
        ({"options": BiPOptions(passes=1), "lower_curve": "linear"}, 3),
        ({"options": BiPOptions(lower_steps=2), "upper_curve": "constant"}, 1),
        ({"options": BiPOptions(upper_batches=3), "upper_curve": "constant"}, 1),
        ({"options": BiPOptions(variant="released"), "upper_curve": "constant"}, 1),
        ({"options": BiPOptions(upper_every=2), "upper_curve": "constant"}, 2),
        ({"options": BiPOptions(upper_every=2, passes=1, scores="tied"), "upper_curve": "constant"}, 2),
        ({"options": BiPOptions(upper_every=2, passes=1)}, 3),
    ],
    ids=[
        "paper",
        "constant",
        "schedule",
        "one pass",
        "two lower steps",
        "three upper batches",
        "released",
        "rare",
        "rare and tied",
        "rare, curve",
    ],  # fmt: skip
)
def test_replays_give_the_bits_of_the_eager_run(imitated, arguments, graphs):
    eager, ours = build(**arguments), sk.captured(build(**arguments))
    theirs, own = batches(), batches()
    for _ in range(STEPS):
        expected, found = eager.step(theirs).read(), ours.step(own).read()
        assert found == expected
    assert ours.done and len(imitated[0].made) == graphs
    a, b = tensors(eager), tensors(ours)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (eager.cost.passes, eager.cost.samples, eager.cost.steps) == (
        ours.cost.passes,
        ours.cost.samples,
        ours.cost.steps,
    )
    assert eager.masks.sparsity == ours.masks.sparsity


def sgd(parameters: list[nn.Parameter]) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=torch.tensor(0.05), momentum=0.9, weight_decay=1e-3, fused=True)


def initial(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value + 0.01 for name, value in small_net().state_dict().items()}


EARLY = sk.IMPOptions(rewind_step=2)
OTHERS = {
    "imp": (lambda m: sk.IMP(m, loss, 0.488, optimizer=sgd, steps_per_round=6, rewind="lr"), 3),
    "imp, rewound": (
        lambda m: sk.IMP(m, loss, 0.488, optimizer=sgd, steps_per_round=6, rewind="init", rewind_state=initial(m)),
        3,
    ),
    "imp, budgeted": (lambda m: sk.IMP(m, loss, 0.488, optimizer=sgd, budget=17), 3),
    "imp, dense before": (
        lambda m: sk.IMP(
            m, loss, 0.488, optimizer=sgd, steps_per_round=6, rewind="early", dense_steps=7, options=EARLY
        ),
        4,
    ),
    "imp, fine-tuned": (lambda m: sk.IMP(m, loss, 0.488, optimizer=sgd, steps_per_round=5, rewind="none"), 3),
    "omp, dense before": (lambda m: sk.OMP(m, loss, 0.8, optimizer=sgd, steps=8, dense_steps=6), 2),
    "gmp, channels": (
        lambda m: sk.GMP(m, loss, 0.5, optimizer=sgd, steps=12, projection=sk.Projection("filter", "uniform")),
        1,
    ),
    "imp, short rounds": (lambda m: sk.IMP(m, loss, 0.488, optimizer=sgd, steps_per_round=3, rewind="lr"), 0),
    "omp": (lambda m: sk.OMP(m, loss, 0.8, optimizer=sgd, steps=8, rewind_state=initial(m)), 1),
    "fine-tuned": (lambda m: sk.OneShotMagnitude(m, loss, 0.8, optimizer=sgd, steps=8, recalibrate=2), 1),
    "gmp": (lambda m: sk.GMP(m, loss, 0.8, optimizer=sgd, steps=12, every=2), 1),
    "dpf": (lambda m: sk.DPF(m, loss, 0.8, optimizer=sgd, steps=12, every=2), 1),
    "hydra": (lambda m: sk.Hydra(m, loss, 0.8, optimizer=sgd, steps=9, finetune_steps=6), 2),
    "movement": (lambda m: sk.Movement(m, loss, 0.8, optimizer=sgd, steps=10), 1),
    "probmask": (lambda m: sk.ProbMask(m, loss, 0.8, optimizer=sgd, steps=9, finetune_steps=5, score_lr=0.1), 2),
    "woodfisher": (lambda m: sk.WoodFisher(m, loss, 0.8, optimizer=sgd, steps=12, every=2, fisher_batches=2), 2),
    "str": (lambda m: sk.STR(m, loss, 0.8, optimizer=sgd, steps=8, ramp=0.5, finetune_steps=6, first=0.0), 2),
    "powerprop": (lambda m: sk.Powerprop(m, loss, 0.8, optimizer=sgd, steps=8, finetune_steps=6), 2),
    "rigl": (lambda m: sk.RigL(m, loss, 0.8, optimizer=sgd, steps=14, every=2), 2),
    "set": (lambda m: sk.SET(m, loss, 0.8, optimizer=sgd, steps=12, every=2), 1),
    "random": (lambda m: sk.RandomPruning(m, loss, 0.8, optimizer=sgd, steps=8, rewind_state=initial(m)), 1),
    "snip": (lambda m: sk.SNIP(m, loss, 0.8, optimizer=sgd, steps=8, rounds=2), 1),
    "grasp": (lambda m: sk.GraSP(m, loss, 0.8, optimizer=sgd, steps=8), 1),
    "synflow": (lambda m: sk.SynFlow(m, loss, 0.8, optimizer=sgd, steps=8, rounds=9), 1),
    "spode": (lambda m: sk.SpODE(m, loss, 0.8, steps=8, recalibrate=2), 1),
    "spode, another polariser": (lambda m: sk.SpODE(m, loss, 0.8, steps=8, polariser="oh"), 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_replays_of_other_pruners_give_the_bits_of_the_eager_run(imitated, name):
    make, graphs = OTHERS[name]
    eager, ours = make(small_net()), sk.captured(make(small_net()))
    theirs, own = batches(), batches()
    while not eager.done:
        assert eager.step(theirs).read() == ours.step(own).read()
    assert ours.done and len(imitated[0].made) == graphs
    a, b = eager.model.state_dict(), ours.model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a) and eager.masks == ours.masks
    assert (eager.cost.passes, eager.cost.samples) == (ours.cost.passes, ours.cost.samples)


@pytest.mark.parametrize("name", OTHERS)
def test_captures_are_timed_apart(imitated, name):
    make, graphs = OTHERS[name]
    told: list[float] = []
    ours, given = sk.captured(make(small_net()), told.append), batches()
    while not ours.done:
        ours.step(given)
    assert told == [1.0] * graphs and ours.capture_seconds == graphs  # the imitation's clock goes on when it is read


@pytest.mark.parametrize("name", [name for name in OTHERS if "spode" not in name])
def test_captured_rounds_resume_at_every_step(imitated, name):
    make, _ = OTHERS[name]
    loader = [batch for batch, _ in zip(batches(), range(60), strict=False)]
    whole, pulled = make(small_net()), iter(loader)
    states, left = [], []
    while not whole.done:
        states.append(copy.deepcopy((whole.model.state_dict(), whole.state_dict())))
        left.append(len(loader) - sum(1 for _ in copy.copy(pulled)))
        whole.step(pulled)
    for (model, state), used in list(zip(states, left, strict=True))[1::4]:
        ours = sk.captured(make(small_net()))
        ours.model.load_state_dict(model)
        ours.load_state_dict(state)
        given = iter(loader[used:])
        while not ours.done:
            ours.step(given)
        a, b = whole.model.state_dict(), ours.model.state_dict()
        assert all(torch.equal(a[key], b[key]) for key in a) and whole.masks == ours.masks


def test_a_captured_pruner_is_as_before_when_used_alone(imitated):
    pruner = build(upper_curve="constant")
    ours, given = sk.captured(pruner), batches()
    for _ in range(5):
        ours.step(given)
    pruner.step(given)
    assert pruner._replays is None and len(imitated[0].made) == 1


def test_metrics_and_flags_are_not_overwritten_by_later_replays(imitated):
    ours, given = sk.captured(build(upper_curve="constant")), batches()
    found = [ours.step(given) for _ in range(STEPS - 2)]
    values = [m.read()["loss_lower"] for m in found]
    assert len(set(values)) == len(values)
    x, y = next(given)
    bad = iter([(torch.full_like(x, torch.nan), y)] * 2)
    metrics = ours.step(bad)
    with pytest.raises(ValueError, match="BiP: (loss|scores): expected"):
        metrics.read()


def test_a_problem_stays_known_after_replays_without_one(imitated):
    pruner = build(upper_curve="constant")
    own = pruner.loss

    def sometimes_infinite(model, batch):
        # Its gradient is finite, so that the run goes on as if nothing had happened.
        x, y = batch
        return own(model, (x.nan_to_num(posinf=1.0), y)) + torch.where(x.isinf().any(), torch.inf, 0.0)

    pruner.loss = sometimes_infinite
    ours, given = sk.captured(pruner), batches()
    for _ in range(5):
        ours.step(given)
    x, y = next(given)
    ours.step(iter([(torch.full_like(x, torch.inf), y), next(given)]))
    with pytest.raises(ValueError, match="BiP: loss: expected a finite value"):
        ours.step(given).read()


def test_another_kind_of_batch_gets_a_graph_of_its_own(imitated):
    eager, ours = build(upper_curve="constant"), sk.captured(build(upper_curve="constant"))
    theirs, own = batches(), batches()
    for step in range(STEPS):
        size = 8 if step % 2 else 5
        cut = [iter([(x[:size], y[:size]) for x, y in (next(s), next(s))]) for s in (theirs, own)]
        assert eager.step(cut[0]).read() == ours.step(cut[1]).read()
    assert len(imitated[0].made) == 2


def test_fit_and_resume(imitated):
    eager, ours = build(upper_curve="constant"), sk.captured(build(upper_curve="constant"))
    loader = [batch for batch, _ in zip(batches(), range(2 * STEPS), strict=False)]
    eager.fit(loader)
    given = iter(loader)
    for _ in range(7):
        ours.step(given)
    other = sk.captured(build(upper_curve="constant"))
    other.model.load_state_dict(ours.model.state_dict())
    other.load_state_dict(ours.state_dict())
    while not other.done:
        other.step(given)
    a, b = tensors(eager), tensors(other)
    assert all(torch.equal(a[name], b[name]) for name in a)
    again = sk.captured(build(upper_curve="constant"))
    again.fit(loader)
    c = tensors(again)
    assert all(torch.equal(a[name], c[name]) for name in a)


def test_a_loss_that_waits_for_the_device_cannot_be_captured(imitated):
    pruner = build()
    own = pruner.loss
    pruner.loss = lambda model, batch: own(model, batch) * (1 if float(batch[0].sum()) else 2)
    ours, given = sk.captured(pruner), batches()
    for _ in range(capture.WARM_UP):
        ours.step(given)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        ours.step(given)


def test_refusals(imitated, monkeypatch):
    with pytest.raises(TypeError, match="captured: pruner: expected one that trains in one go, got Linear"):
        sk.captured(nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="captured: pruner: expected an optimizer whose learning rate is a tensor"):
        sk.captured(build(fused=False))
    later = {
        "optimizer": lambda parameters: torch.optim.SGD(parameters, 0.1),
        "steps": 3,
    }  # made when the training begins
    for pruner in (
        sk.SNIP(small_net(), loss, 0.8, **later),
        sk.OneShotMagnitude(small_net(), loss, 0.8, recalibrate=1, **later),
    ):
        with pytest.raises(ValueError, match="captured: pruner: expected an optimizer whose learning rate is a tensor"):
            sk.captured(pruner)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="captured: pruner: expected a model on a CUDA device, got one on cpu"):
        sk.captured(build())


def test_batches_whose_tensors_are_hidden_are_refused(imitated):
    ours = sk.captured(build())
    hidden = (SimpleNamespace(batch=batch) for batch in batches())
    with pytest.raises(TypeError, match="captured: batches: expected tensors and plain values .* got SimpleNamespace"):
        ours.step(hidden)


def test_attributes_are_the_pruners_and_copies_can_be_made(imitated):
    ours = sk.captured(build())
    assert copy.copy(ours).pruner is ours.pruner and ours.gamma == 1.0
    with pytest.raises(AttributeError, match="'BiP' object has no attribute 'nothing'"):
        ours.nothing()


@pytest.mark.gpu
@pytest.mark.parametrize("passes", [1, 2])
def test_graphs_on_a_gpu_give_the_bits_of_the_eager_run(passes):
    arguments = {"options": BiPOptions(passes=passes)}
    torch.backends.cudnn.deterministic = True
    try:
        eager, ours = build("cuda", **arguments), sk.captured(build("cuda", **arguments))
        theirs, own = batches("cuda"), batches("cuda")
        for _ in range(STEPS):
            expected, found = eager.step(theirs), ours.step(own)
        assert expected.read() == found.read()
        a, b = tensors(eager), tensors(ours)
        assert all(torch.equal(a[name], b[name]) for name in a)
    finally:
        torch.backends.cudnn.deterministic = False


@pytest.mark.gpu
def test_an_iteration_does_not_wait_for_the_gpu():
    eager, given = build("cuda"), [batch for batch, _ in zip(batches("cuda"), range(20), strict=False)]
    source = iter(given)
    for _ in range(3):
        eager.step(source)
    torch.cuda.set_sync_debug_mode("error")
    try:
        eager.step(source)
    finally:
        torch.cuda.set_sync_debug_mode("default")
