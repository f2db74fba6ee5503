"""The page and the figure of `benchmarks/sgm.py`.

A cell is a mean over the seeds that are there. An interval is the middle 95 % of resamples in which test subjects and seeds are
both drawn with replacement, the same draws for every arm: differences are paired, over the seeds that both arms have. Three
seeds are few to draw from, so the values of each seed stand beside the differences.

Legend: S organ sets, R rows of counts (1 + resamples), H hospitals, O organs.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.machine import provenance
from benchmarks.sgm_arms import CHANCE, Arm, Masking, Scheme, Sizes
from panfm.evaluation.organ_sets import OrganSet, all_sets
from panfm.evaluation.probes import Floats, interval
from panfm.evaluation.shapley import evenness, shapley_values
from panfm.evaluation.sweep import SweepValues, mean_curve, without
from panfm.organs import SEVEN_ORGANS
from panfm.randomness import stream
from panfm.reporting import palette

Kind = tuple[Scheme, Masking]
"""An arm under any seed."""

NAMES: Mapping[Kind, str] = {
    (Scheme.start, Masking.none): "untrained start",
    (Scheme.single, Masking.none): "seven single-organ models, late fusion",
    (Scheme.pooled, Masking.none): "pooled, no organ masking",
    (Scheme.pooled, Masking.uniform): "pooled, uniform as often as lift",
    (Scheme.pooled, Masking.lift): "pooled, SGM lift",
    (Scheme.pooled, Masking.uniform_as_threshold): "pooled, uniform as often as threshold",
    (Scheme.pooled, Masking.threshold): "pooled, SGM threshold",
    (Scheme.pooled, Masking.literal): "pooled, SGM literal 0.7",
    (Scheme.federated, Masking.none): "federated, no organ masking",
    (Scheme.federated, Masking.uniform): "federated, uniform as often as lift",
    (Scheme.federated, Masking.lift): "federated, SGM lift",
    (Scheme.federated, Masking.threshold): "federated, SGM threshold",
    (Scheme.blind, Masking.lift): "blind FedAvg, SGM lift",
    (Scheme.local, Masking.none): "local-only, no organ masking",
    (Scheme.local, Masking.lift): "local-only, SGM lift",
}
"""In the order of the table."""

_POOLED, _FEDERATED = Scheme.pooled, Scheme.federated
PAIRS: tuple[tuple[Kind, Kind], ...] = (
    ((_POOLED, Masking.none), (Scheme.start, Masking.none)),
    ((_POOLED, Masking.lift), (Scheme.start, Masking.none)),
    ((_POOLED, Masking.lift), (_POOLED, Masking.none)),
    ((_POOLED, Masking.lift), (_POOLED, Masking.uniform)),
    ((_POOLED, Masking.uniform), (_POOLED, Masking.none)),
    ((_POOLED, Masking.threshold), (_POOLED, Masking.none)),
    ((_POOLED, Masking.threshold), (_POOLED, Masking.uniform_as_threshold)),
    ((_POOLED, Masking.literal), (_POOLED, Masking.none)),
    ((_POOLED, Masking.none), (Scheme.single, Masking.none)),
    ((_FEDERATED, Masking.lift), (_FEDERATED, Masking.none)),
    ((_FEDERATED, Masking.lift), (_FEDERATED, Masking.uniform)),
    ((_FEDERATED, Masking.threshold), (_FEDERATED, Masking.none)),
    ((_FEDERATED, Masking.lift), (Scheme.blind, Masking.lift)),
    ((_FEDERATED, Masking.none), (_POOLED, Masking.none)),
    ((_FEDERATED, Masking.lift), (_POOLED, Masking.lift)),
    ((_FEDERATED, Masking.none), (Scheme.local, Masking.none)),
    ((_FEDERATED, Masking.lift), (Scheme.local, Masking.lift)),
    ((Scheme.local, Masking.lift), (Scheme.local, Masking.none)),
)
"""What is compared with what: the first minus the second."""

NUM_DOMINANT = 2
AS_PUBLISHED = ("heart", "adipose")
"""On which the paper's naive training leaned; taken until the share of attention was measured here."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What an arm was found to know."""

    complete: Floats
    """[R], macro AUROC of all test subjects through all organs; the first row of counts is everybody once."""
    values: Floats
    """[S, R], of the sweep's test subjects."""
    by_hospital: Floats
    """[H, R], through each hospital's organs, by probes that were fitted through the same organs."""
    share: Floats
    """[O], of attention; NaN where there is none to look at."""
    evenness: float
    seconds_per_step: float
    masked_share: float
    seconds: float


