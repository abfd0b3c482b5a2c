# SPDX-License-Identifier: Apache-2.0
"""The microbenchmarks of masked layers and of BiP's steps as suites of pytest-benchmark.

pytest benchmarks/suites.py --benchmark-only -k 'masked_conv2d and 8x256x14'

Each test times our function against all others by the protocol of timing.py; its ratio to the baseline is in the extra
information (``--benchmark-json``). On a GPU if there is one.
"""

from __future__ import annotations

from typing import Any

import torch

from sparsekit.benchmarks import bench_bilevel, bench_masked_conv2d, bench_masked_linear
from sparsekit.benchmarks.problems import NETWORK_SHAPES
from sparsekit.benchmarks.timing import PedanticBenchmark, compare_with_pytest
from sparsekit.nn import cached_weights, compacted_filters

OURS = "sparsekit"


def device() -> str:
    """Where the suites run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pytest_generate_tests(metafunc: Any) -> None:
    """One test for each case of a benchmark."""
    kind = metafunc.function.__name__.removeprefix("test_")
    if kind == "bilevel":
        found: list[Any] = [(network, case) for network in bench_bilevel.NETWORKS for case in bench_bilevel.CASES]
        names = [" ".join(pair) for pair in found]
    else:
        found = {"masked_linear": bench_masked_linear, "masked_conv2d": bench_masked_conv2d}[kind].cases(device())
        names = [case.name for case in found]
    metafunc.parametrize("case", found, ids=names)


def test_masked_linear(benchmark: PedanticBenchmark, case: bench_masked_linear.Case) -> None:
    """One layer against the same by PyTorch."""
    layers = bench_masked_linear.build(case, device())
    check = bench_masked_linear.make_check(case, layers)
    with cached_weights(torch.nn.ModuleList(layers.cached)):
        functions = bench_masked_linear.providers(case, layers)
        compare_with_pytest(benchmark, functions, subject=OURS, check=check, device=device())


def test_masked_conv2d(benchmark: PedanticBenchmark, case: bench_masked_conv2d.Case) -> None:
    """One convolution against the same by PyTorch."""
    layer = bench_masked_conv2d.build(case, device())
    check = bench_masked_conv2d.make_check(case, layer)
    with cached_weights(layer.cached), compacted_filters(layer.compacted):
        functions = bench_masked_conv2d.providers(case, layer)
        compare_with_pytest(benchmark, functions, subject=OURS, check=check, device=device())


def test_bilevel(benchmark: PedanticBenchmark, case: tuple[str, str]) -> None:
    """One op on all layers of a network against chains of PyTorch calls."""
    network, step = case
    layers = bench_bilevel.layers_of(NETWORK_SHAPES[network], device())
    bench_bilevel._check(step, layers)
    functions = bench_bilevel.CASES[step](layers)
    compare_with_pytest(benchmark, functions, subject=OURS, check=None, device=device())
