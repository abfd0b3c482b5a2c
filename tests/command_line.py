# SPDX-License-Identifier: Apache-2.0
"""The command line, called in this process."""

from __future__ import annotations

from typing import Any

import pytest

testing = pytest.importorskip("typer.testing")

from sparsekit import cli  # noqa: E402


def run(*arguments: object, app: Any = cli.app) -> Any:
    """The finished command: exit_code, stdout, stderr. Raises what the command did not expect."""
    result = testing.CliRunner().invoke(app, [str(word) for word in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
