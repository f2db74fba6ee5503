"""The figures of the run report, each from the history alone; none of them shows a scan.

Every function returns one <svg>, or empty markup where the record holds nothing to draw; the page then says so.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from panfm.reporting import palette
from panfm.reporting.history import (
    ACCEPTED,
    RunHistory,
    Series,
    finite,
    held_out_series,
    organ_mean,
    organ_series,
    outcome,
    relative_loss,
    site_mean,
    site_series,
)
from panfm.reporting.panels import WIDTH_INCHES, Line, Panel, panel_grid, small_multiples
from panfm.reporting.probes import ProbeRow, by_question
from panfm.reporting.svg import inline_svg, shortened

_MOST_SITE_LINES = 6
"""Beyond this many sites in a panel their range is shaded instead."""
_MOST_COLUMNS = 60
"""Columns of the map of answers; of more rounds, several share one, which shows what went wrong in any of them."""
_MOST_RULES = 30
"""Columns between which white rules are drawn; between more they would be all that is seen."""
_MOST_PROBE_PANELS = 16
_ROW_INCHES = 0.2


def loss_figure(history: RunHistory) -> Markup:
    """Masked-patch loss of each site, with the loss of the best constant answer as reference."""
    return small_multiples(
        [
            Panel(
                title=site,
                colour=palette.ACCENT,
                lines=(
                    Line(
                        series=site_series(history, site, "collapse_loss"),
                        colour=palette.MUTED,
                        width=1.0,
                        dashed=True,
                        label="best constant answer (collapse)",
                    ),
                    Line(series=site_series(history, site, "loss_patch"), colour=palette.ACCENT, label="the model"),
                ),
            )
            for site in history.sites
        ],
        "loss",
        "Masked-patch loss of each site over rounds, beside the loss of the best constant answer",
        rounds=history.rounds,
    )


def organ_figure(
    history: RunHistory, metric: str, description: str, reference: float | None = None, highest: float | None = None
) -> Markup:
    """One panel per organ: the mean over its sites in bold, the sites thin with a marker, or their range."""
    return small_multiples(
        [_organ_panel(history, metric, organ) for organ in history.organs],
        metric.replace("_", "-"),
        description,
        rounds=history.rounds,
        reference=reference,
        limits=(0.0, highest),
    )


def entropy_figure(history: RunHistory) -> Markup:
    """Evenness of attention over organs: all sites, and each site that has subjects with several organs."""
    panels = [
        Panel(
            title=title,
            colour=colour,
            lines=(Line(series=series, colour=colour, width=width),),
        )
        for title, series, colour, width in (
            ("all sites", site_mean(history, "share_entropy"), palette.INK, 2.2),
            *((s, site_series(history, s, "share_entropy"), palette.ACCENT, 1.6) for s in history.sites),
        )
    ]
    description = "Evenness of attention over organs, over rounds, for all sites together and for each site"
    return small_multiples(panels, "entropy", description, rounds=history.rounds, limits=(0.0, 1.05), reference=1.0)


def movement_figure(history: RunHistory) -> Markup:
    """L2 norm of each group's averaged change, round by round."""
    moved: dict[str, Series] = {}
    for number, average in sorted(history.averages.items()):
        for group, norm in average.delta_norm.items():
            if (known := finite(norm)) is not None:
                moved.setdefault(group, {})[number] = known
    panels = [
        Panel(title=group, colour=colour, lines=(Line(series=moved.get(group, {}), colour=colour),))
        for group in history.groups
        for colour in (palette.organ_colour(group, history.organs),)
    ]
    description = "Size of the averaged change of each parameter group over rounds"
    return small_multiples(panels, "movement", description, rounds=history.rounds, limits=(0.0, None))


