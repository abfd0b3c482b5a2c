# SPDX-License-Identifier: Apache-2.0
"""WoodFisher against a plain loop in float64 with the source's recursion, and what its prunings draw, cost and refuse."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekit as sk
from sparsekit.schedules import Cubic

M, BLOCK, DAMPING = 3, 7, 1e-3
Batch = tuple[Tensor, Tensor]


def build(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)]
    model = nn.Sequential(*layers, *([nn.BatchNorm1d(3)] if norm else [])).double()
    sk.sparsify(model)
    return model


def batches(start: int = 0) -> Iterator[Batch]:
    for i in itertools.count(start):
        generator = torch.Generator().manual_seed(i)
        draw = torch.randn(6, 8, generator=generator, dtype=torch.float64)
        yield draw[:, :5], draw[:, 5:]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2)


def make(model: nn.Module, sparsity: float = 0.7, **changes: Any) -> sk.WoodFisher:
    own = {"steps": 6, "every": 2, "ramp": 0.6, "curve": "constant"} | changes
    fisher = {"fisher_batches": M, "block": BLOCK, "damping": DAMPING}
    return sk.WoodFisher(model, loss, sparsity, optimizer=sgd, **(fisher | own))


# The loop: flat weights, dense float64 matrices, no code of the package.


def loss_of(weights: list[Tensor], masks: list[Tensor], batch: Batch) -> Tensor:
    first, second = (w * m for w, m in zip(weights, masks, strict=True))
    return ((batch[0] @ first.T).tanh() @ second.T - batch[1]).square().mean()


def gradient(weights: list[Tensor], masks: list[Tensor], batch: Batch) -> list[Tensor]:
    leaves = [w.clone().requires_grad_() for w in weights]
    return list(torch.autograd.grad(loss_of(leaves, masks, batch), leaves))


def inverse(rows: list[Tensor]) -> Tensor:
    """The source's recursion, block by block, as one dense matrix."""
    n = rows[0].numel()
    full = torch.zeros(n, n, dtype=torch.float64)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        own = torch.eye(stop - start, dtype=torch.float64) / DAMPING
        for row in rows:
            g = row.reshape(-1)[start:stop]
            own = own - torch.outer(own @ g, own @ g) / (len(rows) + g @ own @ g)
        full[start:stop, start:stop] = own
    return full


def prune(weights: list[Tensor], masks: list[Tensor], kept: int, fisher: list[Batch], update: str) -> None:
    found = [gradient(weights, masks, batch) for batch in fisher]
    inverses = [inverse([g[i] for g in found]) for i in range(2)]
    scores = [w.reshape(-1) ** 2 / (2 * f.diagonal()) for w, f in zip(weights, inverses, strict=True)]
    alive = torch.cat([s.masked_fill(m.reshape(-1) == 0, -1) for s, m in zip(scores, masks, strict=True)])
    stays = torch.zeros(len(alive), dtype=torch.float64)
    stays[alive.argsort(descending=True, stable=True)[:kept]] = 1
    for i, (w, m, f) in enumerate(zip(weights, masks, inverses, strict=True)):
        theta, new = w.reshape(-1), stays.split([20, 12])[i]
        lost = (m.reshape(-1) > 0) & (new == 0)
        if update == "sum":
            change = -sum((theta[q] * f[:, q] / f[q, q] for q in lost.nonzero().flatten()), torch.zeros_like(theta))
        else:
            fisher_matrix, stay = torch.linalg.inv(f), new > 0
            change = torch.zeros_like(theta)
            right = fisher_matrix[stay][:, lost] @ theta[lost]
            change[stay] = torch.linalg.solve(fisher_matrix[stay][:, stay], right)
        weights[i] = torch.where(new > 0, theta + (0 if update == "none" else change), theta).reshape(w.shape)
        masks[i] = new.reshape(m.shape)


