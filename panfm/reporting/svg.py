"""A matplotlib figure as a piece of a page: small, deterministic, and unable to reach out of the file.

matplotlib's own SVG carries a time stamp, a document type with a web address, six decimals and ids that clash when two
figures stand on one page. It is parsed, stripped and written anew, so that equal records give equal bytes.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from panfm.reporting.palette import GRID, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

_STYLE: dict[RcKeyType, Any] = {
    "svg.hashsalt": "panfm",
    "svg.fonttype": "none",  # text stays text: smaller, selectable, and read aloud
    "text.parse_math": False,  # a site may be called $x$
    "font.size": 8.0,
    "font.family": ["DejaVu Sans"],  # only to measure with (it is wider than the page's fonts); ships with matplotlib
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titley": 1.0,  # said, so that matplotlib does not search for it: half the time of a figure
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
}
_LONG_DECIMALS = re.compile(r"(\d+\.\d{2})\d+")
_REFERENCE = re.compile(r"#([\w-]+)")
_GEOMETRY = frozenset({"d", "transform", "x", "y", "width", "height", "points", "cx", "cy", "r"})


@contextmanager
def house_style() -> Iterator[None]:
    """Figures made inside look alike and come out the same on every machine with these versions."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # A name in another script is measured a little wrong; the reader's browser has the letters.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as one <svg> element, made within `house_style`.

    Args:
        name: prefix of the element's ids; unique on the page.
        description: what a person who cannot see the figure is told.
    """
    with io.StringIO() as text:
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=metadata)
        root = ElementTree.fromstring(text.getvalue())
    _strip(root)
    _rename_ids(root, name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    width_inches = figure.get_size_inches()[0]
    root.attrib.update(
        {"role": "img", "aria-label": description, "style": f"max-width:{round(width_inches * 1.15, 2)}in"}
    )
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # ElementTree has escaped every text and attribute


def shortened(name: str, longest: int = 22) -> str:
    """A name that fits beside an axis, and holds no character that an SVG may not hold."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return clean if len(clean) <= longest else f"{clean[: longest - 1]}…"


def _strip(element: ElementTree.Element) -> None:
    """Drop name spaces, metadata, document-wide styles and needless decimals."""
    element.tag = _local(element.tag)
    element.attrib = {_local(key): _rounded(_local(key), value) for key, value in element.attrib.items()}
    if element.attrib.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for child in list(element):
        if _local(child.tag) in ("metadata", "style"):
            element.remove(child)
        else:
            _strip(child)
    if element.tag not in ("text", "tspan"):
        element.text = element.text.strip() or None if element.text else None
    element.tail = None


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _rounded(key: str, value: str) -> str:
    if key == "style":
        return value.replace("font-family: 'DejaVu Sans'; ", "")  # the page's own font
    return " ".join(_LONG_DECIMALS.sub(r"\1", value).split()) if key in _GEOMETRY else value


def _rename_ids(root: ElementTree.Element, name: str) -> None:
    """Keep only the ids that something refers to, and make them the figure's own."""
    referring = ("href", "clip-path", "fill", "mask", "style")
    wanted = {
        found
        for element in root.iter()
        for key in referring
        if key != "style" or "url(" in element.attrib.get(key, "")
        for found in _REFERENCE.findall(element.attrib.get(key, ""))
    }
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in wanted:
            element.attrib["id"] = f"{name}-{own}"
        for key in ("href", "clip-path", "mask"):
            value = element.attrib.get(key, "")
            if value.startswith(("#", "url(#")):
                element.attrib[key] = value.replace("#", f"#{name}-", 1)
