# SPDX-License-Identifier: Apache-2.0
"""What PyTorch's machinery asks of an op: opcheck, gradcheck, compile, export, FLOP counts, autocast, torch.func."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from oracles import DenseMasked, assert_within_yardstick
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sparsekit import ops
from sparsekit.ops import schemas

SPATIAL = {1: (9,), 2: (7, 5), 3: (4, 5, 3)}
CONVS = {1: ops.masked_conv1d, 2: ops.masked_conv2d, 3: ops.masked_conv3d}
DENSE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)), dtype=dtype)


def mask_of(weight: Tensor) -> Tensor:
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(7)) < 0.5


def conv_case(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight = rand(2, 4, *SPATIAL[n], dtype=dtype), rand(6, 2, *[2] * n, dtype=dtype)
    return x, weight, ops.pack_mask(mask_of(weight)), rand(6, dtype=dtype)


def step_samples(weight: Tensor, image: Tensor, words: list[Tensor]) -> dict[str, list[tuple]]:
    """Arguments for the ops on lists of layers."""

    def like(seed: int) -> list[Tensor]:
        return [x.roll(seed).contiguous(memory_format=torch.preserve_format).abs() for x in (weight, image)]

    rates = torch.tensor([0.1], dtype=torch.float64)
    return {
        "mask_weights": [([weight, image], words, torch.bfloat16), ([weight], words[:1], torch.float32)],
        "bilinear_grads": [(like(1), [weight, image], words), ([weight.bfloat16()], [weight], words[:1])],
        "bilevel_update_": [
            (like(1), like(2), [weight, image], like(3), words, None, 0.1, 0.9, 5e-4, 1.0, "magnitude", False),
            (like(1), [], [weight, image], like(3), words, rates, 0.0, 0.0, 0.0, 1.0, "value", False),
        ],
        "masked_sgd_": [(like(1), like(2), like(3), words, None, 0.1, 0.9, 0.0, 5e-4, True, False)],
        "masked_adamw_": [(like(1), like(2), like(3), like(4), words, None, [0.99, 0.1, 0.9], 0.9, 0.999, 1e-8)],
    }


def op_samples() -> dict[str, list[tuple]]:
    """Arguments for every op of the library."""
    x, weight, bias = rand(3, 40), rand(5, 40), rand(5)
    words = ops.pack_mask(mask_of(weight))
    image = rand(4, 6, 3, 3).to(memory_format=torch.channels_last)
    image_words = ops.pack_mask(mask_of(image))
    needs = [True, True, True]
    samples = {
        "pack_mask": [(mask_of(weight),), (mask_of(image),), (torch.ones((), dtype=torch.bool),)],
        "unpack_mask": [(words, [5, 40]), (image_words, [4, 6, 3, 3])],
        "popcount": [(words,)],
        "mask_counts": [([words, image_words], [words.flip(0), image_words]), ([words], [words])],
        "mask_weight": [(weight, words, torch.bfloat16), (image, image_words, torch.float32)],
        "topk_mask": [
            ([weight, image], [50], "magnitude", "global", "error"),
            ([weight], [3], "value", "row", "drop"),
            ([weight, image], [50], "magnitude", "global", "error", ops.warm_start(1)),
            ([weight, image], [9, 50], "value", "tensor", "keep", ops.warm_start(2), "radix"),
        ],
        "key_histogram": [([weight, image], torch.tensor(0), 20, 2048, "magnitude", "error")],
        "mask_at_threshold": [([weight, image], torch.tensor(2**29), torch.tensor([1, 0]), "value", "drop")],
        "group_scores": [(image, [4, 1], [1, 54], 2.0, "magnitude"), (weight, [2, 7], [3, 6], 1.0, "value")],
        "expand_units": [
            (ops.pack_mask(mask_of(rand(6))), [4, 6, 3, 3], [1, 6], [4, 9]),
            (ops.pack_mask(mask_of(rand(2, 7))), [5, 40], [2, 7], [3, 6]),
        ],
        "nm_mask": [([weight, image[:, :4]], 2, 4, "magnitude", "error"), ([image], 1, 3, "value", "keep")],
        "transposable_nm_mask": [([image[:, :4]], "magnitude", "error"), ([rand(8, 40)], "value", "drop")],
        **step_samples(weight, image, [words, image_words]),
        "masked_linear": [
            (x, weight, words, bias),
            (rand(2, 3, 40), weight, words, None),
            (rand(40), weight, words, bias),
        ],
        "masked_linear_backward": [
            (rand(3, 5), x, weight, words, needs, False),
            (rand(3, 5), x, weight, words, [False, True, False], True),
            (rand(5), rand(40), weight, words, needs, False),
        ],
    }
    for n in (1, 2, 3):
        x, weight, words, bias = conv_case(n)
        geometry = ([2] * n, [1] * n, [1] * n, 2)
        dy = getattr(torch.ops.sparsekit, f"masked_conv{n}d")(x, weight, words, bias, *geometry)
        samples[f"masked_conv{n}d"] = [(x, weight, words, bias, *geometry), (x, weight, words, None, *geometry)]
        samples[f"masked_conv{n}d_backward"] = [
            (dy, x, weight, words, *geometry, needs, False),
            (dy, x, weight, words, *geometry, [True, False, True], True),
        ]
    x = rand(2, 6, 7, 5).to(memory_format=torch.channels_last)
    samples["masked_conv2d"].append((x, image, image_words, None, [1, 1], [1, 1], [1, 1], 1))
    return samples


@pytest.mark.parametrize("name", schemas.OP_NAMES)
def test_opcheck(name: str) -> None:
    for arguments in op_samples()[name]:
        torch.library.opcheck(getattr(torch.ops.sparsekit, name).default, arguments)


def test_every_op_has_samples_and_a_schema() -> None:
    assert set(op_samples()) == set(schemas.OP_NAMES)
    defined = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("sparsekit::")}
    assert defined == set(schemas.OP_NAMES)


@pytest.mark.parametrize("dense_grad", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_gradcheck(n: int, dense_grad: bool) -> None:
    if n:
        x, weight, words, bias = conv_case(n, torch.float64)
        options = {"stride": 2, "padding": 1, "groups": 2, "dense_grad": dense_grad}
        function: Callable = CONVS[n]
    else:
        x, weight, bias = rand(3, 7, dtype=torch.float64), rand(4, 7, dtype=torch.float64), rand(4, dtype=torch.float64)
        words, options, function = ops.pack_mask(mask_of(weight)), {"dense_grad": dense_grad}, ops.masked_linear
    mask = ops.unpack_mask(words, weight.shape)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # With dense_grad the gradient belongs to z, so z's finite differences need the full mask.
        return function(x, weight, ops.pack_mask(torch.ones_like(mask)) if dense_grad else words, bias, **options)

    torch.autograd.gradcheck(run, [t.requires_grad_() for t in (x, weight, bias)])


@pytest.mark.parametrize("n", [0, 2])
def test_second_derivative_is_refused(n: int) -> None:
    x, weight, words, bias = (
        conv_case(2) if n else (rand(3, 7), rand(4, 7), ops.pack_mask(mask_of(rand(4, 7))), rand(4))
    )
    function, name = (ops.masked_conv2d, "masked_conv2d") if n else (ops.masked_linear, "masked_linear")
    weight.requires_grad_()
    options = {"groups": 2} if n else {}
    # Linear in the weight: a gradient without dependence would be silently zero.
    y = function(x.requires_grad_(), weight, words, bias, **options)
    dw, dx = torch.autograd.grad(y.sum(), [weight, x], create_graph=True)
    for gradient in (dw, dx):
        with pytest.raises(
            RuntimeError, match=f"{name}: the masked ops are differentiable once, got a second derivative"
        ):
            gradient.square().sum().backward(retain_graph=True)


def test_torch_func_grad_equals_autograd() -> None:
    x, weight, bias = rand(3, 7), rand(4, 7), rand(4)
    words = ops.pack_mask(mask_of(weight))

    def loss(weight: Tensor) -> Tensor:
        return ops.masked_linear(x, weight, words, bias).square().sum()

    expected = torch.autograd.grad(loss(leaf := weight.clone().requires_grad_()), leaf)[0]
    assert torch.equal(torch.func.grad(loss)(weight), expected)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.func.grad(lambda w: torch.func.grad(loss)(w).square().sum())(weight)
    image, kernel, kernel_words, _ = conv_case(2)

    def conv_loss(kernel: Tensor) -> Tensor:
        return ops.masked_conv2d(image, kernel, kernel_words, groups=2).square().sum()

    expected = torch.autograd.grad(conv_loss(leaf := kernel.clone().requires_grad_()), leaf)[0]
    assert torch.equal(torch.func.grad(conv_loss)(kernel), expected)


class Net(nn.Module):
    """A masked convolution and a masked linear layer on raw tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Parameter(rand(6, 2, 2, 2)), nn.Parameter(rand(5, 6))
        self.register_buffer("conv_words", ops.pack_mask(mask_of(self.conv)))
        self.register_buffer("fc_words", ops.pack_mask(mask_of(self.fc)))

    def forward(self, x: Tensor) -> Tensor:
        y = ops.masked_conv2d(x, self.conv, self.conv_words, padding="same", groups=2, padding_mode="circular")
        return ops.masked_linear(y.relu().mean((2, 3)), self.fc, self.fc_words)