def loop(pruner: sk.WoodFisher) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Weights and masks after every step."""
    stream = batches()
    model = build()
    weights = [model[i].weight.detach().clone() for i in (0, 2)]
    masks, velocity = [torch.ones_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    for step in range(pruner.steps):
        target = pruner.ramp.target(step)
        if target is not None:
            prune(weights, masks, sk.kept_count(32, target), [next(stream) for _ in range(M)], pruner.update)
        for i, g in enumerate(gradient(weights, masks, next(stream))):
            velocity[i] = 0.9 * velocity[i] + g * masks[i] + 1e-2 * weights[i]
            weights[i] = weights[i] - 0.1 * velocity[i]
        yield weights, masks


@pytest.mark.parametrize("update", ["sum", "joint", "none"])
@pytest.mark.parametrize("ramp", [0.6, 0])
def test_a_run_is_the_plain_loop(update: str, ramp: float) -> None:
    model = build()
    pruner, stream = make(model, update=update, ramp=ramp), batches()
    for weights, masks in loop(pruner):
        pruner.step(stream)
        for i, (w, m) in enumerate(zip(weights, masks, strict=True)):
            layer: Any = model[2 * i]
            assert torch.equal(layer.mask.dense(), m > 0)
            torch.testing.assert_close(layer.weight.detach(), w, rtol=1e-9, atol=1e-10)
    assert pruner.done and pruner.masks.count() == sk.kept_count(32, 0.7)


def test_the_first_pruning_of_a_named_schedule_takes_five_percent() -> None:
    pruner = make(build(), steps=20, every=1, ramp=0.4)
    stream = batches()
    pruner.step(stream)
    assert pruner.masks.count() == sk.kept_count(32, 0.05) < 32
    assert pruner.ramp.schedule == Cubic(0.05, 0.7, 0, 8)
    assert make(build(), sparsity=0.02).ramp.schedule(0) == 0.02


def test_prunings_draw_and_cost_their_batches() -> None:
    pruner, drawn, passes = make(build()), [], []

    def watched() -> Iterator[Batch]:
        for batch in batches():
            drawn.append(batch)
            yield batch

    stream = watched()
    for _ in range(6):
        before = pruner.cost.passes
        metrics = pruner.step(stream).read()
        passes.append(pruner.cost.passes - before)
        assert metrics["regrown"] == 0 and (metrics["flips"] > 0) == (passes[-1] > 1)
    assert passes == [1 + M, 1, 1 + M, 1, 1 + M, 1]  # steps 0 and 2, and 4, which ends the ramp
    assert len(drawn) == pruner.cost.passes and pruner.cost.samples == 6 * pruner.cost.passes
    assert pruner.cost.selection_seconds > 0


@pytest.mark.parametrize("update", ["sum", "joint"])
def test_what_lies_under_a_mask_takes_no_part(update: str) -> None:
    """Neither a large pruned weight nor an infinite one comes back, or moves another."""
    runs = []
    for value in (0.0, 1e6, torch.inf, torch.nan):
        model = build()
        pruner, stream = make(model, update=update), batches()
        for _ in range(6):
            pruner.step(stream)
            with torch.no_grad():
                for layer in pruner.layers.values():
                    layer.weight.masked_fill_(~layer.mask.dense(), value)
        runs.append((pruner.masks, sk.dense_state_dict(model)))
    for masks, weights in runs[1:]:
        assert masks == runs[0][0]
        assert all(torch.equal(w, runs[0][1][name]) for name, w in weights.items())


def test_one_shot_prunes_in_the_first_step_alone() -> None:
    pruner, stream = make(build(), ramp=0), batches()
    counts = []
    while not pruner.done:
        pruner.step(stream)
        counts.append((pruner.masks.count(), pruner.cost.passes))
    assert counts == [(10, M + 1 + i) for i in range(6)]


def test_fisher_passes_leave_batchnorm_and_grad_alone() -> None:
    moved = []
    for m in (1, 5):
        model = build(norm=True)
        pruner = make(model, ramp=0, fisher_batches=m, steps=1, update="none", sparsity=0.0)
        pruner.step(itertools.islice(batches(7 - m), m + 1))
        moved.append((model[3].running_mean.clone(), int(model[3].num_batches_tracked)))
    assert torch.equal(moved[0][0], moved[1][0]) and moved[0][1] == moved[1][1] == 1


def test_units_rank_by_their_sums() -> None:
    model = build()
    pruner, stream = make(model, sparsity=0.5, ramp=0, projection=sk.Projection("filter", "uniform")), batches()
    weights = [model[i].weight.detach().clone() for i in (0, 2)]
    found = [gradient(weights, [torch.ones_like(w) for w in weights], b) for b in itertools.islice(batches(), M)]
    pruner.step(stream)
    for i, w in enumerate(weights):
        f = inverse([g[i] for g in found])
        sums = (w.reshape(-1) ** 2 / (2 * f.diagonal())).reshape(w.shape).sum(1)
        best = sums.argsort(descending=True)[: sk.kept_count(len(w), 0.5)]
        expected = torch.zeros(w.shape, dtype=torch.bool)
        expected[best] = True
        layer: Any = model[2 * i]
        assert torch.equal(layer.mask.dense(), expected)


def test_correlated_weights_go_where_magnitude_would_keep_them() -> None:
    """Of two inputs that always agree one can go for nothing, whatever its size, if the other takes it over."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, 2.1, 0.5]]))
    sk.sparsify(model)

    def twins() -> Iterator[Batch]:
        for x, _ in batches():
            x = torch.stack([x[:, 0], x[:, 0], 3 * x[:, 1]], 1)
            yield x, x @ torch.tensor([[4.1], [0.0], [0.5]], dtype=torch.float64) + 0.1 * x[:, :1].square()

    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "steps": 1, "ramp": 0, "fisher_batches": 50}
    sk.WoodFisher(model, loss, 1 / 3, damping=1e-7, **still).fit(list(itertools.islice(twins(), 60)))
    weight = model[0].masked_weight()[0]
    assert (weight == 0).tolist() == [True, False, False]
    assert weight.tolist() == pytest.approx([0.0, 4.1, 0.5], abs=0.02)


def test_gradients_that_are_not_finite_change_nothing() -> None:
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *dx: Tensor) -> Tensor:
            return dx[0] * torch.inf

    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruner = sk.WoodFisher(
        model,
        lambda m, b: Steep.apply(loss(m, b)),
        0.5,
        optimizer=sgd,
        steps=3,
        fisher_batches=2,  # pyright: ignore
    )
    with pytest.raises(ValueError, match="WoodFisher: gradients: expected finite values, got NaN or inf"):
        pruner.step(batches())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"fisher_batches": 0}, ValueError, "fisher_batches: expected an int >= 1, got 0"),
        ({"block": 0}, ValueError, "block: expected an int >= 1, got 0"),
        ({"damping": 0.0}, ValueError, "damping: expected a finite number > 0, got 0.0"),
        ({"damping": "1"}, TypeError, "damping: expected a finite number > 0, got '1'"),
        ({"update": "x"}, ValueError, "update: expected one of sum, joint, none, got 'x'"),
        ({"ramp": 1.5}, ValueError, r"ramp: expected a number in \[0, 1\], got 1.5"),
        ({"ramp": False}, ValueError, r"ramp: expected a number in \[0, 1\], got False"),
        ({"steps": 0}, ValueError, "steps: expected an int >= 1, got 0"),
    ],
)
def test_what_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"WoodFisher: {message}"):
        make(build(), **change)
