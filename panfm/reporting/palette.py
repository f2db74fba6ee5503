"""The colours of the reports: one per organ, the same in every figure and every run, and never the only carrier.

Paul Tol's muted scheme (personal.sron.nl/~pault) can be told apart with the usual colour-vision deficiencies. What a
colour says is always said a second way: by a panel's title, a marker's shape, a letter or a dash.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

from panfm.organs import SEVEN_ORGANS

INK = "#1f2933"
MUTED = "#6b7785"
GRID = "#e3e7ec"
ACCENT = "#1f5f8b"
"""Sites and shared groups: whatever is not an organ."""

_SEVEN = ("#332288", "#CC6677", "#8A8A2B", "#882255", "#117733", "#AA4499", "#2F8F82")
_FURTHER = ("#5B8FC9", "#B07A1E", "#661100", "#4F6D8C", "#7A7A7A")

OUTCOMES: dict[str, tuple[str, str]] = {
    "accepted": ("#cfe3f1", ""),
    "refused": ("#ddcc77", "R"),
    "late": ("#c9a0dc", "L"),
    "overdue": ("#e0c8ea", "A"),
    "left_out": ("#eba77f", "O"),
    "failed": ("#e98c98", "F"),
    "no answer": ("#b9c0c8", "?"),
}
"""What became of a task: a fill and a letter, so that it reads without colour too."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
"""Site markers, by the place of the site in the alphabet."""


def organ_colour(organ: str, organs: Sequence[str]) -> str:
    """The organ's own colour; organs beyond the seven take further ones by their place in the study, which repeat."""
    if organ in SEVEN_ORGANS:
        return _SEVEN[SEVEN_ORGANS.index(organ)]
    others = [name for name in organs if name not in SEVEN_ORGANS]
    return _FURTHER[others.index(organ) % len(_FURTHER)] if organ in others else ACCENT
