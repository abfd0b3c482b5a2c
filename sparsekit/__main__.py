# SPDX-License-Identifier: Apache-2.0
"""``python -m sparsekit``: the command line."""

from __future__ import annotations

from sparsekit.cli import main

main()
