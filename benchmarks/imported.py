# SPDX-License-Identifier: Apache-2.0
"""Functions and objects of the user, named as "module:name" on the command line."""

from __future__ import annotations

import importlib
from typing import Any


def imported(where: str, spec: str) -> Any:
    """What "module:name" stands for; raises ValueError, which begins with ``where``, if there is no such thing."""
    module, _, name = spec.partition(":")
    if not module or module.startswith("."):
        raise ValueError(f"{where}: expected an importable module:function, got {spec!r}")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{where}: expected an importable module:function, got {spec!r}: {error}") from error
