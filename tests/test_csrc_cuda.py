# SPDX-License-Identifier: Apache-2.0
"""Packed masks by the CUDA part of the compiled module: on the emulator, and on a device where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from emulator import emulated
from packed import layout, new_words

from sparsekit import _C, ops

SHAPES = ((3, 1), (2, 31), (4, 32), (7, 33), (5, 65), (64, 64, 3, 3), (0, 4), (60, 1030))


@dataclass
class Place:
    """Where the CUDA functions run."""

    module: ModuleType
    device: str

    @property
    def queue(self) -> tuple[int, int]:
        """(device index, current stream)."""
        if self.device == "cpu":
            return 0, 0
        return torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream


@pytest.fixture(params=["emulated", pytest.param("device", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "emulated":
        return Place(emulated(), "cpu")
    if not _C.has_cuda:
        pytest.skip("sparsekit._C was built without nvcc")
    return Place(_C, "cuda")


def packed(mask: torch.Tensor) -> torch.Tensor:
    words = new_words(mask.shape)
    _C.pack_mask(mask.data_ptr(), words.data_ptr(), *layout(mask.shape))
    return words


@pytest.mark.parametrize("shape", SHAPES)
def test_pack_unpack_popcount(shape: tuple[int, ...], place: Place) -> None:
    mask = torch.rand(shape) < 0.3
    want, sizes = packed(mask), layout(shape)
    there, back = mask.to(place.device), torch.ones(shape, dtype=torch.bool, device=place.device)
    words = torch.full_like(want, -1, device=place.device)
    total = torch.full((), -1, dtype=torch.int64, device=place.device)
    place.module.cuda_pack_mask(there.data_ptr(), words.data_ptr(), *sizes, *place.queue)
    place.module.cuda_unpack_mask(words.data_ptr(), back.data_ptr(), *sizes, *place.queue)
    place.module.cuda_popcount(words.data_ptr(), words.numel(), total.data_ptr(), *place.queue)
    assert torch.equal(words.cpu(), want)
    assert torch.equal(back.cpu(), mask)
    assert int(total) == int(mask.sum())


def test_mask_counts(place: Place) -> None:
    # More masks than one launch takes, empty ones first, last and between, whole blocks and rests, aligned and not.
    sizes = [0, 1, 5, 4095, 4096, 4097, 0, 100_003, 3, 40_960] * 25 + [0]
    info = torch.iinfo(torch.int32)
    before, after = ([torch.randint(info.min, info.max, (n,), dtype=torch.int32) for n in sizes] for _ in range(2))
    want = torch.tensor([[int(ops.popcount(w)) for w in (b, a, b & a)] for b, a in zip(before, after, strict=True)])
    for skip in (0, 1, 4):
        there = [
            [torch.cat([w.new_zeros(skip), w]).to(place.device)[skip:] for w in group] for group in (before, after)
        ]
        counts = torch.full((len(sizes) + 1, 3), -7, device=place.device)
        pointers = [[w.data_ptr() for w in group] for group in there]
        place.module.cuda_mask_counts(*pointers, sizes, counts.data_ptr(), *place.queue)
        assert torch.equal(counts[:-1].cpu(), want) and counts[-1].tolist() == [-7] * 3


@pytest.mark.gpu
def test_replayed_counts_start_from_zero() -> None:
    words, counts = torch.full((9000,), -1, dtype=torch.int32, device="cuda"), torch.zeros(1, 3, device="cuda").long()

    def run() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        pointers, device = [words.data_ptr()], torch.cuda.current_device()
        _C.cuda_mask_counts(pointers, pointers, [9000], counts.data_ptr(), device, stream)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for value in (1, 3):
        words.fill_(value)
        graph.replay()
        assert counts.tolist() == [[9000 * (1 if value == 1 else 2)] * 3]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [
        ("float32", "float32"),
        ("float64", "float64"),
        ("bfloat16", "bfloat16"),
        ("float32", "bfloat16"),
        ("float32", "float16"),
    ],
)
def test_mask_weights(dtype: str, out_dtype: str, channels_last: bool, place: Place) -> None:
    shapes = [(8, 5, 3, 3), (4, 16, 1, 2), (64, 64, 3, 3)] if channels_last else [*SHAPES] * 7
    form = torch.channels_last if channels_last else torch.contiguous_format
    masks = [torch.rand(shape) < 0.5 for shape in shapes]
    weights = [torch.randn(shape).to(getattr(torch, dtype)).to(memory_format=form) for shape in shapes]
    for weight, mask in zip(weights, masks, strict=True):
        weight[~mask] = torch.inf
    there, words = [w.to(place.device) for w in weights], [packed(mask).to(place.device) for mask in masks]
    outs = [torch.ones_like(weight, dtype=getattr(torch, out_dtype)) for weight in there]
    pointers = [[tensor.data_ptr() for tensor in group] for group in (there, words, outs)]
    rows, cols = ([layout(shape)[i] for shape in shapes] for i in (0, 1))
    spatial = [shape[2] * shape[3] for shape in shapes] if channels_last else []
    codes = _C.dtypes[dtype], _C.dtypes[out_dtype]
    place.module.cuda_mask_weights(*pointers, rows, cols, *codes, spatial, *place.queue)
    for out, weight, mask in zip(outs, weights, masks, strict=True):
        assert torch.equal(out.cpu(), torch.where(mask, weight, 0.0).to(out.dtype))


@pytest.mark.gpu
def test_graph_replay_sees_new_weights() -> None:
    mask = torch.rand(64, 100) < 0.5
    weight, words = torch.randn(64, 100, device="cuda"), packed(mask).cuda()
    out = torch.empty_like(weight)

    def run() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        pointers = [weight.data_ptr()], [words.data_ptr()], [out.data_ptr()]
        _C.cuda_mask_weights(*pointers, [64], [100], 0, 0, [], torch.cuda.current_device(), stream)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    weight.mul_(2)
    graph.replay()
    assert torch.equal(out, torch.where(mask.cuda(), weight, 0.0))
