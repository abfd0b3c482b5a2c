# SPDX-License-Identifier: Apache-2.0
"""Ops on lists of layers: the compiled code against the readable one bit by bit, the steps against torch.optim."""

from __future__ import annotations

import copy
import math
import struct
from typing import Any
from unittest import mock

import pytest
import torch
from emulator import emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsekit import _C, criteria, ops
from sparsekit.ops import multi_native, multi_reference

NATIVE = multi_native.CPU_IMPLEMENTATIONS
FORMS = ["plain", "channels_last", "unaligned", "transposed"]
SHAPES = [
    (),
    (0,),
    (5,),
    (33,),
    (4, 32),
    (3, 64),
    (7, 33),
    (0, 4),
    (9, 147),
    (6, 5, 3, 3),
    (4, 8, 1, 1),
    (2, 3, 2, 2, 2),
]
SPECIAL = [-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, 1e-30, math.inf]
TYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.bfloat16),
]


def form(x: Tensor, how: str) -> Tensor:
    """The same values, laid out in memory otherwise."""
    if how == "channels_last" and x.ndim in (4, 5):
        return x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    if how == "unaligned":
        return torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape)
    if how == "transposed" and x.ndim == 2:
        return x.t().contiguous().t()
    return x.contiguous()


def bits(x: Tensor) -> Tensor:
    x = x.contiguous()
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]) if x.is_floating_point() else x


