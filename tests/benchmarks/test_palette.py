# SPDX-License-Identifier: Apache-2.0
"""However many methods there are, no two look alike."""

from __future__ import annotations

from sparsekit.benchmarks.reporting.palette import MARKERS, SERIES, look


def test_no_two_methods_look_alike() -> None:
    styles = [look(i) for i in range(64)]
    assert [style.colour for style in styles[:8]] == list(SERIES) and [s.marker for s in styles[:8]] == list(MARKERS)
    assert len({(style.colour, str(style.line)) for style in styles[:32]}) == 32
    assert len({(style.colour, style.marker) for style in styles}) == 64
    assert {style.line for style in styles[:8]} == {"-"} and styles[8].line != "-"
    assert [style.turn for style in styles[::8]] == list(range(8))