BACKENDS = [
    "aot_eager",
    pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_fullgraph(backend: str) -> None:
    torch.use_deterministic_algorithms(False)  # inductor is compared, not filled memory
    net, x = Net(), rand(2, 4, 7, 5)
    y = net(x)
    expected = torch.autograd.grad(y.square().sum(), list(net.parameters()))
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    z = compiled(x)
    got = torch.autograd.grad(z.square().sum(), list(net.parameters()))
    torch.testing.assert_close(z, y)
    torch.testing.assert_close(got, expected)


def test_compile_of_selection_and_packing() -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def project(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        words, invalid = ops.topk_mask([scores], 20)
        return ops.mask_weight(scores, words[0]), ops.popcount(words[0]), invalid

    scores = rand(5, 40)
    z, count, invalid = project(scores)
    assert count.item() == 20 and not invalid and z.count_nonzero() == 20
    assert torch.equal(z, ops.mask_weight(scores, ops.topk_mask([scores], 20).masks[0]))


def test_compile_of_a_warm_selection() -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def select(scores: Tensor, warm: Tensor) -> Tensor:
        return ops.topk_mask([scores], 20_000, warm=warm).masks[0]

    scores, warm, eager = rand(50, 1000), ops.warm_start(1), ops.warm_start(1)
    for _ in range(2):
        assert torch.equal(select(scores, warm), ops.topk_mask([scores], 20_000, warm=eager).masks[0])
        assert torch.equal(warm, eager)


def test_compile_of_mask_comparisons() -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def compare(before: list[Tensor], after: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return ops.mask_iou(before, after), ops.flip_rate(before, after, numel=400), ops.regrow_count(before, after)

    before, after = ([ops.pack_mask(mask_of(rand(5, 40)) ^ flip) for _ in range(2)] for flip in (False, True))
    assert [figure.item() for figure in compare(before, after)] == [
        0.0,
        1.0,
        int(ops.mask_counts(after, after)[:, 0].sum()),
    ]


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    net, x = Net().eval(), rand(2, 4, 7, 5)
    program = torch.export.export(net, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), net(x))


def flops(function: Callable[[], Tensor], backward: bool) -> int:
    with FlopCounterMode(display=False) as counter:
        y = function()
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)], ids=str)
def test_linear_flops_are_the_dense_ones(shape: tuple[int, ...], backward: bool) -> None:
    weight, bias = rand(5, 8).requires_grad_(), rand(5)
    words, x = ops.pack_mask(mask_of(weight)), rand(*shape).requires_grad_()
    expected = flops(lambda: F.linear(x, weight, bias), backward)
    assert flops(lambda: ops.masked_linear(x, weight, words, bias), backward) == expected > 0


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_conv_flops_are_the_dense_ones(n: int, backward: bool) -> None:
    x, weight = rand(2, 4, *SPATIAL[n]).requires_grad_(), rand(6, 4, *[2] * n).requires_grad_()
    words, options = ops.pack_mask(mask_of(weight)), {"stride": 2, "padding": 1}
    expected = flops(lambda: DENSE[n](x, weight, **options), backward)
    assert flops(lambda: CONVS[n](x, weight, words, **options), backward) == expected > 0


