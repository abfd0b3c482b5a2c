# SPDX-License-Identifier: Apache-2.0
"""doctor: facts that can be checked, JSON values only, and advice where something is missing."""

from __future__ import annotations

import json
import platform
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sparsekit as sk
from sparsekit import doctor, ops
from sparsekit.ops import schemas


def without_module() -> dict[str, Any]:
    return {"built": False, "cuda": False, "cpu_features": []}


def without_cuda() -> dict[str, Any]:
    return {"built": True, "cuda": False, "cpu_features": ["scalar"]}


def test_facts_are_true_and_json() -> None:
    facts = sk.diagnose()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["packages"]["torch-sparsekit"] == sk.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["native"] == ops.native_info()


def test_every_op_says_what_serves_it() -> None:
    served = sk.diagnose()["ops"]
    assert set(served) == set(schemas.OP_NAMES)
    assert all(set(by) == {"cpu", "cuda"} and all(by.values()) for by in served.values())


def test_a_package_that_is_missing_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "triton":
            raise doctor.importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    assert sk.diagnose()["packages"]["triton"] is None


def test_advice_without_the_compiled_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "native_info", without_module)
    (advice,) = sk.diagnose()["advice"]
    assert "sparsekit._C is missing" in advice and "C++17 compiler" in advice


@pytest.mark.parametrize("gpu, count", [(False, 0), (True, 1)])
def test_advice_without_cuda_code_only_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, count: int
) -> None:
    found = SimpleNamespace(name="Example 9000", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(ops, "native_info", without_cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(ops, "prove_all", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    facts = sk.diagnose()
    assert len(facts["advice"]) == count and all("nvcc" in line for line in facts["advice"])
    assert facts["gpus"] == [{"name": "Example 9000", "capability": "9.0", "memory_gib": 80.0}] * count


def test_no_advice_where_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "native_info", lambda: {"built": True, "cuda": True, "cpu_features": ["avx2"]})
    assert sk.diagnose()["advice"] == []
