# SPDX-License-Identifier: Apache-2.0
"""Where the numbers of a group come from: what was compared, on which machine, with which source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from sparsekit.benchmarks.methods import known_method
from sparsekit.benchmarks.reporting.summary import Group
from sparsekit.benchmarks.reporting.wording import MISSING, count, sparsity_text


def subject(group: Group) -> str:
    """ "convnet on digits, 48.8 to 97.2 % sparsity, 5 seeds, 100 runs"."""
    config = group.config
    low, high = sparsity_text(group.sparsities[0]), sparsity_text(group.sparsities[-1])
    sparsity = low if low == high else f"{low.split()[0]} to {high}"
    parts = [f"{sparsity} sparsity", count(len(group.seeds), "seed"), count(len(group.runs), "finished run")]
    if "network" in config and "data" in config:
        parts.insert(0, f"{config['network']} on {PurePath(str(config['data'])).name}")
    if config.get("structure", "unstructured") != "unstructured":
        parts.insert(1, f"whole {config['structure']}s")
    return ", ".join(parts)


def stamp(group: Group) -> list[tuple[str, str]]:
    """Machine, versions, source and date of the runs."""
    return describe_environment([run.environment for run in group.runs])


def describe_environment(environments: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(name, value) for machine, versions, source and date in a few words each; every different value once."""
    found: dict[str, dict[str, None]] = {}
    for environment in environments:
        for name, value in _stamp(environment):
            found.setdefault(name, {})[value] = None
    return [(name, "; ".join(values)) for name, values in found.items()]


def _stamp(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    gpu, cpu = environment.get("gpu") or {}, environment.get("cpu") or {}
    if gpu.get("name"):
        yield "GPU", str(gpu["name"])
    if cpu.get("model"):
        threads = cpu.get("threads")
        yield "CPU", f"{cpu['model']}" + (f", {count(threads, 'thread')}" if threads else "")
    for package in ("torch", "triton", "sparsekit"):
        if environment.get(package):
            yield package, str(environment[package])
    git = environment.get("git") or {}
    if git.get("commit"):
        yield "source", f"{git['commit']}" + (" with changes" if git.get("dirty") else "")
    if environment.get("timestamp"):
        yield "date", str(environment["timestamp"])[:10]


def methods(group: Group) -> list[tuple[str, str]]:
    """(method, what it is) of every method that this package knows."""
    known = ((m, known_method(m)) for m in group.methods)
    return [(m, method.summary) for m, method in known if method is not None and method.summary]


def flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) of every leaf of a nested mapping, such as ("cpu threads", "8")."""
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name} ")
        elif isinstance(value, (list, tuple)):
            yield prefix + name, ", ".join(map(str, value)) or MISSING
        else:
            yield prefix + name, MISSING if value is None else str(value)