def read_found(place: Path) -> Found:
    """The result of an arm that was run."""
    with np.load(place) as kept:
        return Found(
            complete=kept["complete"].astype(np.float64),
            values=kept["values"].astype(np.float64),
            by_hospital=kept["by_hospital"].astype(np.float64),
            share=kept["share"].astype(np.float64),
            evenness=float(kept["evenness"]),
            seconds_per_step=float(kept["seconds_per_step"]),
            masked_share=float(kept["masked_share"]),
            seconds=float(kept["seconds"]),
        )


# ---- measures ---------------------------------------------------------------------------------------------------------

Measure = Callable[[Found], Floats]
"""From an arm to [R]."""


def sweep_of(found: Found) -> SweepValues:
    """The arm's AUROC of every set."""
    return SweepValues(sets=all_sets(SEVEN_ORGANS), values=found.values)


def complete(found: Found) -> Floats:
    """All test subjects, nothing missing."""
    return found.complete


def missing(number: int) -> Measure:
    """Mean over the sets that lack so many organs."""
    return lambda found: np.asarray(mean_curve(sweep_of(found))[number])


def any_missing(found: Found) -> Floats:
    """Mean over 1 to 6 missing organs of the means over sets."""
    mean: Floats = mean_curve(sweep_of(found))[1:].mean(0)
    return mean


def worst(found: Found) -> Floats:
    """The set that is the worst over all test subjects; its interval does not count that it was chosen for it."""
    chosen: Floats = found.values[int(found.values[:, 0].argmin())]
    return chosen


def hospitals(found: Found) -> Floats:
    """Mean over the hospitals, each through its own organs."""
    mean: Floats = found.by_hospital.mean(0)
    return mean


@cache
def contributions(found: Found) -> Mapping[str, Floats]:
    """Exact Shapley value of each organ, [R]."""
    return shapley_values(sweep_of(found).by_set, SEVEN_ORGANS, CHANCE)


def contribution_evenness(found: Found) -> Floats:
    """Normalised entropy of the Shapley values, [R]."""
    table = np.stack([contributions(found)[organ] for organ in SEVEN_ORGANS], axis=1)
    return np.array([evenness(row) for row in table])


def dominant_organs(found: Mapping[Arm, Found]) -> tuple[OrganSet, bool]:
    """The organs with the largest share of attention without masking, pooled, over the seeds; and whether that was measured."""
    shares = [one.share for arm, one in found.items() if (arm.scheme, arm.masking) == (Scheme.pooled, Masking.none)]
    if not shares:
        return AS_PUBLISHED, False
    largest = np.argsort(-np.mean(shares, axis=0))[:NUM_DOMINANT]
    return tuple(SEVEN_ORGANS[place] for place in sorted(largest)), True


# ---- over seeds -------------------------------------------------------------------------------------------------------


def by_seed(found: Mapping[Arm, Found], kind: Kind) -> dict[int, Found]:
    """The seeds under which an arm was run."""
    return {arm.seed: one for arm, one in found.items() if (arm.scheme, arm.masking) == kind}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over seeds, its interval, and each seed's own."""

    value: float
    low: float
    high: float
    each: tuple[float, ...]


def estimate(rows: Sequence[Floats]) -> Estimate:
    """Of one measure's [R] of each seed: subjects are resampled in R, seeds here."""
    table = np.stack(rows)
    draws = stream(0, "benchmark of SGM", "seeds").integers(len(table), size=(table.shape[1], len(table)))
    resampled = np.take_along_axis(table, draws.T, axis=0).mean(0)[1:]
    low, high = interval(resampled) if resampled.size else (math.nan, math.nan)
    return Estimate(value=float(table[:, 0].mean()), low=low, high=high, each=tuple(table[:, 0].tolist()))


def gain(found: Mapping[Arm, Found], pair: tuple[Kind, Kind], measure: Measure) -> Estimate | None:
    """The first minus the second, over the seeds that both have."""
    first, second = (by_seed(found, kind) for kind in pair)
    seeds = sorted(first.keys() & second.keys())
    return estimate([measure(first[seed]) - measure(second[seed]) for seed in seeds]) if seeds else None


