# SPDX-License-Identifier: Apache-2.0
"""BiP: the upper step against finite differences and by hand, the two passes, the options, exactness, resume."""

from __future__ import annotations

import copy
import math
from itertools import count

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsekit as sk
from sparsekit import criteria, ops
from sparsekit.allocation import kept_count
from sparsekit.projection import Projection
from sparsekit.pruners.bip import BiP
from sparsekit.pruners.bip_options import BiPOptions
from sparsekit.schedules import Cubic

DOUBLE = torch.float64


def linear_net(weight: torch.Tensor) -> nn.Module:
    """One Linear with ``weight`` [out, in] and no bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    sk.sparsify(layer)
    return layer


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
    sk.sparsify(net)
    return net


def stream(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(8, 1, 6, 6, generator=generator), torch.randint(0, 5, (8,), generator=generator)


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def sgd(model, lr=0.05, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


PLAIN = BiPOptions(upper_momentum=0.0)


def effective(model: nn.Module) -> torch.Tensor:
    """The layer's effective weight as a function of its weight, for losses written on z directly."""
    return model(torch.eye(model.in_features, dtype=model.weight.dtype)).t()


def test_upper_step_is_the_total_derivative_for_a_linear_loss():
    """l(z) = c'z has theta*(m) = -m*c/gamma; the derivative of l(m*theta*(m)) comes from finite differences in fp64."""
    torch.manual_seed(0)
    c, gamma, beta = torch.randn(4, 5, dtype=DOUBLE), 0.7, 0.3
    model = linear_net(torch.zeros_like(c))
    with torch.no_grad():
        model.weight.copy_(torch.randn_like(c))
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = BiP(
        model,
        lambda net, _: (c * effective(net)).sum(),
        0.5,
        steps=1,
        lower=frozen,
        upper_lr=beta,
        gamma=gamma,
        options=PLAIN,
    )
    mask = model.mask.dense().to(DOUBLE)
    with torch.no_grad():
        model.weight.copy_(-mask * c / gamma)
    s = pruner.scores_for_ranking()[""].clone()

    def composed(m: torch.Tensor) -> torch.Tensor:
        return (c * (m * (-m * c / gamma))).sum()

    eps, g = 1e-6, torch.zeros_like(c)
    for i in range(c.numel()):
        step = torch.zeros(c.numel(), dtype=DOUBLE)
        step[i] = eps
        step = step.view_as(c)
        g.view(-1)[i] = (composed(mask + step) - composed(mask - step)) / (2 * eps)
    pruner.step(iter(count()))
    moved = pruner.scores_for_ranking()[""] - s
    torch.testing.assert_close(moved, -beta * torch.where(s < 0, -1.0, 1.0) * g, rtol=1e-7, atol=1e-9)


def test_one_iteration_on_a_quadratic_by_hand():
    """l(z) = |z - a|^2 / 2, so h = z - a; every number below is worked out on paper."""
    theta = torch.tensor([[2.0, -1.0, 0.5, -3.0]], dtype=DOUBLE)
    target = {
        1: torch.tensor([[1.0, 1.0, 1.0, -1.0]], dtype=DOUBLE),
        2: torch.tensor([[0.0, 2.0, -1.0, 1.0]], dtype=DOUBLE),
    }
    model = linear_net(theta)
    pruner = BiP(
        model,
        lambda net, batch: 0.5 * (effective(net) - target[batch]).square().sum(),
        0.5,
        steps=1,
        lower=torch.optim.SGD(model.parameters(), lr=0.5),
        upper_lr=1.0,
        gamma=2.0,
        lower_curve="constant",
        upper_curve="constant",
        options=PLAIN,
    )
    assert model.mask.dense().tolist() == [[True, False, False, True]]
    pruner.step(iter([1, 2]))
    # lower on batch 1: h = (1, -1, -1, -2), theta <- theta - 0.5 * m*h = (1.5, -1, 0.5, -2)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[1.5, -1.0, 0.5, -2.0]], dtype=DOUBLE))
    # upper on batch 2 at the new theta: z = (1.5, 0, 0, -2), h = (1.5, -2, 1, -3)
    # theta*h - m*h^2/2 = (2.25-1.125, 2, 0.5, 6-4.5); times sign(s) = (+, -, +, -)
    step = torch.tensor([[1.125, -2.0, 0.5, -1.5]], dtype=DOUBLE)
    torch.testing.assert_close(pruner.scores_for_ranking()[""], theta - step)
    # |s| = (0.875, 1.0, 0.0, 1.5): the second weight replaces the first
    assert model.mask.dense().tolist() == [[False, True, False, True]]


