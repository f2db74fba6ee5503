"""The figures of a model's evaluation; each is empty where there is nothing to draw. To be called within `house_style`."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from panfm.reporting.history import finite
from panfm.reporting.palette import ACCENT, INK, MUTED, organ_colour
from panfm.reporting.panels import WIDTH_INCHES, panel_grid
from panfm.reporting.record import ModelEvaluated
from panfm.reporting.svg import shortened

Values = Mapping[str, Any]

FIGURES = ("sweep", "organs", "noise", "labels", "sites")
"""Names of the figures, in the order in which they are read."""

_PROBES = {"linear probe": (ACCENT, "o"), "k-NN": ("#B07A1E", "s"), "presence alone": (MUTED, "D")}
"""Colour and marker of each probe of `panfm.evaluation.evaluate`."""
_OTHER = (INK, "x")


def evaluation_figures(event: ModelEvaluated) -> dict[str, tuple[Figure, str]]:
    """Name -> figure and its description for those who cannot see it; only those that have something to show."""
    made = {
        "sweep": (_sweep(event), "Mean and worst score by number of missing organs"),
        "organs": (_organs(event), "Attention share and Shapley share of each organ"),
        "noise": (_noise(event), "Attention to each organ as it is and as noise"),
        "labels": (_labels(event), "Area under the ROC curve of each label, by probe"),
        "sites": (_sites(event), "Score at each site"),
    }
    return {name: (figure, words) for name, (figure, words) in made.items() if figure is not None}


def _grouped(rows: Sequence[Values]) -> dict[tuple[str, str], list[Values]]:
    """(target, probe) -> rows."""
    groups: dict[tuple[str, str], list[Values]] = {}
    for row in rows:
        groups.setdefault((str(row.get("target")), str(row.get("probe"))), []).append(row)
    return groups


def _panels(names: Sequence[str], height: float, left: float = 0.5, bottom: float = 0.5) -> tuple[Figure, list[Axes]]:
    """One panel a name, at most two beside each other, titled."""
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    width = WIDTH_INCHES * (0.55 if columns == 1 else 1)
    figure, axes = panel_grid(
        rows, columns, width=width, panel_height=height, left=left, bottom=bottom, gaps=(0.3, 0.62)
    )
    for axis, name in zip(axes, names, strict=False):
        axis.set_title(shortened(name, 60), loc="left", fontsize=8.5, fontweight="bold", color=INK)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    return figure, axes


def _numbers(rows: Sequence[Values], name: str) -> list[float]:
    """The column, NaN where a value is missing: a line then has a gap there."""
    found = (finite(row.get(name)) for row in rows)
    return [float("nan") if value is None else value for value in found]


def _sweep(event: ModelEvaluated) -> Figure | None:
    groups = _grouped(event.sweep)
    if not groups:
        return None
    figure, axes = _panels([", ".join(pair) for pair in groups], height=1.9)
    for axis, rows in zip(axes, groups.values(), strict=False):
        missing = _numbers(rows, "missing")
        axis.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axis.fill_between(missing, _numbers(rows, "low"), _numbers(rows, "high"), color=ACCENT, alpha=0.18, linewidth=0)
        axis.plot(missing, _numbers(rows, "mean"), color=ACCENT, marker="o", markersize=4, label="mean over sets")
        axis.plot(
            missing, _numbers(rows, "worst"), color=INK, marker="v", markersize=4, linestyle="--", label="worst set"
        )
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("organs missing", fontsize=7, labelpad=1)
    axes[0].set_ylabel("AUROC", fontsize=7)
    axes[0].legend(loc="best")
    return figure


def _shares(values: Sequence[float]) -> list[float]:
    """What helps, as shares that sum to 1; what harms is 0."""
    clipped = [value if value > 0 else 0.0 for value in values]
    total = sum(clipped)
    return [value / total if total else 0.0 for value in clipped]


def _organs(event: ModelEvaluated) -> Figure | None:
    """For each organ a bar of its attention and one of its share of the Shapley values."""
    groups = _grouped([row for row in event.contributions if row.get("organ") in event.organs])
    attention = {row.get("organ"): finite(row.get("share")) or 0.0 for row in event.attention}
    if not groups:
        return None
    figure, axes = _panels([", ".join(pair) for pair in groups], height=0.24 * len(event.organs) + 0.2, left=0.8)
    for axis, rows in zip(axes, groups.values(), strict=False):
        for place, (row, share) in enumerate(zip(rows, _shares(_numbers(rows, "shapley")), strict=True)):
            colour = organ_colour(str(row.get("organ")), event.organs)
            axis.barh(place - 0.19, attention.get(row.get("organ"), 0.0), height=0.34, color=colour, alpha=0.35)
            axis.barh(place + 0.19, share, height=0.34, color=colour)
        axis.axvline(1 / len(event.organs), color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("share: attention (pale), Shapley (full)", fontsize=7, labelpad=1)
    _name_rows(axes, event.organs)
    return figure


def _noise(event: ModelEvaluated) -> Figure | None:
    rows = [row for row in event.attention if row.get("organ") in event.organs]
    if not rows:
        return None
    figure, axes = _panels(
        ["Attention share: the scan (●) and noise in its place (○)"], height=0.22 * len(rows) + 0.2, left=0.8
    )
    for place, row in enumerate(rows):
        scan, noise = finite(row.get("share")), finite(row.get("noise_share"))
        if scan is None or noise is None:
            continue
        colour = organ_colour(str(row.get("organ")), event.organs)
        axes[0].plot([scan, noise], [place, place], color=colour, linewidth=1.2)
        axes[0].plot([scan], [place], "o", color=colour, markersize=5)
        axes[0].plot([noise], [place], "o", color=colour, markersize=5, markerfacecolor="white")
    _name_rows(axes, [str(row.get("organ")) for row in rows])
    return figure


def _labels(event: ModelEvaluated) -> Figure | None:
    rows = [row for row in event.scores if row.get("metric") == "AUROC"]
    targets = list(dict.fromkeys(str(row.get("target")) for row in rows))
    if not rows:
        return None
    figure, axes = _panels(["AUROC of each label"], height=0.17 * len(targets) + 0.2, left=1.7, bottom=0.62)
    axis = axes[0]
    axis.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    for probe in dict.fromkeys(str(row.get("probe")) for row in rows):
        own = [row for row in rows if row.get("probe") == probe]
        colour, marker = _PROBES.get(probe, _OTHER)
        places = [targets.index(str(row.get("target"))) for row in own]
        if probe == "linear probe":
            axis.hlines(places, _numbers(own, "low"), _numbers(own, "high"), color=colour, linewidth=1.4, alpha=0.6)
        axis.plot(_numbers(own, "value"), places, marker, color=colour, markersize=3.8, label=probe)
    _name_rows(axes, targets)
    figure.legend(loc="lower center", ncols=3, borderaxespad=0.1)
    return figure


def _sites(event: ModelEvaluated) -> Figure | None:
    rows = [row for row in event.sites if row.get("subjects") is not None]
    targets = list(dict.fromkeys(str(row.get("target")) for row in rows))
    sites = list(dict.fromkeys(str(row.get("site")) for row in rows))
    if not rows:
        return None
    figure, axes = _panels(targets, height=0.2 * len(sites) + 0.2, left=1.1)
    for axis, target in zip(axes, targets, strict=False):
        own = [row for row in rows if row.get("target") == target]
        places = [sites.index(str(row.get("site"))) for row in own]
        axis.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axis.hlines(places, _numbers(own, "low"), _numbers(own, "high"), color=ACCENT, linewidth=1.4, alpha=0.6)
        axis.plot(_numbers(own, "value"), places, "o", color=ACCENT, markersize=4.5)
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("AUROC", fontsize=7, labelpad=1)
    _name_rows(axes, sites)
    return figure


def _name_rows(axes: Sequence[Axes], names: Sequence[str]) -> None:
    """Names beside the rows, the first on top; the panels share the axis."""
    axes[0].set_yticks(range(len(names)), [shortened(name, 30) for name in names])
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    for axis in axes:
        axis.grid(axis="y", visible=False)