# ---- the page ---------------------------------------------------------------------------------------------------------


def page(sizes: Sizes, found: Mapping[Arm, Found], num_arms: int) -> str:
    """The whole page."""
    dominant, measured = dominant_organs(found)
    seconds = sum(one.seconds for one in found.values())
    lines = [
        "# What does Saliency-Guided Masking bring?\n",
        f"Macro AUROC of 13 disease categories; {len(found)} of {num_arms} arms, {seconds / 60:.0f} min of processor time. "
        f"{provenance()}.\n",
        _settings(sizes),
        "Dominant organs (largest share of the subject token's attention in pooled training without organ masking"
        f"{'' if measured else '; not measured yet, so the published ones'}): **{' and '.join(dominant)}**.\n",
        "## What was expected, and what came\n",
        *expectations(found, dominant),
        "\n## Every arm\n",
        "Mean over the seeds; in brackets the smallest and the largest. "
        f"`complete`: {sizes.generator.test_subjects} test subjects. `k missing`: mean over all sets of organs that lack k, "
        f"{sizes.sweep_subjects} test subjects. `worst`: the worst of these "
        "127 sets. `own organs`: through each hospital's organs, mean of the six, by probes fitted "
        "through the same organs. Entropies over their maximum (1: all organs alike; of local models over their own organs). "
        "`hidden`: share of the organs present that the student did not see. `s/step`: processor time.\n",
        *arm_table(found, dominant),
        "\n## Differences\n",
        "First minus second, 95 % interval over test subjects and seeds, and each seed's own.\n",
        *gain_table(found, dominant),
        "\n## Attention and contribution\n",
        "Share of attention and, after the bar, exact Shapley value (AUROC over a guess), mean over the seeds.\n",
        *organ_table(found),
        "\n![AUROC by number of missing organs](sgm.png)\n",
        "Made by `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/sgm.py`, whose first paragraphs say what is compared.",
    ]
    return "\n".join(lines) + "\n"


def _settings(sizes: Sizes) -> str:
    generator = ", ".join(f"{name} {getattr(value, 'value', value)}" for name, value in asdict(sizes.generator).items())
    organs = "; ".join(f"{site.name}: {', '.join(site.organs)}" for site in sizes.generator.sites)
    settings = " ".join(sizes.settings)
    return (
        f"Generator: {generator}. Hospitals: {organs}. Training: recipe `demo` with `{settings}`, organ masking as the recipes "
        f"ship it, seeds {', '.join(map(str, sizes.seeds))} of initial values and draws; the people are the same under every "
        "seed. Every trainer does equally many steps: pooled training, each hospital of a federation, each hospital alone, each "
        f"single-organ model. {sizes.resamples} resamples.\n"
    )


def columns(dominant: OrganSet) -> dict[str, Measure]:
    """Heading -> measure, of the table of arms."""
    return {
        "complete": complete,
        **{f"{number} missing": missing(number) for number in range(len(SEVEN_ORGANS))},
        "worst": worst,
        f"without {' and '.join(dominant)}": lambda found: np.asarray(without(sweep_of(found), dominant)),
        "own organs": hospitals,
        "Shapley entropy": contribution_evenness,
    }


def arm_table(found: Mapping[Arm, Found], dominant: OrganSet) -> list[str]:
    """A row for each kind of arm."""
    measures = columns(dominant)
    rows = [
        f"| arm | seeds | {' | '.join(measures)} | attention entropy | hidden | s/step |",
        "|---" * (len(measures) + 5) + "|",
    ]
    for kind, name in NAMES.items():
        if own := [one for _, one in sorted(by_seed(found, kind).items())]:
            cells = [_spread([float(measure(one)[0]) for one in own]) for measure in measures.values()]
            cells += [_spread([one.evenness for one in own])]
            cells += [f"{np.mean([one.masked_share for one in own]):.1%}"]
            cells += [f"{np.mean([one.seconds_per_step for one in own]):.4f}"]
            rows.append(f"| {name} | {len(own)} | " + " | ".join(cells) + " |")
    return rows