def assert_same(got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
        assert torch.equal(bits(a), bits(b)), (a.flatten()[:8], b.flatten()[:8])


class Layers:
    """Lists of tensors of random layers: float(), like the weights; grads; words."""

    def __init__(self, draw: Any, most: int = 5) -> None:
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
        layers = st.tuples(
            st.sampled_from(SHAPES), st.sampled_from(FORMS), st.sampled_from(TYPES), st.sampled_from(FORMS)
        )
        self.kinds = draw(st.lists(layers, max_size=most))
        self.poison = draw(st.booleans())
        masks = [torch.rand(shape, generator=self.generator) < 0.5 for shape, *_ in self.kinds]
        self.words = [ops.pack_mask(m) for m in masks]

    def _values(self, shape: tuple[int, ...], dtype: torch.dtype, how: str, special: bool) -> Tensor:
        x = torch.randn(shape, generator=self.generator)
        if special:
            values = torch.tensor(SPECIAL)
            x = torch.where(torch.rand(shape, generator=self.generator) < 0.3, values[x.abs().mul(9).long() % 9], x)
        return form(x.to(dtype), how)

    def like(self, special: bool = True) -> list[Tensor]:
        return [self._values(shape, types[0], how, special) for shape, how, types, _ in self.kinds]

    def grads(self, special: bool = True) -> list[Tensor]:
        return [self._values(shape, types[1], how, special) for shape, _, types, how in self.kinds]

    def poisoned(self, given: list[Tensor]) -> list[Tensor]:
        """NaN under the zero bits, where nothing may be read; or not, for what was NaN can change without a trace."""
        if not self.poison:
            return given
        masks = [ops.unpack_mask(w, x.shape) for w, x in zip(self.words, given, strict=True)]
        nan = [x.masked_fill(~m, torch.nan) for x, m in zip(given, masks, strict=True)]
        return [x.copy_(n) for x, n in zip(given, nan, strict=True)]


def both(name: str, arguments: tuple[Any, ...], ours: Any = None) -> None:
    """The compiled op does what the reference does, to results and arguments."""
    mine, yours = copy.deepcopy(arguments), copy.deepcopy(arguments)
    for i, a in enumerate(arguments):  # a copy may be aligned where the original is not
        if isinstance(a, list) and a and isinstance(a[0], Tensor):
            mine[i][:] = [form(x, "unaligned") if y.data_ptr() % 16 else x for x, y in zip(mine[i], a, strict=True)]
    got, want = (ours or NATIVE)[name](*mine), getattr(multi_reference, name)(*yours)
    for a, b in zip((got or (), *mine), (want or (), *yours), strict=True):
        if isinstance(a, (list, tuple)):
            pairs = list(zip(a, b, strict=True))
            lists = pairs if pairs and isinstance(pairs[0][0], list) else [(a, b)]
            for x, y in lists:
                if x and isinstance(x[0], Tensor):
                    assert_same(x, y)
        elif isinstance(a, Tensor):
            assert torch.equal(a, b)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
def test_mask_weights_is_where_then_cast(data: st.DataObject, dtype: torch.dtype) -> None:
    layers = Layers(data.draw)
    weights = layers.poisoned(layers.like())
    for got, weight, w in zip(ops.mask_weights(weights, layers.words, dtype), weights, layers.words, strict=True):
        want = torch.where(ops.unpack_mask(w, weight.shape), weight, 0).to(dtype)
        assert got.stride() == torch.empty_like(weight).stride() and torch.equal(bits(got), bits(want))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bilinear_grads(data: st.DataObject) -> None:
    layers = Layers(data.draw)
    grads, weights = layers.grads(), layers.like()
    both("bilinear_grads", (grads, weights, layers.words))
    masked, products = ops.bilinear_grads(grads, weights, layers.words)
    for m, p, grad, weight, w in zip(masked, products, grads, weights, layers.words, strict=True):
        assert torch.equal(bits(m), bits(torch.where(ops.unpack_mask(w, grad.shape), grad.to(weight.dtype), 0)))
        assert torch.equal(p.nan_to_num(), (weight * grad.to(weight.dtype)).nan_to_num())


numbers = st.sampled_from([0.0, 0.1, 0.9, 0.003])


def rate(data: st.DataObject) -> tuple[Tensor | None, float]:
    lr = data.draw(numbers)
    return (torch.tensor([lr], dtype=torch.float64), 0.0) if data.draw(st.booleans()) else (None, lr)


@settings(max_examples=200, deadline=None)
@given(st.data(), numbers, numbers, st.sampled_from(["magnitude", "value", "released"]), st.booleans())
def test_bilevel_update(data: st.DataObject, momentum: float, decay: float, key: str, first: bool) -> None:
    layers, special = Layers(data.draw), False
    gamma = data.draw(st.sampled_from([0.3, 1.0, math.inf]))
    momenta = layers.like(special) if momentum else []
    lists = layers.like(special), momenta, layers.like(special), layers.grads(special), layers.words
    both("bilevel_update_", (*lists, *rate(data), momentum, decay, gamma, key, first))


@settings(max_examples=200, deadline=None)
@given(st.data(), numbers, numbers, numbers, st.booleans(), st.booleans())
def test_masked_sgd(
    data: st.DataObject, momentum: float, dampening: float, decay: float, nesterov: bool, first: bool
) -> None:
    layers = Layers(data.draw)
    momenta = layers.poisoned(layers.like(False)) if momentum else []
    grads = layers.poisoned(layers.grads(False))
    lists = layers.poisoned(layers.like(False)), momenta, grads, layers.words
    both("masked_sgd_", (*lists, *rate(data), momentum, dampening, decay, nesterov, first))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([0.0, 0.3, 0.9]), st.booleans())
def test_masked_adamw(data: st.DataObject, beta1: float, there: bool) -> None:
    layers, factors = Layers(data.draw), [0.999, 0.02, 0.3]
    layers.kinds = [
        (shape, how, TYPES[0] if types[0] == torch.float64 else types, grad) for shape, how, types, grad in layers.kinds
    ]
    second = layers.poisoned([x.mul_(x) for x in layers.like(False)])
    lists = layers.poisoned(layers.like(False)), layers.poisoned(layers.like(False)), second
    rates = torch.tensor(factors, dtype=torch.float64) if there else None
    tail = (rates, [0.0] * 3 if there else factors, beta1, 0.99, 1e-8)
    both("masked_adamw_", (*lists, layers.poisoned(layers.grads(False)), layers.words, *tail))


