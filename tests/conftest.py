# SPDX-License-Identifier: Apache-2.0
"""What all tests share: one clear error without an installed package, fixed random seeds, skips without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

try:
    import torch

    import sparsekit.kernels  # noqa: F401  (exists only where the folder mapping of setup.py is in force)
except ModuleNotFoundError as error:
    MISSING: str | None = str(error)
else:
    MISSING = None

try:
    from hypothesis import settings
except ModuleNotFoundError:  # GPU tests do without it, so that they run where nothing can be installed
    pass
else:
    # Examples are the same in every run, and a slow machine is not a failure.
    settings.register_profile("sparsekit", deadline=None, derandomize=True)
    settings.load_profile("sparsekit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="tests/test_soak.py: 2,000 cycles in place of 200")


def pytest_configure(config: pytest.Config) -> None:
    if MISSING is not None:
        raise pytest.UsageError(f"{MISSING}: install the package first: pip install -e '.[test]'")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """The commands set the number of threads, for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