def _spread(values: Sequence[float]) -> str:
    if not np.isfinite(values).all():
        return ""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def gain_table(found: Mapping[Arm, Found], dominant: OrganSet) -> list[str]:
    """A row for each comparison."""
    every = columns(dominant)
    measures = {
        "complete": every["complete"],
        "1 to 6 missing": any_missing,
        **{name: every[name] for name in every if not name.endswith(" missing") and name != "complete"},
    }
    rows = [f"| first minus second | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
    for pair in PAIRS:
        cells = [_gain(gain(found, pair, measure)) for measure in measures.values()]
        if any(cells):
            rows.append(f"| {NAMES[pair[0]]} - {NAMES[pair[1]]} | " + " | ".join(cells) + " |")
    return rows


def _gain(one: Estimate | None) -> str:
    if one is None or not math.isfinite(one.value):
        return ""
    return f"{one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f}; {', '.join(f'{value:+.3f}' for value in one.each)})"


def organ_table(found: Mapping[Arm, Found]) -> list[str]:
    """Attention and Shapley value of each organ."""
    rows = [f"| arm | {' | '.join(SEVEN_ORGANS)} |", "|---" * (len(SEVEN_ORGANS) + 1) + "|"]
    for kind, name in NAMES.items():
        if own := list(by_seed(found, kind).values()):
            cells = []
            for place, organ in enumerate(SEVEN_ORGANS):
                share = float(np.mean([one.share[place] for one in own]))
                value = float(np.mean([contributions(one)[organ][0] for one in own]))
                cells.append(f"{share:.3f} \\| {value:+.3f}" if math.isfinite(share) else f"\\| {value:+.3f}")
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


# ---- expectations -----------------------------------------------------------------------------------------------------


def expectations(found: Mapping[Arm, Found], dominant: OrganSet) -> list[str]:
    """What the study was planned to show, each with what was measured and whether it was met."""
    lift, none, uniform = ((Scheme.pooled, rule) for rule in (Masking.lift, Masking.none, Masking.uniform))
    lacking = columns(dominant)[f"without {' and '.join(dominant)}"]
    asked: list[tuple[str, tuple[Kind, Kind], Measure, Callable[[Estimate], bool]]] = [
        ("Pooled training gains on its untrained start, complete", PAIRS[0], complete, lambda e: e.low > 0),
    ]
    for scheme in (Scheme.pooled, Scheme.federated):
        lift, none, uniform = ((scheme, rule) for rule in (Masking.lift, Masking.none, Masking.uniform))
        asked += [
            (
                f"{scheme.value}: `lift` over `none` without the dominant organs, interval clear of 0",
                (lift, none),
                lacking,
                lambda e: e.low > 0,
            ),
            (
                f"{scheme.value}: `lift` loses nothing against `none` when complete",
                (lift, none),
                complete,
                lambda e: e.high >= 0,
            ),
            (
                f"{scheme.value}: `lift` not below `uniform` without the dominant organs",
                (lift, uniform),
                lacking,
                lambda e: e.high >= 0,
            ),
        ]
    for rule in (Masking.none, Masking.lift):
        fed = (Scheme.federated, rule)
        asked += [
            (
                f"`{rule.value}`: federated within 0.02 of pooled",
                (fed, (Scheme.pooled, rule)),
                complete,
                lambda e: e.value >= -0.02,
            ),
            (
                f"`{rule.value}`: federated at least 0.05 above local-only",
                (fed, (Scheme.local, rule)),
                complete,
                lambda e: e.value >= 0.05,
            ),
        ]
    rows = ["| expected | measured | met |", "|---|---|---|"]
    for words, pair, measure, is_met in asked:
        if (one := gain(found, pair, measure)) is not None:
            rows.append(f"| {words} | {_gain(one)} | {'yes' if is_met(one) else '**no**'} |")
    return [*rows, *_evenness_rows(found), *_time_rows(found)]


def _evenness_rows(found: Mapping[Arm, Found]) -> list[str]:
    rows = []
    for scheme in (Scheme.pooled, Scheme.federated):
        lift, none = (by_seed(found, (scheme, rule)) for rule in (Masking.lift, Masking.none))
        if seeds := sorted(lift.keys() & none.keys()):
            each = [lift[seed].evenness - none[seed].evenness for seed in seeds]
            told = f"{np.mean(each):+.3f} ({', '.join(f'{value:+.3f}' for value in each)})"
            met = "yes" if min(each) > 0 else "**no**"
            rows.append(
                f"| {scheme.value}: entropy of attention higher with `lift` than with `none`, every seed | {told} | {met} |"
            )
    return rows


def _time_rows(found: Mapping[Arm, Found]) -> list[str]:
    lift, none = (by_seed(found, (Scheme.pooled, rule)) for rule in (Masking.lift, Masking.none))
    seeds = sorted(lift.keys() & none.keys())
    if not seeds:
        return []
    ratio = float(np.mean([lift[seed].seconds_per_step / none[seed].seconds_per_step for seed in seeds]))
    met = "yes" if ratio < 1.02 else "**no**"
    return [
        "| pooled: a step with `lift` takes under 1.02 of one with `none` (hidden organs make it shorter) "
        f"| {ratio:.2f} | {met} |"
    ]


# ---- the figure -------------------------------------------------------------------------------------------------------

_LINES: Mapping[Masking, tuple[str, str]] = {
    Masking.none: (palette.MUTED, "o"),
    Masking.uniform: ("#B07A1E", "s"),
    Masking.threshold: ("#117733", "^"),
    Masking.lift: (palette.ACCENT, "D"),
}
"""Colour and marker of each rule."""


def draw(sizes: Sizes, found: Mapping[Arm, Found]) -> Figure:
    """AUROC against missing organs, pooled and federated, and attention beside contribution."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    pooled, federated, leaning = figure.subplots(1, 3)
    federated.sharey(pooled)
    _draw_curves(pooled, found, [(Scheme.pooled, rule) for rule in _LINES], "pooled")
    _draw_curves(federated, found, [(Scheme.federated, rule) for rule in _LINES], "federated over six hospitals")
    extra = {
        (Scheme.blind, Masking.lift): (federated, "--", "blind FedAvg, lift"),
        (Scheme.local, Masking.lift): (federated, ":", "local-only, lift"),
        (Scheme.single, Masking.none): (pooled, ":", "single-organ models"),
        (Scheme.start, Masking.none): (pooled, "--", "untrained start"),
    }
    for kind, (panel, dash, label) in extra.items():
        if (curve := _curve(found, kind)) is not None:
            panel.plot(range(len(curve)), curve, color=palette.INK, linestyle=dash, linewidth=1, label=label)
    for panel in (pooled, federated):
        panel.set_xlabel("organs missing (mean over all sets)")
        panel.legend(fontsize=7, frameon=False)
    pooled.set_ylabel("macro AUROC, 13 disease categories")
    _draw_leaning(leaning, found)
    return figure


def _draw_curves(panel: Axes, found: Mapping[Arm, Found], kinds: Sequence[Kind], title: str) -> None:
    for kind in kinds:
        if (curve := _curve(found, kind)) is not None:
            colour, marker = _LINES[kind[1]]
            panel.plot(
                range(len(curve)), curve, color=colour, marker=marker, markersize=4, linewidth=1, label=kind[1].value
            )
    panel.set_title(title, fontsize=9)


def _curve(found: Mapping[Arm, Found], kind: Kind) -> NDArray[np.float64] | None:
    own = list(by_seed(found, kind).values())
    return np.mean([mean_curve(sweep_of(one))[:, 0] for one in own], axis=0) if own else None


def _draw_leaning(panel: Axes, found: Mapping[Arm, Found]) -> None:
    """Share of attention against share of the Shapley values: on the dashed line attention is contribution."""
    for rule, filled in ((Masking.none, False), (Masking.lift, True)):
        own = list(by_seed(found, (Scheme.pooled, rule)).values())
        if not own:
            continue
        share = np.mean([one.share for one in own], axis=0)
        value = np.mean([[contributions(one)[organ][0] for organ in SEVEN_ORGANS] for one in own], axis=0)
        for place, organ in enumerate(SEVEN_ORGANS):
            colour = palette.organ_colour(organ, SEVEN_ORGANS)
            label = f"{organ}, {rule.value}" if filled else None
            x, y = value[place] / value.sum(), share[place]
            panel.scatter(x, y, s=30, edgecolors=colour, facecolors=colour if filled else "none", label=label)
            panel.annotate(organ, (x, y), fontsize=6, xytext=(4, 2), textcoords="offset points", color=colour)
    even = 1 / len(SEVEN_ORGANS)
    panel.axline((even, even), slope=1, color=palette.MUTED, linestyle="--", linewidth=0.8)
    panel.margins(x=0.15)  # room for the names
    panel.set_xlabel("share of the Shapley values")
    panel.set_ylabel("share of attention")
    panel.set_title("pooled: none (hollow), lift (filled)", fontsize=9)
