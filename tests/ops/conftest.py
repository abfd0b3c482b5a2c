# SPDX-License-Identifier: Apache-2.0
"""Shows memory that an op forgot to write."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan(request: pytest.FixtureRequest) -> Iterator[None]:
    # Deterministic mode fills what torch.empty returns with NaN (floats) or the largest number (ints); on a GPU it would
    # also refuse cuBLAS calls.
    torch.use_deterministic_algorithms("gpu" not in request.keywords)
    yield
    torch.use_deterministic_algorithms(False)
