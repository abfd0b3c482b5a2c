# SPDX-License-Identifier: Apache-2.0
"""Which selections are benchmarked, and what their scores hold."""

from __future__ import annotations

import pytest
import torch

from sparsekit.benchmarks import topk_problems
from sparsekit.benchmarks.topk_problems import TopkProblem, all_problems, choose_problems


def names(device: str = "cpu", **options: object) -> list[str]:
    return [problem.name for problem in choose_problems(device, **options)]  # pyright: ignore[reportArgumentType]


def problem(contents: str, dtype: str = "float32", sparsity: float = 0.8) -> TopkProblem:
    return TopkProblem("x", ((300, 40), (0,), (3000,)), dtype, contents, sparsity)


def test_names_are_unique_and_say_what_is_kept() -> None:
    found = [problem.name for problem in all_problems()]
    assert len(set(found)) == len(found) == 5 * 2 * 4 * 5 + 6 * 2 * 5
    assert {name.rsplit("/", 1)[1] for name in found} == {"5%", "20%", "50%", "80%", "95%"}


def test_sets() -> None:
    quick, full, large = names(), names(full=True), names(large=True)
    assert set(quick) < set(full) < set(large) == {problem.name for problem in all_problems()}
    assert max(problem.numel for problem in choose_problems("cpu")) == 25_557_032
    assert {name.split("/")[0] for name in large} - {name.split("/")[0] for name in full} == {"1e9", "transformer1b"}
    assert names("cuda") == quick and names("cuda", full=True) == large
    assert {name.split("/")[0] for name in quick} == {
        *("1e5", "1e6", "1e7"),
        *("resnet18", "resnet20", "resnet50", "vgg16", "resnet50-161"),
    }


def test_only() -> None:
    assert names(only="1e7/*") == ["1e7/float32/normal/20%", "1e7/bfloat16/normal/20%"]
    assert names(large=True, only="1e9/bfloat16/equal/9*") == ["1e9/bfloat16/equal/95%"]
    expected = (
        r"bench topk: only: expected a glob that matches a problem of the quick set on cpu, such as .*, got '1E7/\*'"
    )
    with pytest.raises(ValueError, match=expected):
        choose_problems("cpu", only="1E7/*")
    with pytest.raises(
        ValueError, match="of the full set on cpu, such as 'resnet50-161/bfloat16/normal/95%', got '1e9/"
    ):
        choose_problems("cpu", full=True, only="1e9/*")


@pytest.mark.parametrize(("sparsity", "kept"), [(0.95, 750), (0.8, 3000), (0.5, 7500), (0.2, 12000), (0.05, 14250)])
def test_counts(sparsity: float, kept: int) -> None:
    found = problem("normal", sparsity=sparsity)
    assert (found.numel, found.kept, found.kept_fraction) == (15_000, kept, kept / 15_000)


def test_at_least_one_is_kept() -> None:
    assert TopkProblem("x", ((3,),), "float32", "normal", 0.95).kept == 1


@pytest.mark.parametrize("dtype", topk_problems.DTYPES)
@pytest.mark.parametrize("contents", topk_problems.CONTENTS)
def test_scores(contents: str, dtype: str) -> None:
    scores, again = problem(contents, dtype).scores("cpu"), problem(contents, dtype).scores("cpu")
    assert [tuple(s.shape) for s in scores] == [(300, 40), (0,), (3000,)]
    assert all(s.dtype == topk_problems.DTYPES[dtype] and torch.equal(s, t) for s, t in zip(scores, again, strict=True))
    flat = torch.cat([s.reshape(-1) for s in scores]).float()
    if contents == "equal":
        assert flat.unique().tolist() == [0.5]
    elif contents == "two":
        assert flat.abs().unique().tolist() == [1, 2] and 0.45 < (flat.abs() == 2).float().mean() < 0.55
    elif contents == "zeros":
        zeros = flat == 0
        assert 0.88 < zeros.float().mean() < 0.92 and 0.4 < flat[zeros].signbit().float().mean() < 0.6
        assert len(flat[~zeros].unique()) > 300
    else:
        assert abs(float(flat.mean())) < 0.05 and 0.95 < float(flat.std()) < 1.05