def _mutants():
    def sign(s):
        return torch.where(s < 0, -1.0, 1.0).to(s.dtype)

    return {
        "theta^2*h^2": lambda theta, m, h, s, gamma, key: sign(s) * (theta * h - theta**2 * h**2 / gamma),
        "theta*m*h^2": lambda theta, m, h, s, gamma, key: sign(s) * (theta * h - theta * m * h**2 / gamma),
        "no sign": lambda theta, m, h, s, gamma, key: theta * h - m * h**2 / gamma,
    }


@pytest.mark.parametrize("mutant", ["theta^2*h^2", "theta*m*h^2", "no sign"])
def test_the_oracles_catch_the_mutants(mutant: str, monkeypatch: pytest.MonkeyPatch):
    """A pruner with a wrong hypergradient fails both oracles above."""

    def wrong(scores, weights, grads, words, *, lr, gamma, key, **_):
        with torch.no_grad():
            for s, theta, h, w in zip(scores, weights, grads, words, strict=True):
                m = ops.unpack_mask(w, theta.shape)
                s -= lr * _mutants()[mutant](theta, m, h, s, gamma, key)

    monkeypatch.setattr(ops, "bilevel_update_", wrong)
    with pytest.raises(AssertionError):
        test_upper_step_is_the_total_derivative_for_a_linear_loss()
    with pytest.raises(AssertionError):
        test_one_iteration_on_a_quadratic_by_hand()


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("options", [{}, {"key": "value"}, {"scores": "tied"}, {"variant": "released"}], ids=str)
def test_the_upper_step_is_torch_sgd_bit_by_bit(options: dict, passes: int):
    """The fused step of all layers, with its state, against criteria and torch.optim.SGD layer by layer."""
    options = BiPOptions(**options, passes=passes, upper_weight_decay=1e-3)
    results = []
    for plain in (False, True):
        model = small_net()
        lower = sgd(model, momentum=0.9, weight_decay=1e-3)
        pruner = BiP(model, loss, 0.5, steps=6, lower=lower, gamma=0.8, options=options)
        if plain:
            pruner._update_scores = lambda h, p=pruner: step_plainly(p, h)
        batches = stream()
        for _ in range(6):
            pruner.step(batches)
        momenta = [pruner.upper.state[s]["momentum_buffer"] for s in pruner.scores.values()]
        results.append([*pruner.scores_for_ranking().values(), *momenta, *model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def step_plainly(pruner: BiP, h: dict[str, torch.Tensor]) -> None:
    for name, layer in pruner.layers.items():
        s, theta = pruner.scores[name], layer.weight.detach()
        if pruner.options.variant == "released":
            s.grad = criteria.released_hypergradient(theta, h[name], s.detach(), 1 / pruner.gamma)
        else:
            mask, key = layer.mask.dense(), pruner.options.key
            s.grad = criteria.bip_hypergradient(theta, mask, h[name], s.detach(), pruner.gamma, key)
    pruner.upper.step()
    pruner.upper.zero_grad(set_to_none=True)


def test_a_step_without_its_batches_changes_nothing():
    model = small_net()
    pruner = BiP(model, loss, 0.5, steps=2, lower=sgd(model))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="expected another batch"):
        pruner.step(iter([next(stream())]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_lower_must_hold_the_masked_weights():
    model = small_net()
    with pytest.raises(
        ValueError, match="BiP: lower: expected an optimizer over every masked weight, got one without `0`"
    ):
        BiP(model, loss, 0.5, steps=1, lower=torch.optim.SGD(model[4].parameters(), 0.1))


def test_a_state_of_other_arguments_is_refused():
    model = small_net()
    state = BiP(model, loss, 0.5, steps=3, lower=sgd(model)).state_dict()
    other = BiP(model, loss, 0.5, steps=4, lower=sgd(model))
    with pytest.raises(ValueError, match="BiP: load_state_dict: expected steps 4, got 3"):
        other.load_state_dict(state)


def test_two_passes_on_two_batches_the_second_at_the_new_theta():
    model, seen = small_net(), []

    def watching(net, batch):
        seen.append((batch[0].sum().item(), net[4].weight.detach().clone()))
        return loss(net, batch)

    pruner = BiP(model, watching, 0.5, steps=3, lower=sgd(model))
    pruner.step(stream())
    assert len(seen) == 2 and pruner.cost.passes == 2
    assert seen[0][0] != seen[1][0]
    assert not torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(seen[1][1], model[4].weight.detach())


def test_lower_steps_and_one_pass_count_their_batches():
    for options, passes in ((BiPOptions(lower_steps=3), 4), (BiPOptions(passes=1), 1)):
        model = small_net()
        pruner = BiP(model, loss, 0.5, steps=2, lower=sgd(model), options=options)
        pruner.fit([next(stream())])
        assert pruner.cost.passes == 2 * passes and pruner.cost.samples == 16 * passes


def test_one_pass_uses_the_dense_gradient_at_the_old_theta_for_both_levels():
    model = small_net()
    twin = copy.deepcopy(model)
    batch = next(stream())
    pruner = BiP(
        model,
        loss,
        0.5,
        steps=1,
        lower=sgd(model),
        upper_lr=0.2,
        gamma=math.inf,
        options=BiPOptions(passes=1, upper_momentum=0.0),
        lower_curve="constant",
        upper_curve="constant",
    )
    sk.set_masks(twin, pruner.masks)
    old, mask = twin[4].weight.detach().clone(), twin[4].mask.dense()
    _, h = sk.dense_gradients(twin, loss, batch)
    pruner.step(iter([batch]))
    torch.testing.assert_close(model[4].weight.detach(), old - 0.05 * torch.where(mask, h["4"], torch.zeros(())))
    s = pruner.scores_for_ranking()["4"]
    torch.testing.assert_close(s, old - 0.2 * criteria.hydra(old, h["4"], old))


def test_tied_scores_are_the_weights():
    model = small_net()
    pruner = BiP(model, loss, 0.5, steps=2, lower=sgd(model), options=BiPOptions(scores="tied"))
    pruner.fit([next(stream())])
    assert pruner.scores["4"] is model[4].weight


def test_released_variant_squares_the_score_gradient_and_decays_twice():
    model = small_net()
    twin = copy.deepcopy(model)
    low, up = next(stream(1)), next(stream(2))
    pruner = BiP(
        model,
        loss,
        0.5,
        steps=1,
        lower=sgd(model, lr=0.0, weight_decay=0.1),
        upper_lr=0.5,
        gamma=10.0,
        options=BiPOptions(variant="released", upper_momentum=0.0),
        lower_curve="constant",
        upper_curve="constant",
    )
    sk.set_masks(twin, pruner.masks)
    twin.train()
    _, h = sk.dense_gradients(twin, loss, up)
    w = twin[4].weight.detach()
    g = w.abs() * h["4"]
    pruner.step(iter([low, up]))
    torch.testing.assert_close(model[4].weight.detach(), w - 0.5 * (g - 0.1 * g * g + 0.1 * w))


def test_released_counts_floor_the_removed():
    model = small_net()
    pruner = BiP(model, loss, 0.9, steps=1, lower=sgd(model), options=BiPOptions(variant="released"))
    n = pruner.masks.numel
    assert pruner.masks.count() == n - math.floor(0.9 * n) != kept_count(n, 0.9)


@pytest.mark.parametrize("policy", ["frozen", "train", "eval"])
def test_batchnorm_policy_of_the_upper_pass(policy: str):
    model = small_net()
    pruner = BiP(model, loss, 0.5, steps=1, lower=sgd(model), options=BiPOptions(upper_batchnorm=policy))
    pruner.step(stream())
    assert int(model[1].num_batches_tracked) == (2 if policy == "train" else 1)
    assert model[1].training and model[1].track_running_stats


@pytest.mark.filterwarnings("ignore::sparsekit.CollapseWarning")
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.875, 0.99])
@pytest.mark.parametrize("key", ["magnitude", "value"])
def test_count_is_exact_after_every_step(sparsity: float, key: str):
    model = small_net()
    pruner = BiP(model, loss, sparsity, steps=4, lower=sgd(model), options=BiPOptions(key=key))
    batches = stream()
    while not pruner.done:
        assert pruner.masks.count() == kept_count(pruner.masks.numel, sparsity)
        pruner.step(batches)
    assert pruner.masks.count() == kept_count(pruner.masks.numel, sparsity)


def test_schedule_ramps_exactly_and_ends_at_the_target():
    model = small_net()
    ramp = Cubic(initial=0.0, final=0.9, start=0, end=4)
    pruner = BiP(model, loss, 0.9, steps=6, lower=sgd(model), schedule=ramp)
    batches, n = stream(), pruner.masks.numel
    for step in range(6):
        assert pruner.masks.count() == kept_count(n, ramp(step))
        pruner.step(batches)
    assert pruner.masks.count() == kept_count(n, 0.9)


@pytest.mark.parametrize("pattern", ["filter", "channel"])
def test_structured_is_layer_wise_and_whole_units_go(pattern: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 6))
    sk.sparsify(model)

    def regression(net, batch):
        return net(batch).square().mean()

    projection = Projection(pattern, "uniform")
    pruner = BiP(model, regression, 0.5, steps=2, lower=sgd(model), projection=projection)
    pruner.fit([torch.randn(3, 4, 3, 3)])
    conv = model[0].mask.dense().movedim(0 if pattern == "filter" else 1, 0).flatten(1)
    assert ((conv.all(1)) | (~conv).all(1)).all() and int(conv.all(1).sum()) == conv.shape[0] // 2