@pytest.mark.parametrize("path", ["scalar", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(path: str, dtype: torch.dtype) -> None:
    if path not in _C.cpu_features():
        pytest.skip(f"this processor has no {path}")
    torch.manual_seed(0)
    code, shape = _C.dtypes[str(dtype).removeprefix("torch.")], (70, 5001)
    p, m, g = (torch.randn(shape, dtype=dtype) for _ in range(3))
    v, words = torch.rand(shape, dtype=dtype), ops.pack_mask(p > 0)
    results = []
    for threads, force in ((1, ""), (3, path)):
        own = [x.clone() for x in (p, m, v)]
        geometry = [words.data_ptr()], [70], [5001], [1], code, code
        _C.masked_adamw(
            [x.data_ptr() for x in own],
            [g.data_ptr()],
            *geometry,
            [0.9, 0.1, 0.7],
            [0.9, 0.99, 1e-8],
            "",
            threads,
            force,
        )
        results.append(own)
    assert_same(*results)
    assert not torch.equal(results[0][0], p)


def layers_of(dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """(weights, words) of several layers, channels-last among them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(16, 8, 3, 3), (10, 37), (64, 64), (4, 6, 3, 3)]
    weights = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    weights[3] = weights[3].to(memory_format=torch.channels_last)
    return weights, [ops.pack_mask(torch.rand(w.shape, generator=generator) < 0.4) for w in weights]


def train(optimizer: Any, params: list[Tensor], words: list[Tensor], steps: int = 5) -> None:
    """Steps of a torch optimizer on masked gradients; what is pruned is put back, its state starts at zero and stays so."""
    masks = [ops.unpack_mask(w, p.shape) for w, p in zip(words, params, strict=True)]
    start = [p.detach().clone() for p in params]
    for step in range(steps):
        for p, g in zip(params, gradients(params, step), strict=True):
            p.grad = g
        optimizer.step()
        with torch.no_grad():
            for p, mask, old in zip(params, masks, start, strict=True):
                p.copy_(torch.where(mask, p, old))
                for value in optimizer.state[p].values():
                    if isinstance(value, Tensor) and value.shape == p.shape:
                        value.copy_(torch.where(mask, value, 0.0))


def gradients(params: list[Tensor], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype)) for p in params]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        {"lr": 0.03, "momentum": 0.9, "dampening": 0.3},
        {"lr": 0.03, "momentum": 0.8, "weight_decay": 1e-2, "nesterov": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_sgd_is_torch_sgd_and_masking_bit_by_bit(options: dict[str, Any], dtype: torch.dtype) -> None:
    weights, words = layers_of(dtype)
    ours, momenta = [w.clone() for w in weights], [torch.zeros_like(w) for w in weights]
    theirs = [w.clone().requires_grad_() for w in weights]
    optimizer = torch.optim.SGD(theirs, foreach=False, **options)
    train(optimizer, theirs, words)
    for step in range(5):
        ops.masked_sgd_(ours, gradients(ours, step), words, momenta=momenta, first=step == 0, **options)
    assert_same(ours, [p.detach() for p in theirs])
    if "momentum" in options:
        assert_same(momenta, [optimizer.state[p]["momentum_buffer"] for p in theirs])


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_adamw_is_torch_adamw_and_masking(dtype: torch.dtype, there: bool) -> None:
    weights, words = layers_of(dtype)
    ours, m, v = (
        [w.clone() for w in weights],
        [torch.zeros_like(w) for w in weights],
        [torch.zeros_like(w) for w in weights],
    )
    theirs, options = [w.clone().requires_grad_() for w in weights], {"lr": 3e-3, "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(theirs, foreach=False, **options)
    train(optimizer, theirs, words)
    for step in range(1, 6):
        number: Any = torch.tensor(float(step)) if there else step
        ops.masked_adamw_(ours, m, v, gradients(ours, step - 1), words, step=number, **options)
    assert_same(m, [optimizer.state[p]["exp_avg"] for p in theirs])
    assert_same(v, [optimizer.state[p]["exp_avg_sq"] for p in theirs])
    for p, q, old, w in zip(ours, theirs, weights, words, strict=True):
        mask = ops.unpack_mask(w, p.shape)
        assert torch.equal(bits(p)[~mask], bits(old)[~mask])
        # PyTorch's float32 root on a CPU is not correctly rounded: an ulp of the step, which is 1e-2 of the weight at most.
        torch.testing.assert_close(p, q.detach(), rtol=2 * torch.finfo(dtype).eps, atol=1e-9)


@pytest.mark.parametrize("key", ["magnitude", "value", "released"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 5e-4}], ids=str)
def test_bilevel_update_is_torch_sgd_on_the_hypergradient(key: Any, options: dict[str, float]) -> None:
    weights, words = layers_of(torch.float32)
    scores, momenta = layers_of(torch.float32, seed=1)[0], [torch.full_like(w, torch.nan) for w in weights]
    theirs = [s.clone().requires_grad_() for s in scores]
    optimizer = torch.optim.SGD(theirs, lr=0.1, foreach=False, **options)
    for step in range(4):
        grads = gradients(weights, step)
        for s, theta, h, w in zip(theirs, weights, grads, words, strict=True):
            if key == "released":
                s.grad = criteria.released_hypergradient(theta, h, s.detach(), 1 / 0.7)
            else:
                s.grad = criteria.bip_hypergradient(theta, ops.unpack_mask(w, h.shape), h, s.detach(), 0.7, key)
        optimizer.step()
        ops.bilevel_update_(
            scores, weights, grads, words, lr=0.1, gamma=0.7, key=key, momenta=momenta, first=step == 0, **options
        )
    assert_same(scores, [s.detach() for s in theirs])
    if options:
        assert_same(momenta, [optimizer.state[s]["momentum_buffer"] for s in theirs])


def test_bilevel_update_by_hand() -> None:
    theta, h = torch.tensor([[1.5, -1.0, 0.5, -2.0]]), torch.tensor([[1.5, -2.0, 1.0, -3.0]])
    s, words = torch.tensor([[2.0, -1.0, 0.0, -3.0]]), ops.pack_mask(torch.tensor([[True, False, False, True]]))
    ops.bilevel_update_([s], [theta], [h], [words], lr=1.0, gamma=2.0)
    assert s.tolist() == [[2.0 - 1.125, -1.0 + 2.0, -0.5, -3.0 + 1.5]]


def test_square_of_a_pruned_gradient_may_overflow() -> None:
    huge, words = torch.full((1, 2), 1e30), ops.pack_mask(torch.tensor([[False, True]]))
    for gamma, want in ((1.0, [-1e30, math.inf]), (math.inf, [-1e30, -1e30])):
        s = torch.zeros(1, 2)
        ops.bilevel_update_([s], [torch.ones(1, 2)], [huge], [words], lr=1.0, gamma=gamma)
        assert s.tolist() == [[struct.unpack("f", struct.pack("f", x))[0] for x in want]]


def test_scores_may_be_the_weights() -> None:
    (theta, *_), (words, *_) = layers_of(torch.float32)
    h, apart, tied = torch.randn(theta.shape), theta.clone(), theta.clone()
    ops.bilevel_update_([apart], [theta], [h], [words], lr=0.1)
    ops.bilevel_update_([tied], [tied], [h], [words], lr=0.1)
    assert torch.equal(apart, tied) and not torch.equal(tied, theta)


def test_parameters_are_written_and_know_it() -> None:
    (weight, *_), (words, *_) = layers_of(torch.float32)
    p, momentum = torch.nn.Parameter(weight.clone()), torch.zeros_like(weight)
    versions = p._version, momentum._version
    ops.masked_sgd_([p], [torch.ones_like(weight)], [words], lr=0.5, momentum=0.9, momenta=[momentum], first=True)
    assert p._version > versions[0] and momentum._version > versions[1]
    assert torch.equal(p.detach(), torch.where(ops.unpack_mask(words, weight.shape), weight - 0.5, weight))
    ops.masked_adamw_([p], [momentum], [momentum.clone()], [torch.ones_like(weight)], [words], lr=0.5, step=1)
    with torch.inference_mode():
        ops.masked_sgd_([torch.ones(3)], [torch.ones(3)], [ops.pack_mask(torch.ones(3, dtype=torch.bool))], lr=0.5)


def test_mask_weights_of_several_dtypes_keep_their_own() -> None:
    weights, words = [one(), one(torch.float64), one().half(), one()], [WORDS, ~WORDS[:, :1].repeat(1, 2), WORDS, WORDS]
    words[1][:, 1] &= 255
    masked = ops.mask_weights(weights, words)
    assert [m.dtype for m in masked] == [w.dtype for w in weights] and [int(m.sum()) for m in masked] == [0, 120, 0, 0]


def test_no_layers() -> None:
    assert ops.mask_weights([], []) == [] and ops.bilinear_grads([], [], []) == ([], [])
    ops.bilevel_update_([], [], [], [], lr=0.1)
    ops.masked_sgd_([], [], [], lr=0.1)
    ops.masked_adamw_([], [], [], [], [], lr=0.1, step=1)


def one(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(3, 40, dtype=dtype)


WORDS = torch.zeros(3, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.mask_weights(one(), [WORDS]), "mask_weights: weights: expected a sequence of tensors, got Tensor"),
        (lambda: ops.mask_weights([one()], []), "mask_weights: words: expected 1 tensors"),
        (lambda: ops.mask_weights([one()], [WORDS[:, :1]]), r"mask_weights: words: expected shape \(3, 2\)"),
        (lambda: ops.bilinear_grads([one()[:2]], [one()], [WORDS]), r"grads\[0\]: expected shape \(3, 40\)"),
        (lambda: ops.bilinear_grads([one().int()], [one()], [WORDS]), r"grads\[0\]: expected a float64"),
        (
            lambda: ops.bilevel_update_([one()], [one()], [one()], [WORDS], lr=-1.0),
            r"lr: expected a number in \[0, inf\)",
        ),
        (lambda: ops.bilevel_update_([one()], [one()], [one()], [WORDS], lr=1.0, gamma=0.0), "gamma: expected"),
        (lambda: ops.bilevel_update_([one()], [one()], [one()], [WORDS], lr=1.0, key="norm"), "key: expected one of"),
        (
            lambda: ops.bilevel_update_([one()], [one()], [one()], [WORDS], lr=1.0, momentum=0.9),
            "momenta: expected 1 tensors",
        ),
        (
            lambda: ops.bilevel_update_([one()], [one()], [one()], [WORDS], lr=torch.ones(2)),
            "lr: expected a number or a 0-d",
        ),
        (lambda: ops.masked_sgd_([one()], [one()], [WORDS], lr=1.0, nesterov=True), "nesterov: expected momentum > 0"),
        (
            lambda: ops.masked_sgd_([one()], [one().to("meta")], [WORDS], lr=1.0),
            r"grads\[0\]: expected device cpu, got meta",
        ),
        (lambda: ops.masked_adamw_(*[[one()]] * 4, [WORDS], lr=1.0, step=0), "step: expected a number >= 1, got 0"),
        (lambda: ops.masked_adamw_(*[[one()]] * 4, [WORDS], lr=1.0, step=1, betas=(1.0, 0.9)), r"betas\[0\]: expected"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_compile_fullgraph() -> None:
    weights, words = layers_of(torch.float32)
    grads = gradients(weights, 0)

    def step(theta: list[Tensor], scores: list[Tensor], m: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        masked, _ = ops.bilinear_grads(grads, theta, words)
        ops.masked_sgd_(theta, masked, words, lr=0.1)
        ops.masked_adamw_(theta, m, v, grads, words, lr=torch.tensor(0.1), step=3)
        ops.bilevel_update_(scores, theta, grads, words, lr=torch.tensor(0.2), momentum=0.9, momenta=m)
        return ops.mask_weights(scores, words, torch.bfloat16)

    results = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        given = [[w.clone() for w in weights] for _ in range(4)]
        given[3] = [w.abs() for w in weights]
        results.append([*function(*given), *sum(given, [])])
    assert_same(*results)


@pytest.mark.gpu
@pytest.mark.parametrize("narrow", [False, True])
def test_graph_replay_reads_the_rate_anew_and_equals_the_cpu(narrow: bool) -> None:
    weights, words = layers_of(torch.float32)
    grads = [g.bfloat16() if narrow else g for g in gradients(weights, 0)]
    here = [[w.clone() for w in weights] for _ in range(4)]
    there = [[w.cuda() for w in given] for given in here]
    bits_there, grads_there = [w.cuda() for w in words], [g.cuda() for g in grads]
    lr, number = (torch.tensor(x, device="cuda") for x in (0.5, 1.0))

    def run(lists: list[list[Tensor]], g: list[Tensor], w: list[Tensor], rate: Any, step: Any) -> None:
        theta, s, m, v = lists
        options = {"momentum": 0.9, "momenta": m}
        ops.bilevel_update_(s, theta, g, w, lr=rate, **options)
        ops.masked_sgd_(theta, g, w, lr=rate, **options)
        ops.masked_adamw_(theta, m, [x.square_() for x in v], g, w, lr=rate, step=step)

    capture_copy = [[w.clone() for w in given] for given in there]
    run(capture_copy, grads_there, bits_there, lr, number)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(there, grads_there, bits_there, lr, number)
    for rate, step in ((0.1, 3), (0.03, 4)):
        lr.fill_(rate), number.fill_(step)
        graph.replay()
        run(here, grads, words, float(lr), step)
    for ours, cpu in zip(there, here, strict=True):
        for a, b in zip(ours, cpu, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
def test_kernels_on_a_device_equal_the_cpu_code() -> None:
    weights, words = layers_of(torch.float32)
    h, there = gradients(weights, 0), [w.cuda() for w in words]
    for got, want in zip(
        ops.bilinear_grads([g.cuda() for g in h], [w.cuda() for w in weights], there),
        ops.bilinear_grads(h, weights, words),
        strict=True,
    ):
        assert_same([x.cpu() for x in got], want)
    here, device = [w.clone() for w in weights], [w.cuda() for w in weights]
    ops.bilevel_update_(here, weights, h, words, lr=0.1, weight_decay=0.1)
    ops.bilevel_update_(device, [w.cuda() for w in weights], [g.cuda() for g in h], there, lr=0.1, weight_decay=0.1)
    assert_same([x.cpu() for x in device], here)


def cuda_on_emulator() -> Any:
    """The CUDA implementations with emulated kernels, to which a CPU tensor is device memory."""
    return mock.patch.multiple(multi_native, _C=emulated())


@settings(max_examples=10, deadline=None)
@given(st.data(), numbers, st.booleans())
def test_kernels_on_the_emulator(data: st.DataObject, momentum: float, first: bool) -> None:
    layers = Layers(data.draw)
    weights, grads, momenta = layers.like(False), layers.grads(False), layers.like(False) if momentum else []
    with cuda_on_emulator():
        kernels = multi_native.CUDA_IMPLEMENTATIONS
        both("mask_weights", (layers.poisoned(layers.like()), layers.words, torch.bfloat16), kernels)
        both("bilinear_grads", (grads, weights, layers.words), kernels)
        tail = (*rate(data), momentum, 5e-4, 0.7, data.draw(st.sampled_from(["magnitude", "value", "released"])), first)
        both("bilevel_update_", (layers.like(False), momenta, weights, grads, layers.words, *tail), kernels)
        state = layers.poisoned(momenta) if momentum else []
        tail = (*rate(data), momentum, 0.1, 5e-4, False, first)
        both("masked_sgd_", (layers.poisoned(weights), state, layers.poisoned(grads), layers.words, *tail), kernels)


def test_more_layers_than_a_launch_takes_on_the_emulator() -> None:
    torch.manual_seed(0)
    shapes = [(2, 32), (1, 4), (3, 33), (2, 3, 2, 2)] * 33
    weights, grads = [torch.randn(shape) for shape in shapes], [torch.randn(shape) for shape in shapes]
    m, v = [torch.randn(shape) for shape in shapes], [torch.rand(shape) for shape in shapes]
    words = [ops.pack_mask(w > 0) for w in weights]
    with cuda_on_emulator():
        kernels = multi_native.CUDA_IMPLEMENTATIONS
        both("mask_weights", (weights, words, torch.float16), kernels)
        both("masked_adamw_", (weights, m, v, grads, words, None, [0.99, 0.1, 0.4], 0.9, 0.999, 1e-8), kernels)
