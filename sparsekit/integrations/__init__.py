# SPDX-License-Identifier: Apache-2.0
"""Callbacks for other people's trainers: ``integrations.lightning`` and ``integrations.transformers``.

Nothing here is imported with the package; each module needs the trainer that it is for.
"""

from __future__ import annotations