def test_gamma_inf_is_the_hydra_gradient():
    theta, h, s = torch.randn(9), torch.randn(9), torch.randn(9)
    mask = torch.ones(9, dtype=torch.bool)
    assert torch.equal(criteria.bip_hypergradient(theta, mask, h, s, math.inf), criteria.hydra(theta, h, s))


def test_same_seed_same_run():
    def run():
        model = small_net()
        BiP(model, loss, 0.8, steps=5, lower=sgd(model, momentum=0.9)).fit([next(stream(i)) for i in range(3)])
        return model.state_dict()

    first, second = run(), run()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "options", [BiPOptions(), BiPOptions(scores="tied"), BiPOptions(passes=1), BiPOptions(variant="released")]
)
def test_resume_is_bit_equal(options: BiPOptions):
    def fresh():
        model = small_net()
        return model, BiP(model, loss, 0.8, steps=6, lower=sgd(model, momentum=0.9, weight_decay=1e-3), options=options)

    data = [next(stream(i)) for i in range(20)]
    model, pruner = fresh()
    used = iter(data)
    for _ in range(3):
        pruner.step(used)
    state, weights = copy.deepcopy(pruner.state_dict()), copy.deepcopy(model.state_dict())
    rest = list(used)
    again, resumed = fresh()
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for one, batches in ((pruner, iter(rest)), (resumed, iter(rest))):
        while not one.done:
            one.step(batches)
    assert pruner.masks == resumed.masks
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert resumed.cost.passes == pruner.cost.passes


