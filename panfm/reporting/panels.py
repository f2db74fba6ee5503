"""Small multiples over rounds: one panel per organ, site or group, all on the same axes, so that the eye can compare.

With twenty sites no palette can tell lines apart, but twenty small panels with a name above each can be read. A panel
is plain data (lines, a band, a reference); drawing it is one function.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from panfm.reporting.history import Series
from panfm.reporting.palette import MUTED
from panfm.reporting.svg import inline_svg, shortened

WIDTH_INCHES = 9.6
_LEGEND_COLUMNS = 5
_MOST_POINTS = 120
"""Points of one line; more cannot be seen in a panel and only make the file large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series in a panel."""

    series: Series
    colour: str
    width: float = 1.8
    dashed: bool = False
    marker: str = ""
    """Drawn at the last point: which site a thin line belongs to."""
    label: str = ""
    """In the legend below the figure; equal labels stand there once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One small plot over rounds."""

    title: str
    colour: str
    lines: tuple[Line, ...]
    band: tuple[Series, Series] | None = None
    """Lowest and highest of the sites, where they are too many for a line each."""

    @property
    def empty(self) -> bool:
        """True when there is nothing to draw."""
        return not any(line.series for line in self.lines)


def thinned(series: Series, most: int = _MOST_POINTS) -> tuple[list[int], list[float]]:
    """Rounds and values of at most that many points, evenly spaced, the first and the last among them."""
    rounds = sorted(series)
    if len(rounds) > most:
        rounds = [rounds[round(i * (len(rounds) - 1) / (most - 1))] for i in range(most)]
    return rounds, [series[number] for number in rounds]


def small_multiples(
    panels: Sequence[Panel],
    name: str,
    description: str,
    *,
    rounds: Sequence[int],
    reference: float | None = None,
    limits: tuple[float | None, float | None] = (None, None),
) -> Markup:
    """The panels in a grid on common axes; empty markup when none has anything to draw.

    Args:
        rounds: every round of the run, so that a site that fell silent shows a line that ends.
        reference: a value at which a fine dashed line is drawn in every panel.
        limits: smallest and largest value of the axis; None leaves that end to the data.
    """
    shown = [panel for panel in panels if not panel.empty]
    if not shown:
        return Markup("")
    columns = _balanced_columns(len(shown))
    rows = math.ceil(len(shown) / columns)
    legend = _legend(shown)
    legend_rows = math.ceil(len(legend) / _LEGEND_COLUMNS)
    width = WIDTH_INCHES * columns / max(columns, 3)
    figure, axes = panel_grid(rows, columns, width=width, panel_height=1.1, bottom=0.42 + 0.2 * legend_rows)
    for axis, panel in zip(axes, shown, strict=False):
        _draw(axis, panel, reference)
    _label_rounds(axes, len(shown), columns)
    axes[0].set_xlim(*_round_limits(rounds))
    axes[0].set_ylim(*_value_limits(axes[0].get_ylim(), limits))
    few = len(set(rounds)) <= 6
    axes[0].xaxis.set_major_locator(FixedLocator(sorted(set(rounds))) if few else MaxNLocator(5, integer=True))
    axes[0].yaxis.set_major_locator(MaxNLocator(4))
    _draw_legend(figure, legend)
    return inline_svg(figure, name, description)


def panel_grid(
    rows: int,
    columns: int,
    *,
    width: float,
    panel_height: float,
    left: float = 0.45,
    top: float = 0.26,
    bottom: float = 0.4,
    gaps: tuple[float, float] = (0.2, 0.38),
    share: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row, with margins in inches.

    Margins are stated and not found by matplotlib's layout engine: that one draws every figure several times, and its
    answer depends on fonts that the reader's browser does not use.
    """
    right = 0.12
    height = top + rows * panel_height + (rows - 1) * gaps[1] + bottom
    panel_width = (width - left - right - (columns - 1) * gaps[0]) / columns
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, sharex=share, sharey=True, squeeze=False).ravel()
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=gaps[0] / panel_width,
        hspace=gaps[1] / panel_height,
    )
    return figure, list(axes)


def _balanced_columns(num_panels: int) -> int:
    """Three to five columns, whichever leaves the fewest empty places; four when they are equal."""
    if num_panels < 4:
        return max(2, num_panels)
    return min((4, 5, 3), key=lambda columns: -num_panels % columns)


def _label_rounds(axes: Sequence[Axes], num_shown: int, columns: int) -> None:
    """Ticks and a word below the lowest panel of each column; panels that nobody needs go away."""
    for place, axis in enumerate(axes):
        if place >= num_shown:
            axis.set_visible(False)
        elif place + columns >= num_shown:
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("round", fontsize=7, labelpad=1)


def _draw(axis: Axes, panel: Panel, reference: float | None) -> None:
    axis.set_title(shortened(panel.title), loc="left", fontsize=8.5, fontweight="bold", color=panel.colour)
    if reference is not None:
        axis.axhline(reference, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    if panel.band is not None:
        low, high = panel.band
        common = {number: high[number] for number in low if number in high}
        numbers, highest = thinned(common)
        axis.fill_between(numbers, [low[n] for n in numbers], highest, color=panel.colour, alpha=0.18, linewidth=0)
    for line in panel.lines:
        _draw_line(axis, line)


def _draw_line(axis: Axes, line: Line) -> None:
    rounds, values = thinned(line.series)
    if not rounds:
        return
    axis.plot(rounds, values, color=line.colour, linewidth=line.width, linestyle="--" if line.dashed else "-")
    if line.marker or len(rounds) == 1:  # a single round is a point, and a line of one point cannot be seen
        shape, size = (line.marker, 3.6) if line.marker else ("_" if line.dashed else "o", 3.5 + line.width)
        axis.plot(rounds[-1:], values[-1:], marker=shape, color=line.colour, markersize=size, clip_on=False, zorder=4)


def _round_limits(rounds: Sequence[int]) -> tuple[float, float]:
    low, high = min(rounds, default=1), max(rounds, default=1)
    pad = max(0.03 * (high - low), 0.15 if high > low else 0.5)
    return low - min(pad, 0.7), high + pad  # there is no round 0, so the axis shows none


def _value_limits(drawn: tuple[float, float], wanted: tuple[float | None, float | None]) -> tuple[float, float]:
    low = drawn[0] if wanted[0] is None else wanted[0]
    high = drawn[1] + 0.05 * abs(drawn[1] - low) if wanted[1] is None else wanted[1]
    return (low, high) if high > low else (low, low + 1)


def _legend(panels: Sequence[Panel]) -> dict[str, Line]:
    """Label -> a line to show it by: first what has no marker (the mean, a reference), then sites by the alphabet."""
    labelled = {line.label: line for panel in panels for line in panel.lines if line.label and line.series}
    if len(labelled) < 2:
        return {}  # what can be only one thing needs no legend
    return dict(sorted(labelled.items(), key=lambda item: (item[1].marker != "", item[0] if item[1].marker else "")))


def _draw_legend(figure: Figure, labelled: Mapping[str, Line]) -> None:
    if not labelled:
        return
    handles = [
        Line2D(
            [],
            [],
            color=MUTED,
            marker=line.marker,
            linewidth=line.width,
            linestyle="--" if line.dashed else "-",
            markersize=4,
        )
        for line in labelled.values()
    ]
    names = [shortened(label, 32) for label in labelled]
    columns = min(len(names), _LEGEND_COLUMNS)
    figure.legend(handles, names, loc="lower center", ncols=columns, handlelength=2.2, borderaxespad=0.1)
