# SPDX-License-Identifier: Apache-2.0
"""BiP from given masks, and with rarer upper steps: against readable rules and loops."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekit as sk
from sparsekit.pruners.bip import BiP
from sparsekit.pruners.bip_options import BiPOptions

DOUBLE = torch.float64


def build(seed: int = 0, dtype: torch.dtype = DOUBLE) -> Any:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Tanh(), nn.Linear(8, 8)).to(dtype)
    with torch.no_grad():
        model[3].weight.mul_(8).round_().div_(8)  # ties and zeros
        model[0].weight[0, :2] = 0.0
        model[0].weight[1] = 0.0
        model[0].weight[1, 0, 0, 0] = -0.0
    sk.sparsify(model)
    return model


def loss(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square().sum(1).mean()


def batches(seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield (
            torch.randn(5, 4, 3, 3, generator=generator, dtype=DOUBLE),
            torch.randn(5, 8, generator=generator, dtype=DOUBLE),
        )


def bip(model: nn.Module, sparsity: float = 0.7, steps: int = 4, lr: float = 0.05, **more: Any) -> BiP:
    lower = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    return BiP(model, loss, sparsity, steps=steps, lower=lower, **more)


def draw(model: nn.Module, sparsity: float, projection: sk.Projection, seed: int) -> sk.Masks:
    """Random masks that a projection of this kind can give: those of random scores."""
    generator = torch.Generator().manual_seed(seed)
    layers = sk.masked_layers(model)
    scores = {n: torch.rand(x.weight.shape, generator=generator, dtype=DOUBLE) for n, x in layers.items()}
    masks = projection(scores, sparsity).masks
    sk.set_masks(model, masks)
    return masks


PROJECTIONS = {
    "global": sk.Projection(),
    "uniform": sk.Projection(allocation="uniform"),
    "erk": sk.Projection(allocation="erk"),
    "filter": sk.Projection("filter", "uniform"),
    "filter, global": sk.Projection("filter"),
    "channel": sk.Projection("channel", "uniform"),
    "block": sk.Projection(sk.Block(2, 4), "uniform"),
    "2:4": sk.Projection("2:4"),
}


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("key", ["magnitude", "value"])
@pytest.mark.parametrize("kind", PROJECTIONS)
def test_the_first_masks_are_those_given(kind: str, key: Any, dtype: torch.dtype) -> None:
    projection = PROJECTIONS[kind]
    for seed, sparsity in enumerate([0.5] if kind == "2:4" else [0.0, 0.125, 0.5, 0.9, 0.99]):
        model = build(seed, dtype)
        given = draw(model, sparsity, projection, seed)
        before = copy.deepcopy(model.state_dict())
        pruner = bip(model, sparsity, projection=projection, options=BiPOptions(start="masks", key=key))
        assert pruner.masks == given
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        for name, s in pruner.scores_for_ranking().items():
            theta = pruner.weights[name]
            assert s.dtype == dtype and bool(
                (torch.sign(s) * torch.sign(theta) >= 0).all() if key == "magnitude" else (s >= 0).all()
            )


def readable(theta: list[float], kept: list[bool], eps: float, tiny: float) -> list[float]:
    """The rule entry by entry, on numbers of Python."""
    k = sum(kept)
    a = max(sorted((abs(x) for x in theta), reverse=True)[k - 1], tiny) if 0 < k < len(theta) else None
    found = []
    for x, keep in zip(theta, kept, strict=True):
        size = abs(x)
        if a is not None:
            size = max(size, a) if keep else min(size, a * (1 - eps))
        found.append(-size if x < 0 else size)
    return found


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_scores_are_those_of_the_readable_rule(allocation: str) -> None:
    for seed in range(5):
        model, projection = build(seed), sk.Projection(allocation=allocation)
        masks = draw(model, 0.7, projection, seed)
        scores = bip(model, projection=projection, options=BiPOptions(start="masks")).scores_for_ranking()
        theta = {n: x.weight.detach() for n, x in sk.masked_layers(model).items()}
        for names in [["0", "3"]] if allocation == "global" else [["0"], ["3"]]:
            flat, kept, own = (
                torch.cat([of[n].flatten() for n in names]).tolist()
                for of in (theta, {n: masks[n].dense() for n in names}, scores)
            )
            assert own == readable(flat, kept, torch.finfo(DOUBLE).eps, torch.finfo(DOUBLE).tiny)


def test_masks_of_magnitude_leave_theta_as_the_scores() -> None:
    model = build()
    with torch.no_grad():
        model[3].weight.add_(torch.randn(8, 8, dtype=DOUBLE) / 100)  # no ties
    plain = bip(copy.deepcopy(model))
    sk.set_masks(model, plain.masks)
    pruner = bip(model, options=BiPOptions(start="masks"))
    theta, source, same = pruner.weights, batches(), batches()
    assert all(torch.equal(s, theta[n]) for n, s in pruner.scores_for_ranking().items())
    while not plain.done:
        assert pruner.step(source).read() == plain.step(same).read()
    assert pruner.masks == plain.masks


def test_only_entries_on_which_the_masks_disagree_are_moved_and_only_to_the_border() -> None:
    model = build()
    with torch.no_grad():
        model[3].weight.add_(torch.randn(8, 8, dtype=DOUBLE) / 100)
    by_size = bip(copy.deepcopy(model)).masks
    given = draw(model, 0.7, sk.Projection(), 3)
    pruner = bip(model, options=BiPOptions(start="masks"))
    sizes = torch.cat([w.abs()[by_size[n].dense()] for n, w in pruner.weights.items()])
    border = sizes.min()
    for n, s in pruner.scores_for_ranking().items():
        disagree = (given[n] ^ by_size[n]).dense()
        assert torch.equal(s[~disagree], pruner.weights[n][~disagree]) and bool(disagree.any())
        torch.testing.assert_close(s[disagree].abs(), border.expand(int(disagree.sum())), rtol=1e-15, atol=0)


def test_masks_of_another_size_are_refused_and_full_ones_wait_for_a_state() -> None:
    options = BiPOptions(start="masks")
    model = build()
    before = draw(model, 0.5, sk.Projection(), 0)
    text = "BiP: start: expected masks that a projection to sparsity 0.7 can give, got 176 of 352 kept"
    with pytest.raises(ValueError, match=text):
        bip(model, options=options)
    assert sk.masks(model) == before
    draw(model, 0.7, sk.Projection(allocation=sk.PerLayer({"0": 0.3, "3": 0.9})), 0)
    with pytest.raises(ValueError, match="BiP: start: expected masks that a projection to sparsity 0.7 can give"):
        bip(model, projection=sk.Projection(allocation="uniform"), options=options)
    full = build()
    pruner, batch = bip(full, options=options), batches()
    with pytest.raises(ValueError, match="BiP: start: .* got 352 of 352 kept"):
        pruner.step(batch)
    assert sk.masks(full).count() == 352 and torch.equal(next(batch)[0], next(batches())[0])

    draw(model, 0.7, sk.Projection(), 0)
    first, source = bip(model, options=options), batches()
    first.step(source)
    full.load_state_dict(copy.deepcopy(model.state_dict()))
    pruner.load_state_dict(copy.deepcopy(first.state_dict()))
    rest = batches()
    next(rest), next(rest)
    while not first.done:
        assert first.step(source).read() == pruner.step(rest).read()
    assert first.masks == pruner.masks


@pytest.mark.parametrize("options", [{"scores": "tied"}, {"variant": "released"}], ids=str)
def test_what_has_no_scores_of_its_own_cannot_start_from_masks(options: dict[str, str]) -> None:
    model = build()
    draw(model, 0.7, sk.Projection(), 0)
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"BiP: start: expected magnitude (for|with) {name}='{value}', got 'masks'"):
        bip(model, options=BiPOptions(start="masks", **options))  # pyright: ignore[reportArgumentType]
    if name == "variant":
        with pytest.raises(ValueError, match="BiP: upper_every: expected 1 for variant='released', got 2"):
            bip(model, options=BiPOptions(upper_every=2, variant="released"))


@pytest.mark.parametrize("r", [1, 2, 3])
def test_rare_upper_steps_in_two_passes_are_many_lower_steps(r: int) -> None:
    """Where curves and schedule are constant, lower_steps=r says the same with iterations r times as long."""
    curves: Any = {"lower_curve": "constant", "upper_curve": "constant"}
    model, other = build(), build()
    rare = bip(model, steps=12, options=BiPOptions(upper_every=r), **curves)
    long = bip(other, steps=12 // r, options=BiPOptions(lower_steps=r), **curves)
    source, same = batches(), batches()
    while not long.done:
        for i in range(r):
            metrics = rare.step(source).read()
            assert ("loss_upper" in metrics) == (i == r - 1)
        assert metrics == long.step(same).read()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
        assert all(torch.equal(s, long.scores[n]) for n, s in rare.scores.items()) and rare.masks == long.masks
    assert rare.done and rare.cost.passes == long.cost.passes == 12 + 12 // r


@pytest.mark.parametrize("variant", [{}, {"lower_steps": 2}, {"scores": "tied"}, {"key": "value"}])
def test_several_upper_batches_are_one_that_is_as_large(variant: dict[str, Any]) -> None:
    """The same h, up to rounding, as from all their examples in one batch; lower batches stay as they are."""
    model, other = build(), build()
    lower_steps = variant.get("lower_steps", 1)
    several = bip(model, steps=6, options=BiPOptions(upper_batches=3, **variant))
    one = bip(other, steps=6, options=BiPOptions(**variant))
    source, same = batches(), batches()

    def joined() -> Any:
        while True:
            yield from (next(same) for _ in range(lower_steps))
            x, y = zip(*(next(same) for _ in range(3)), strict=True)
            yield torch.cat(x), torch.cat(y)

    large = joined()
    while not one.done:
        found, expected = several.step(source).read(), one.step(large).read()
        assert found == pytest.approx(expected, rel=1e-9)
        for n, s in several.scores.items():
            torch.testing.assert_close(s, one.scores[n], rtol=1e-9, atol=1e-12)
    assert several.done and several.masks == one.masks
    assert several.cost.passes == 6 * (lower_steps + 3) and several.cost.samples == one.cost.samples
    assert one.cost.passes == 6 * (lower_steps + 1)


def test_several_upper_batches_need_two_passes_and_the_paper() -> None:
    with pytest.raises(ValueError, match="BiP: upper_batches: expected 1 with passes=1, got 2"):
        bip(build(), options=BiPOptions(upper_batches=2, passes=1))
    with pytest.raises(ValueError, match="BiP: upper_batches: expected 1 for variant='released', got 2"):
        bip(build(), options=BiPOptions(upper_batches=2, variant="released"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("r", [1, 2, 3])
def test_one_pass_is_a_plain_loop(r: int, tied: bool) -> None:
    """theta, s and m of one Linear by formula: |z - a|^2 / 2 summed over the batch's targets, so h = n z - sum a."""
    torch.manual_seed(1)
    layer = nn.Linear(6, 5, bias=False, dtype=DOUBLE)
    sk.sparsify(layer)
    theta = layer.weight.detach().clone()
    eye, alpha, beta, gamma = torch.eye(6, dtype=DOUBLE), 0.1, 0.2, 0.7
    pruner = BiP(
        layer, lambda net, a: 0.5 * (net(eye).t() - a).square().sum(), 0.6, steps=7, upper_lr=beta, gamma=gamma,
        lower=torch.optim.SGD(layer.parameters(), alpha), lower_curve="constant", upper_curve="constant",
        options=BiPOptions(passes=1, scores="tied" if tied else "separate", upper_every=r, upper_momentum=0.0),
    )  # fmt: skip
    kept = sk.kept_count(30, 0.6)

    def top(s: Tensor) -> Tensor:
        return torch.zeros(30).index_fill(0, s.abs().flatten().argsort(descending=True)[:kept], 1).view(5, 6).bool()

    s = theta if tied else theta.clone()
    m = top(s)
    for t in range(7):
        a = torch.randn(5, 6, dtype=DOUBLE)
        pruner.step(iter([a]))
        h = torch.where(m, theta, 0.0) - a
        g = torch.where(s < 0, -1.0, 1.0) * (theta * h - m * (h * h) / gamma)
        theta -= alpha * (m * h)
        if (t + 1) % r == 0 or t == 6:
            s -= beta * g
            m = top(s)
        torch.testing.assert_close(layer.weight.detach(), theta, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pruner.scores_for_ranking()[""], s, rtol=1e-12, atol=1e-12)
        assert torch.equal(layer.mask.dense(), m)
    assert pruner.cost.passes == 7