def test_grouped_conv_flops() -> None:
    x, weight, words, bias = conv_case(2)
    expected = flops(lambda: F.conv2d(x, weight, bias, groups=2), False)
    assert flops(lambda: ops.masked_conv2d(x, weight, words, bias, groups=2), False) == expected
    # PyTorch counts the weight gradient of a grouped convolution as if it had one group; each gradient costs a forward.
    x.requires_grad_(), weight.requires_grad_()
    assert flops(lambda: ops.masked_conv2d(x, weight, words, bias, groups=2), True) == 3 * expected


@pytest.mark.parametrize("needs_x", [False, True])
def test_flops_of_gradients_that_nobody_needs_are_not_counted(needs_x: bool) -> None:
    x, weight = rand(3, 8).requires_grad_(needs_x), rand(5, 8).requires_grad_()
    words = ops.pack_mask(mask_of(weight))
    assert flops(lambda: ops.masked_linear(x, weight, words), True) == flops(lambda: F.linear(x, weight), True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_autocast_with_float32_masters(kind: str, dtype: torch.dtype) -> None:
    if kind == "conv":
        layer: nn.Module = nn.Conv2d(4, 6, 2, groups=2)
        x, weight, words, bias = conv_case(2)
        options, function = {"groups": 2}, ops.masked_conv2d
    else:
        layer, x, weight, bias = nn.Linear(8, 5), rand(3, 8), rand(5, 8), rand(5)
        options, function, words = {}, ops.masked_linear, ops.pack_mask(mask_of(weight))
    mask = ops.unpack_mask(words, weight.shape)
    poisoned = torch.where(mask, weight, torch.nan)
    results = []
    for run, w in (
        (lambda *a: function(a[0], a[1], words, a[2], **options), poisoned),
        (lambda *a: DenseMasked(layer)(a[0], a[1], mask, a[2]), weight),
    ):
        leaves = [t.clone().requires_grad_() for t in (x, w, bias)]
        with torch.autocast("cpu", dtype=dtype):
            y = run(*leaves)
        assert y.dtype == dtype
        y.float().square().sum().backward()
        assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    truth = DenseMasked(layer)(wide[0], wide[1], mask, wide[2])
    truth.square().sum().backward()
    for got, peer, true in zip(*results, [truth.detach(), *(leaf.grad for leaf in wide)], strict=True):
        assert_within_yardstick(got, peer, true)


def test_autocast_leaves_float64_alone_and_backward_may_run_inside() -> None:
    x, weight = rand(3, 8, dtype=torch.float64), rand(5, 8, dtype=torch.float64)
    words = ops.pack_mask(mask_of(weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.masked_linear(x, weight, words).dtype == torch.float64
        leaf = weight.float().requires_grad_()
        ops.masked_linear(x.float(), leaf, words).sum().backward()
    assert leaf.grad.dtype == torch.float32
    with torch.autocast("cpu", enabled=False):
        assert ops.masked_linear(x.float(), weight.float(), words).dtype == torch.float32


def test_meta_device() -> None:
    x, weight = torch.empty(3, 8, device="meta"), torch.empty(5, 8, device="meta")
    words = ops.pack_mask(torch.empty(5, 8, dtype=torch.bool, device="meta"))
    assert ops.masked_linear(x, weight, words).shape == (3, 5)
    assert ops.masked_conv2d(
        torch.empty(1, 1, 5, 5, device="meta"),
        *[torch.empty(2, 1, 3, 3, device="meta"), torch.empty(2, 1, dtype=torch.int32, device="meta")],
    ).shape == (1, 2, 3, 3)
    assert ops.topk_mask([weight], 3).masks[0].shape == (5, 1)


def test_inference_mode() -> None:
    x, weight = rand(3, 8), rand(5, 8)
    words = ops.pack_mask(mask_of(weight))
    with torch.inference_mode():
        y = ops.masked_linear(x, weight, words)
    assert y.is_inference() and torch.equal(y, ops.masked_linear(x, weight, words))
