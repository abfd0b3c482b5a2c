# SPDX-License-Identifier: Apache-2.0
"""Settings of Sphinx: `make docs` writes docs/_build/html."""

from __future__ import annotations

import sparsekit

project = "sparsekit"
author = "the sparsekit developers"
copyright = "the sparsekit developers"
release = version = sparsekit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"sparsekit {version}"
exclude_patterns = ["_build", "examples"]
myst_heading_anchors = 4
# Pages are read on their own too, where they link to files of the repository; examples are not pages.
suppress_warnings = ["myst.xref_missing"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

_SECTIONS = ("Args:", "Returns:", "Raises:", "Attributes:", "Metrics:", "Yields:", "Example:")


def _plain_text(lines: list[str]) -> list[str]:
    """Docstrings are written to be read in a terminal: their |x| and m * h are no markup, their hanging lines are lists."""
    safe = [line.replace("\\", "\\\\").replace("|", r"\|").replace("*", r"\*") for line in lines]
    found: list[str] = []
    block: list[str] = []
    for line in [*safe, ""]:
        if line.strip():
            block.append(line)
            continue
        hanging = any(a[:1] != " " and b[:1] == " " for a, b in zip(block, block[1:], strict=False))
        if hanging and block[0] not in _SECTIONS:
            block = ["  " + part.strip() if part[:1] == " " else "- " + part for part in block]
        found += [*block, ""]
        block = []
    return found


def setup(app: object) -> None:
    """Read docstrings as plain text, before napoleon finds their sections."""
    app.connect(  # type: ignore[attr-defined]
        "autodoc-process-docstring",
        lambda app, what, name, obj, options, lines: lines.__setitem__(slice(None), _plain_text(lines)),
        priority=100,
    )
