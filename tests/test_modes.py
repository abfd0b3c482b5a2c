# SPDX-License-Identifier: Apache-2.0
"""Modes come back, each its own, whatever happens within."""

from __future__ import annotations

import pytest
from torch import nn

from sparsekit.modes import kept_modes


def test_every_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    assert True in before and False in before
    with kept_modes(model):
        model.train()
        model[0].eval()
    assert [module.training for module in model.modules()] == before
    with pytest.raises(KeyError), kept_modes(model):
        model.eval()
        raise KeyError
    assert [module.training for module in model.modules()] == before