def answers_figure(history: RunHistory) -> Markup:
    """A map of sites by rounds: what became of each task, as a colour and a letter."""
    columns, sites = _bins(history.rounds), history.sites
    if not columns or not sites:
        return Markup("")
    rounds = [numbers[0] for numbers in columns]
    outcomes = [[_worst([outcome(history, n, site) for n in numbers]) for numbers in columns] for site in sites]
    colours = ["#ffffff", *(fill for fill, _ in palette.OUTCOMES.values()), palette.INK]
    places = {"": 0, **{name: place for place, name in enumerate(palette.OUTCOMES, start=1)}}
    codes = np.array([[places.get(word, len(colours) - 1) for word in row] for row in outcomes])
    left = _label_inches(sites)
    width = min(WIDTH_INCHES, max(5.5, left + 0.3 + 0.28 * len(rounds)))
    height = _ROW_INCHES * len(sites)
    figure, (axis,) = panel_grid(1, 1, width=width, panel_height=height, left=left, top=0.08, bottom=0.5)
    axis.imshow(codes, cmap=ListedColormap(colours), vmin=0, vmax=len(colours) - 1, aspect="auto", interpolation="none")
    for row, words in enumerate(outcomes):
        for column, word in enumerate(words):
            if letter := palette.OUTCOMES.get(word, ("", "" if word == "" else "!"))[1]:
                axis.text(column, row, letter, ha="center", va="center", fontsize=6.5, fontweight="bold")
    _map_axes(axis, rounds, sites)
    seen = [name for name in palette.OUTCOMES if any(name in row for row in outcomes)]
    if seen:
        handles = [Patch(facecolor=palette.OUTCOMES[name][0], label=_outcome_label(name)) for name in seen]
        figure.legend(handles=handles, loc="lower left", ncols=6, handlelength=1.0, borderaxespad=0.1)
    return inline_svg(figure, "answers", "What became of each site's task in each round")


def weights_figure(history: RunHistory) -> Markup:
    """For each group whose weights changed between rounds, a map of sites by rounds; darker is more say."""
    rounds = sorted(history.averages)
    varying = [group for group in history.groups if weights_vary(history, group)]
    if len(rounds) < 2 or not varying:
        return Markup("")
    columns = min(3, len(varying))
    rows = -(-len(varying) // columns)
    figure, axes = panel_grid(
        rows,
        columns,
        width=WIDTH_INCHES,
        panel_height=max(0.14 * len(history.sites), 0.3),
        left=_label_inches(history.sites),
    )
    for axis, group in zip(axes, varying, strict=False):
        axis.imshow(
            _weights(history, group, rounds),
            cmap="Blues",
            norm=PowerNorm(
                0.6, vmin=0, vmax=1
            ),  # of twenty sites each has a twentieth: that must not look like nothing
            aspect="auto",
            interpolation="none",
        )
        colour = palette.organ_colour(group, history.organs)
        axis.set_title(shortened(group), loc="left", fontsize=8.5, fontweight="bold", color=colour)
        _map_axes(axis, rounds, history.sites, font_size=6.0)
    for axis in axes[len(varying) :]:
        axis.set_visible(False)
    return inline_svg(figure, "weights", "Weight of each site in each group over rounds, where it changed")


def weights_vary(history: RunHistory, group: str) -> bool:
    """True when a site's weight in the group differs by more than half a percent between two rounds."""
    voted = [average.weights[group] for average in history.averages.values() if average.weights.get(group)]
    for site in history.sites:
        said = [finite(weights.get(site, 0.0)) or 0.0 for weights in voted]
        if said and max(said) - min(said) > 0.005:
            return True
    return False


def cost_figure(history: RunHistory) -> Markup:
    """Seconds to each site's answers, and megabytes down to and up from each site."""
    sites = [site for site in history.sites if any(who == site for _, who in history.answers)]
    if not sites:
        return Markup("")
    height, left = 0.24 * len(sites) + 0.1, _label_inches(sites)
    figure, (time, traffic) = panel_grid(
        1, 2, width=WIDTH_INCHES, panel_height=height, left=left, bottom=0.5, gaps=(0.35, 0.3), share=False
    )
    for place, site in enumerate(sites):
        answers = [answer for (_, who), answer in history.answers.items() if who == site]
        _draw_times(time, place, [value for a in answers if (value := finite(a.seconds)) is not None])
        down, up = (sum(finite(getattr(a, way)) or 0 for a in answers) / 1e6 for way in ("bytes_down", "bytes_up"))
        traffic.barh(place - 0.17, down, height=0.3, color="#7fa8c9", label="down to the site" if place == 0 else None)
        traffic.barh(place + 0.17, up, height=0.3, color="#c98f3c", label="up from the site" if place == 0 else None)
    time.set_yticks(range(len(sites)), [shortened(site) for site in sites])
    time.set_ylim(len(sites) - 0.4, -0.6)
    for axis, title in ((time, "seconds to the answer, per round"), (traffic, "megabytes over the whole run")):
        axis.set_title(title, loc="left", fontsize=8.5, fontweight="bold")
        axis.grid(axis="y", visible=False)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(5))
    figure.legend(*traffic.get_legend_handles_labels(), loc="lower right", ncols=2, borderaxespad=0.1)
    return inline_svg(figure, "cost", "Seconds to each answer and megabytes moved, for each site")


