# SPDX-License-Identifier: Apache-2.0
"""Pruning libraries asked the same questions: ``python -m sparsekit.benchmarks.peers``."""
