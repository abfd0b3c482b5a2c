# SPDX-License-Identifier: Apache-2.0
"""The package alone imports no trainer, and says which extra is missing."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

TRAINERS = ("transformers", "lightning", "pytorch_lightning", "accelerate", "tensorboard", "wandb")


def test_importing_and_using_the_package_imports_no_trainer() -> None:
    code = (
        "import sys, torch, sparsekit as sk\n"
        "m = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GRU(2, 2)); sk.sparsify(m); sk.finalize(m)\n"
        f"print([n for n in {TRAINERS} if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("name, packages", [("lightning", TRAINERS[1:3]), ("transformers", TRAINERS[:1])])
def test_a_missing_package_is_named(name: str, packages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for package in packages:
        for module in [m for m in sys.modules if m.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"sparsekit.integrations.{name}", raising=False)
    with pytest.raises(
        ImportError, match=rf"expected the package {name}, got none; pip install 'torch-sparsekit\[{name}\]'"
    ):
        importlib.import_module(f"sparsekit.integrations.{name}")