def probe_figure(rows: Sequence[ProbeRow], name: str) -> Markup:
    """Value and interval of each embedding, one panel per target and metric; one axis per metric."""
    questions = list(by_question(rows).items())[:_MOST_PROBE_PANELS]
    embeddings = list(dict.fromkeys(row.embedding for row in rows))
    if not questions:
        return Markup("")
    columns = max(2, min(4, len(questions)))
    figure, axes = panel_grid(
        -(-len(questions) // columns),
        columns,
        width=WIDTH_INCHES * columns / 4,
        panel_height=0.1 + 0.18 * len(embeddings),
        left=_label_inches(embeddings),
        gaps=(0.2, 0.62),
        share=False,
    )
    for axis, ((target, metric), answers) in zip(axes, questions, strict=False):
        axis.set_title(shortened(target), loc="left", fontsize=8.5, fontweight="bold")
        axis.set_xlabel(shortened(metric), fontsize=7, labelpad=1)
        _draw_probe(axis, answers, embeddings, metric)
    _share_limits([(axis, metric) for axis, ((_, metric), _) in zip(axes, questions, strict=False)])
    axes[0].set_yticks(range(len(embeddings)), [shortened(embedding) for embedding in embeddings])
    axes[0].set_ylim(len(embeddings) - 0.5, -0.5)
    for axis in axes[len(questions) :]:
        axis.set_visible(False)
    return inline_svg(figure, name, "Probe values with intervals of each embedding, by target")


def held_out_figure(history: RunHistory) -> Markup:
    """Relative loss on held-out subjects: all sites in bold, each site in a panel of its own."""
    series = held_out_series(history, relative_loss)
    panels = [
        Panel(
            title=site or "all sites",
            colour=palette.ACCENT if site else palette.INK,
            lines=(Line(series=told, colour=palette.ACCENT if site else palette.INK, width=1.8 if site else 2.2),),
        )
        for site, told in series.items()
    ]
    description = (
        "Held-out loss over that of the best constant answer, over rounds, for all sites together and for each"
    )
    return small_multiples(panels, "held-out", description, rounds=history.rounds, reference=1.0, limits=(0.0, None))


def held_out_probe_figure(history: RunHistory) -> Markup:
    """One panel per probe of the evaluations: the mean over sites in bold, the sites thin, or their range."""
    labels = sorted({label for told in history.evaluations.values() for label in told.metrics.get("probes", {})})
    panels = [_probe_panel(history, label) for label in labels]
    return small_multiples(
        panels, "held-out-probes", "Scores of each probe on held-out subjects, over rounds", rounds=history.rounds
    )


def _probe_panel(history: RunHistory, label: str) -> Panel:
    series = held_out_series(history, lambda metrics: metrics.get("probes", {}).get(label))
    mean = Line(series=series.pop("", {}), colour=palette.ACCENT, width=2.2, label="mean over sites")
    if len(series) > _MOST_SITE_LINES:
        return Panel(title=label, colour=palette.ACCENT, lines=(mean,), band=_range(series))
    thin = tuple(
        Line(series=told, colour=palette.ACCENT, width=0.7, marker=_marker(history, site), label=site)
        for site, told in series.items()
    )
    return Panel(title=label, colour=palette.ACCENT, lines=(mean, *thin) if len(thin) > 1 else (mean,))


def _organ_panel(history: RunHistory, metric: str, organ: str) -> Panel:
    colour = palette.organ_colour(organ, history.organs)
    mean = Line(series=organ_mean(history, metric, organ), colour=colour, width=2.2, label="mean over sites")
    sites = organ_series(history, metric, organ)
    if len(sites) > _MOST_SITE_LINES:
        return Panel(title=organ, colour=colour, lines=(mean,), band=_range(sites))
    if len(sites) < 2:
        return Panel(title=organ, colour=colour, lines=(mean,))
    thin = tuple(
        Line(series=series, colour=colour, width=0.7, marker=_marker(history, site), label=site)
        for site, series in sites.items()
    )
    return Panel(title=organ, colour=colour, lines=(mean, *thin))


def _marker(history: RunHistory, site: str) -> str:
    return palette.MARKERS[history.sites.index(site) % len(palette.MARKERS)]


def _range(sites: Mapping[str, Series]) -> tuple[Series, Series]:
    rounds = sorted({number for series in sites.values() for number in series})
    told = {number: [series[number] for series in sites.values() if number in series] for number in rounds}
    return {n: min(values) for n, values in told.items()}, {n: max(values) for n, values in told.items()}


def _bins(rounds: Sequence[int]) -> list[Sequence[int]]:
    """Consecutive rounds in at most that many columns."""
    size = math.ceil(len(rounds) / _MOST_COLUMNS)
    return [rounds[start : start + size] for start in range(0, len(rounds), max(size, 1))]


def _worst(outcomes: Sequence[str]) -> str:
    """What a column that stands for several rounds shows: a trouble if there was one, and never hides it."""
    return next((word for word in outcomes if word not in (ACCEPTED, "")), ACCEPTED if ACCEPTED in outcomes else "")


def _label_inches(names: Sequence[str]) -> float:
    """Room for the longest name left of an axis, at the reports' font size."""
    return 0.2 + 0.058 * max((len(shortened(name)) for name in names), default=0)


def _map_axes(axis: Axes, rounds: Sequence[int], sites: Sequence[str], font_size: float = 7.5) -> None:
    axis.grid(visible=False)
    step = max(1, len(rounds) // 10)
    places = list(range(0, len(rounds), step))
    axis.set_xticks(places, [str(rounds[place]) for place in places])
    axis.set_yticks(range(len(sites)), [shortened(site) for site in sites], fontsize=font_size)
    # White rules between the cells: neighbours of the same colour stay countable.
    if len(rounds) <= _MOST_RULES:
        axis.set_xticks([place - 0.5 for place in range(1, len(rounds))], minor=True)
    axis.set_yticks([place - 0.5 for place in range(1, len(sites))], minor=True)
    axis.grid(which="minor", color="#ffffff", linewidth=0.8)
    axis.tick_params(which="minor", length=0)


def _outcome_label(name: str) -> str:
    letter = palette.OUTCOMES[name][1]
    words = name.replace("_", " ")
    return f"{letter}: {words}" if letter else words


def _weights(history: RunHistory, group: str, rounds: Sequence[int]) -> np.ndarray:
    """Sites by rounds; not a number where the group did not change."""
    weights = np.full((len(history.sites), len(rounds)), np.nan)
    for column, number in enumerate(rounds):
        if voted := history.averages[number].weights.get(group):
            weights[:, column] = [finite(voted.get(site, 0.0)) or 0.0 for site in history.sites]
    return weights


def _draw_times(axis: Axes, place: int, seconds: Sequence[float]) -> None:
    """Thin from the fastest to the slowest, thick over the middle half, a point at the median."""
    if not seconds:
        return
    axis.plot([min(seconds), max(seconds)], [place, place], color=palette.ACCENT, linewidth=1.0)
    if len(seconds) > 3:
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
        axis.plot([low, high], [place, place], color=palette.ACCENT, linewidth=5, alpha=0.35, solid_capstyle="butt")
    axis.plot([statistics.median(seconds)], [place], "o", color=palette.ACCENT, markersize=5)


def _draw_probe(axis: Axes, answers: Sequence[ProbeRow], embeddings: Sequence[str], metric: str) -> None:
    axis.grid(axis="y", visible=False)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    if (chance := {"AUC": 0.5, "R2": 0.0}.get(metric)) is not None:
        axis.axvline(chance, color=palette.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    for row in answers:
        if row.value is None:
            continue
        colour, shape, size = (palette.ACCENT, "o", 5.5) if row.trained else (palette.MUTED, "D", 3.8)
        place = embeddings.index(row.embedding)
        if row.low is not None and row.high is not None:
            axis.plot([row.low, row.high], [place, place], color=colour, linewidth=1.6 if row.trained else 1.0)
        axis.plot([row.value], [place], marker=shape, color=colour, markersize=size)


def _share_limits(axes: Sequence[tuple[Axes, str]]) -> None:
    """The same metric gets the same axis, or a small difference in one panel looks like a large one."""
    for metric in {metric for _, metric in axes}:
        same = [axis for axis, of in axes if of == metric]
        low = min(axis.get_xlim()[0] for axis in same)
        high = max(axis.get_xlim()[1] for axis in same)
        for axis in same:
            axis.set_xlim(low, high)
