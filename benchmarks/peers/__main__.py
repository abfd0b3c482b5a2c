# SPDX-License-Identifier: Apache-2.0
"""``python -m sparsekit.benchmarks.peers``."""

from __future__ import annotations

from sparsekit.benchmarks.peers.table import main

if __name__ == "__main__":
    main()
