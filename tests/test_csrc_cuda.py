# SPDX-License-Identifier: Apache-2.0
"""The CUDA part of the compiled module: it compiles without spills; on a device it agrees with the CPU part."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from packed import layout, new_words

from sparsekit import _C, ops

SOURCES = sorted((Path(__file__).parents[1] / "csrc").glob("*.cu"))
NVCC = shutil.which("nvcc", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
SHAPES = ((3, 1), (2, 31), (4, 32), (7, 33), (5, 65), (64, 64, 3, 3), (0, 4), (600, 1030))


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_without_spills(source: Path, tmp_path: Path) -> None:
    flags = ["-O3", "-std=c++17", "-arch=sm_90a", "-Xptxas", "-v", "-c", str(source), "-o", str(tmp_path / "object.o")]
    done = subprocess.run([str(NVCC), *flags], capture_output=True, text=True, check=True)
    spills = [line for line in done.stderr.splitlines() if "spill" in line]
    assert spills
    assert all(" 0 bytes spill stores, 0 bytes spill loads" in line for line in spills)


@pytest.fixture
def queue() -> tuple[int, int]:
    """(device index, stream) of the current CUDA stream, where the module has CUDA code."""
    if not _C.has_cuda:
        pytest.skip("sparsekit._C was built without nvcc")
    return torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream


def packed(mask: torch.Tensor) -> torch.Tensor:
    words = new_words(mask.shape)
    _C.pack_mask(mask.data_ptr(), words.data_ptr(), *layout(mask.shape))
    return words


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_pack_unpack_popcount(shape: tuple[int, ...], queue: tuple[int, int]) -> None:
    mask = torch.rand(shape) < 0.3
    want, sizes = packed(mask), layout(shape)
    there, back = mask.cuda(), torch.ones(shape, dtype=torch.bool, device="cuda")
    words, total = torch.full_like(want, -1, device="cuda"), torch.full((), -1, dtype=torch.int64, device="cuda")
    _C.cuda_pack_mask(there.data_ptr(), words.data_ptr(), *sizes, *queue)
    _C.cuda_unpack_mask(words.data_ptr(), back.data_ptr(), *sizes, *queue)
    _C.cuda_popcount(words.data_ptr(), words.numel(), total.data_ptr(), *queue)
    assert torch.equal(words.cpu(), want)
    assert torch.equal(back.cpu(), mask)
    assert int(total) == int(mask.sum())


@pytest.mark.gpu
def test_mask_counts(queue: tuple[int, int]) -> None:
    # More masks than one launch takes, empty ones first, last and between, whole blocks and rests, aligned and not.
    sizes = [0, 1, 5, 4095, 4096, 4097, 0, 100_003, 3, 40_960] * 25 + [0]
    info = torch.iinfo(torch.int32)
    before, after = ([torch.randint(info.min, info.max, (n,), dtype=torch.int32) for n in sizes] for _ in range(2))
    want = torch.tensor([[int(ops.popcount(w)) for w in (b, a, b & a)] for b, a in zip(before, after, strict=True)])
    for skip in (0, 1, 4):
        there = [[torch.cat([w.new_zeros(skip), w]).cuda()[skip:] for w in group] for group in (before, after)]
        counts = torch.full((len(sizes) + 1, 3), -7, device="cuda")
        pointers = [[w.data_ptr() for w in group] for group in there]
        _C.cuda_mask_counts(*pointers, sizes, counts.data_ptr(), *queue)
        assert torch.equal(counts[:-1].cpu(), want) and counts[-1].tolist() == [-7] * 3


@pytest.mark.gpu
def test_replayed_counts_start_from_zero(queue: tuple[int, int]) -> None:
    words, counts = torch.full((9000,), -1, dtype=torch.int32, device="cuda"), torch.zeros(1, 3, device="cuda").long()

    def run() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        _C.cuda_mask_counts([words.data_ptr()], [words.data_ptr()], [9000], counts.data_ptr(), queue[0], stream)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for value in (1, 3):
        words.fill_(value)
        graph.replay()
        assert counts.tolist() == [[9000 * (1 if value == 1 else 2)] * 3]


@pytest.mark.gpu
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
def test_mask_weights(dtype: str, out_dtype: str, channels_last: bool, queue: tuple[int, int]) -> None:
    shapes = [(8, 5, 3, 3), (4, 16, 1, 2), (64, 64, 3, 3)] if channels_last else [*SHAPES] * 7
    form = torch.channels_last if channels_last else torch.contiguous_format
    masks = [torch.rand(shape) < 0.5 for shape in shapes]
    weights = [torch.randn(shape).to(getattr(torch, dtype)).to(memory_format=form) for shape in shapes]
    for weight, mask in zip(weights, masks, strict=True):
        weight[~mask] = torch.inf
    there, words = [weight.cuda() for weight in weights], [packed(mask).cuda() for mask in masks]
    outs = [torch.ones_like(weight, dtype=getattr(torch, out_dtype)) for weight in there]
    pointers = [[tensor.data_ptr() for tensor in group] for group in (there, words, outs)]
    rows, cols = ([layout(shape)[i] for shape in shapes] for i in (0, 1))
    spatial = [shape[2] * shape[3] for shape in shapes] if channels_last else []
    _C.cuda_mask_weights(*pointers, rows, cols, _C.dtypes[dtype], _C.dtypes[out_dtype], spatial, *queue)
    for out, weight, mask in zip(outs, weights, masks, strict=True):
        assert torch.equal(out.cpu(), torch.where(mask, weight, 0.0).to(out.dtype))


@pytest.mark.gpu
def test_graph_replay_sees_new_weights(queue: tuple[int, int]) -> None:
    mask = torch.rand(64, 100) < 0.5
    weight, words = torch.randn(64, 100, device="cuda"), packed(mask).cuda()
    out = torch.empty_like(weight)

    def run() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        pointers = [weight.data_ptr()], [words.data_ptr()], [out.data_ptr()]
        _C.cuda_mask_weights(*pointers, [64], [100], 0, 0, [], queue[0], stream)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    weight.mul_(2)
    graph.replay()
    assert torch.equal(out, torch.where(mask.cuda(), weight, 0.0))
