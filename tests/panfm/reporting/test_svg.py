"""An inline figure is small, stands alone, keeps its words and comes out the same."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from panfm.reporting.svg import house_style, inline_svg, shortened


def drawn(name: str, title: str = "title") -> str:
    with house_style():
        figure = Figure(figsize=(3, 2))
        axis = figure.subplots()
        axis.plot([1, 2, 3], [1 / 3, 2 / 3, 1 / 7], marker="o")
        axis.set_title(title)
        return inline_svg(figure, name, 'a "figure" <of> one line')


def test_equal_figures_give_equal_text_and_a_name_of_their_own() -> None:
    assert drawn("one") == drawn("one")
    first, second = (set(re.findall(r'id="([^"]+)"', drawn(name))) for name in ("one", "two"))
    assert first
    assert not first & second


def test_words_survive_as_words_and_geometry_is_rounded() -> None:
    root = ElementTree.fromstring(drawn("one", title="$x$ <b> 0.123456789"))
    assert "$x$ <b> 0.123456789" in [element.text for element in root.iter("text")]
    assert root.attrib["aria-label"] == 'a "figure" <of> one line'
    assert not [e for e in root.iter() if re.search(r"\.\d{3}", e.attrib.get("d", ""))]


def test_nothing_points_outside() -> None:
    assert "http" not in drawn("one")
    assert "<metadata" not in drawn("one")


def test_names_are_cut_and_cleaned() -> None:
    assert shortened("x" * 30, 10) == "x" * 9 + "…"
    assert shortened("a\x00b") == "a�b"