def test_nan_scores_raise_and_leave_the_masks():
    model = small_net()
    pruner = BiP(model, loss, 0.5, steps=2, lower=sgd(model))
    before = pruner.masks
    with torch.no_grad():
        pruner.scores["4"][0, 0] = math.nan
    with pytest.raises(ValueError, match=r"BiP: scores: expected numbers, got NaN \(step 1\)"):
        pruner.step(stream())
    assert pruner.masks == before


def test_nan_loss_raises_before_the_weights_change():
    model = small_net()
    pruner = BiP(model, lambda net, batch: loss(net, batch) * math.nan, 0.5, steps=2, lower=sgd(model))
    before = copy.deepcopy(model[4].weight.detach())
    with pytest.raises(ValueError, match="BiP: loss: expected a finite value, got NaN or inf"):
        pruner.step(stream())
    assert torch.equal(model[4].weight.detach(), before)


def test_collapse_is_told():
    model = small_net()
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    pruner = BiP(model, loss, 0.95, steps=1, lower=sgd(model, lr=0.0), upper_lr=1e-9)
    with pytest.warns(sk.CollapseWarning, match="layer `0` keeps 0 of 54 weights; set min_keep"):
        pruner.step(stream())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 1.0}, r"BiP: sparsity: expected a number in \[0, 1\), got 1.0"),
        ({"sparsity": "0.5"}, r"BiP: sparsity: expected a number in \[0, 1\), got '0.5'"),
        ({"steps": 0}, "BiP: steps: expected an int >= 1, got 0"),
        ({"steps": 1.5}, "BiP: steps: expected an int >= 1, got 1.5"),
        ({"gamma": 0.0}, "BiP: gamma: expected a number > 0 or inf, got 0.0"),
        ({"upper_lr": -1.0}, "BiP: upper_lr: expected a finite number >= 0, got -1.0"),
        ({"lower": 0.1}, "BiP: lower: expected a torch optimizer"),
        ({"loss": 3}, "BiP: loss: expected a callable"),
        ({"upper_curve": "zigzag"}, "BiP: upper_curve: expected a callable or one of constant"),
        ({"options": BiPOptions(key="rank")}, "BiP: key: expected one of magnitude, value, got 'rank'"),
        ({"options": BiPOptions(passes=3)}, "BiP: passes: expected one of 1, 2, got 3"),
        ({"options": BiPOptions(passes=1, lower_steps=2)}, "BiP: lower_steps: expected 1 with passes=1, got 2"),
        ({"options": BiPOptions(scores="tied", key="value")}, "BiP: key: expected magnitude with scores='tied'"),
        ({"options": BiPOptions(variant="theirs")}, "BiP: variant: expected one of paper, released, got 'theirs'"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    model = small_net()
    arguments = {"loss": loss, "sparsity": 0.5, "steps": 2, "lower": sgd(model)} | changes
    with pytest.raises((ValueError, TypeError), match=message):
        BiP(model, arguments.pop("loss"), arguments.pop("sparsity"), **arguments)


def test_nothing_to_prune_and_no_batches():
    with pytest.raises(
        ValueError, match="BiP: model: expected masked layers, got nothing to prune; call sparsify first"
    ):
        BiP(nn.Linear(2, 2), loss, 0.5, steps=1, lower=torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1))
    model = small_net()
    pruner = BiP(model, loss, 0.5, steps=2, lower=sgd(model))
    with pytest.raises(ValueError, match="BiP: batches: expected another batch at step 1, got none"):
        pruner.step(iter([]))
    with pytest.raises(ValueError, match="BiP: loader: expected batches at each pass, got none"):
        pruner.fit([])
