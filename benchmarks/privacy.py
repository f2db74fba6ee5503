"""What does privacy cost in usefulness? AUROC of diseases and R2 of age against epsilon, by cohort, mode and start.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/privacy.py [minutes=M] [workers=2] [repeats=1] [--quick]

Two hospitals that image two organs each train a tiny model, each with 200, 1,000 or 5,000 synthetic subjects.
Epsilon is infinity, 8, 3 or 1 for each subject over the whole study; trained are all parameters, or adapters and predictors
alone, from a seeded initialisation or from the public start (`recipe=public_start`, other people under another scanner). Linear
probes then read the teacher's embeddings of subjects whom no hospital has.

Each arm is kept below runs/ when it is done, and not run again; the most telling come first. With `minutes` no arm is begun
later than that after people and start are there: call it again to go on. To begin anew, remove that folder. The table and the
figure, of whatever is there, go to `benchmarks/privacy.md` and `privacy.png` beside it. With `--quick` all is tiny, learns
nothing, and stays below runs/.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.machine import provenance
from benchmarks.privacy_arms import (
    DELTA,
    EPSILONS,
    SITES,
    STARTS,
    Arm,
    Sizes,
    all_arms,
    grids_of,
    noise_share,
    privacy_of,
    recipe_of,
    run_arm,
)
from panfm import recipes
from panfm.config import Missingness, PrivacyMode
from panfm.data.prepare import prepare_store
from panfm.data.synthetic import SyntheticSite, write_synthetic_site
from panfm.evaluation.probes import Floats, auc, bootstrap, interval, r2
from panfm.randomness import stream
from panfm.reporting import palette
from simulation.progress import Display
from simulation.rehearsal import rehearse

RUNS = Path("runs")
FULL = Sizes(
    folder=RUNS / "benchmark-privacy",
    samples={1000: 16, 5000: 16, 200: 16},
    rounds=4,
    # Without noise, from a seeded start, 1,000 subjects a site: 200 steps of 16 gained .017, and 80 steps of 48 gained .005.
    steps_per_round=30,
    voxels=24,
    probe_subjects=1500,
    test_subjects=1500,
    public_subjects=400,
    public_steps=80,
)
QUICK = Sizes(
    folder=RUNS / "benchmark-privacy-quick",
    samples={20: 4, 40: 8},
    rounds=2,
    steps_per_round=2,
    voxels=16,
    probe_subjects=40,
    test_subjects=60,
    public_subjects=16,
    public_steps=2,
)
MISSING_RATE = 0.3
SHOWN_EPSILONS = (math.inf, 8.0, 3.0, 1.0)
MODES = {PrivacyMode.dp_adapters: "adapters, predictors", PrivacyMode.dp_full: "all parameters"}


def main(arguments: Sequence[str]) -> None:
    """Make what is missing, run what time allows, and show what is there."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    sizes = QUICK if "--quick" in arguments else FULL
    workers, arms = int(given.get("workers", "2")), all_arms(sizes, int(given.get("repeats", "1")))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(make_people, sizes), people(sizes)))
        make_public_start(sizes)
        deadline = time.time() + 60 * float(given.get("minutes", "inf"))
        for told in pool.map(partial(run_unless_late, sizes, deadline), arms):
            print(told, end="", flush=True)
    found = {arm: read_arm(place) for arm in arms if (place := place_of(sizes, arm)).exists()}
    text = page(sizes, found, len(arms))
    print(text)
    beside = sizes.folder if sizes is QUICK else Path(__file__).parent
    (beside / "privacy.md").write_text(text, encoding="utf-8")
    draw(sizes, found).savefig(beside / "privacy.png", dpi=130, metadata={"Software": None})


# ---- people and starts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """Subjects of one folder, disjoint from those of the others."""

    folder: Path
    site: SyntheticSite
    first_subject: int
    missing_rate: float = 0.0
    split: str = ""
    scanners: tuple[str, ...] = ()


def people(sizes: Sizes) -> list[People]:
    """The hospitals, as large as the largest arm needs, and complete subjects under both scanners for the probes."""
    most, made = max(sizes.samples), []
    for place, (name, organs) in enumerate(SITES.items()):
        site = SyntheticSite(name, organs, most)
        folder = sizes.folder / "hospitals" / name
        made.append(People(folder=folder, site=site, first_subject=place * most, missing_rate=MISSING_RATE))
    first = len(SITES) * most
    for split, number in (("probe", sizes.probe_subjects), ("test", sizes.test_subjects)):
        site = SyntheticSite(split, tuple(grids_of(sizes)), number)
        made.append(
            People(folder=sizes.folder / split, site=site, first_subject=first, split=split, scanners=tuple(SITES))
        )
        first += number
    return made


def make_people(sizes: Sizes, asked: People) -> None:
    """Scans, and the store prepared from them; the scans are removed again."""
    if (asked.folder / "store" / "table.csv").exists():
        return
    write_synthetic_site(
        asked.folder,
        asked.site,
        seed=0,
        voxels=sizes.voxels,
        missingness=Missingness.mcar,
        missing_rate=asked.missing_rate,
        first_subject=asked.first_subject,
        split=asked.split,
        scanners=asked.scanners,
    )
    prepare_store(asked.folder, asked.folder / "store", grids_of(sizes), recipes.load([]).prepare)
    shutil.rmtree(asked.folder / "scans")


def make_public_start(sizes: Sizes) -> None:
    """By the command that a study would use, at the grids of this benchmark."""
    if (sizes.folder / "public").exists():
        return
    settings = [
        "recipe=public_start",
        "name=public",
        f"runs={sizes.folder}",
        f"cohort.voxels={sizes.voxels}",
        f"cohort.subjects_per_site={sizes.public_subjects}",
        f"pretrain.steps_per_round={sizes.public_steps}",
        "cohort.probe_subjects=24",  # its own probes are not looked at: the arms have larger ones
        "cohort.test_subjects=24",
    ]
    config = replace(recipes.load(settings), organs=grids_of(sizes))
    with Display(Console()) as display:
        rehearse(config, display)


# ---- arms -------------------------------------------------------------------------------------------------------------


def place_of(sizes: Sizes, arm: Arm) -> Path:
    """Where an arm's result lies; another recipe has other results."""
    settings = hashlib.sha256(recipes.to_yaml(recipe_of(sizes, arm)).encode()).hexdigest()[:12]
    return sizes.folder / "arms" / f"{arm.name}-{settings}.npz"


def run_unless_late(sizes: Sizes, deadline: float, arm: Arm) -> str:
    """Run an arm that is missing; returns a line for the terminal, or nothing."""
    place = place_of(sizes, arm)
    if place.exists() or time.time() > deadline:
        return ""
    place.parent.mkdir(parents=True, exist_ok=True)
    seconds = run_arm(sizes, arm, place)
    found = read_arm(place)
    return f"{arm.name}: AUROC {macro_auroc(found):.4f}, age R2 {age_r2(found):.4f} after {seconds:.0f} s of processor time\n"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What an arm's probes say of the test subjects (`benchmarks.privacy_arms.probed`)."""

    targets: Floats
    """[categories, n]."""
    scores: Floats
    age: Floats
    """Years, [1, n]."""
    age_scores: Floats
    seconds: float


def read_arm(place: Path) -> Found:
    """The result of an arm that was run."""
    with np.load(place) as kept:
        arrays = {name: kept[name] for name in ("targets", "scores", "age", "age_scores")}
        return Found(**arrays, seconds=float(kept["seconds"]))


def macro_auroc(found: Found) -> float:
    """Mean over the categories of the area under the ROC curve."""
    return float(np.nanmean(auc(found.targets, found.scores)))


def age_r2(found: Found) -> float:
    """How much of age the embedding tells."""
    return float(r2(found.age, found.age_scores)[0])


@cache
def resampled_auroc(found: Found) -> Floats:
    """Macro AUROC on resampled test subjects, paired over arms."""
    return bootstrap(auc, found.targets, found.scores, stream(0, "benchmark of privacy", "bootstrap"))


@cache
def resampled_r2(found: Found) -> Floats:
    """R2 of age on the same resampled test subjects."""
    return bootstrap(r2, found.age, found.age_scores, stream(0, "benchmark of privacy", "bootstrap"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What is read off an arm: its value, and the values on resampled test subjects."""

    value: Callable[[Found], float]
    resampled: Callable[[Found], Floats]


AUROC = Measure(value=macro_auroc, resampled=resampled_auroc)
AGE = Measure(value=age_r2, resampled=resampled_r2)


# ---- what is shown ----------------------------------------------------------------------------------------------------


def page(sizes: Sizes, found: Mapping[Arm, Found], num_arms: int) -> str:
    """The whole page."""
    steps = sizes.rounds * sizes.steps_per_round
    seconds = [one.seconds for arm, one in found.items() if arm.mode is not PrivacyMode.none]
    lines = [
        "# What does privacy cost in usefulness?\n",
        f"Macro AUROC of 13 disease categories, {sizes.test_subjects} test subjects; {len(found)} of {num_arms} arms, "
        f"{np.median(seconds or [math.nan]):.0f} s of processor time an arm. {provenance()}.\n",
        f"Two hospitals, {sizes.rounds} rounds of {sizes.steps_per_round} steps each, tiny model, {sizes.voxels} voxels a side, "
        f"delta {DELTA:g}, epsilon for each subject over all {steps} steps (Renyi accountant), add or remove. Expected samples: "
        + ", ".join(f"{sample} of {number:,}" for number, sample in sorted(sizes.samples.items()))
        + ". Each cell: AUROC, and in brackets the gain over the model that the arm began from, with its 95 % interval on the "
        "same resampled test subjects (of the test subjects only: another draw of the noise moves it, too).\n",
        *table(sizes, found, AUROC),
        "\nR2 of age, cells as above.\n",
        *table(sizes, found, AGE),
        "\nNoise to signal of a step at the first hospital: the norm of the noise over the largest norm of the mean "
        "gradient, and in brackets the noise multiplier. Two hospitals' mean has 0.7 of it where both train a parameter.\n",
        *noise_table(sizes),
        "\n![AUROC against epsilon](privacy.png)\n",
        "Made by `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/privacy.py`, whose first paragraphs say what is compared.",
    ]
    return "\n".join(lines) + "\n"


def table(sizes: Sizes, found: Mapping[Arm, Found], measure: Measure) -> list[str]:
    """A row for each start, mode and cohort."""
    rows = [
        "| start | trained | subjects per site | no training | "
        + " | ".join(f"epsilon {shown(epsilon)}" for epsilon in SHOWN_EPSILONS)
        + " |",
        "|---" * (4 + len(SHOWN_EPSILONS)) + "|",
    ]
    for public, mode in STARTS:
        start = found.get(Arm(public=public, mode=PrivacyMode.none))
        for subjects in sorted(sizes.samples):
            arms = [of(found, public, mode, subjects, epsilon) for epsilon in SHOWN_EPSILONS]
            cells = [
                "public" if public else "seeded",
                MODES[mode],
                f"{subjects:,}",
                f"{measure.value(start):.3f}" if start else "",
                *(cell(runs, start, measure) for runs in arms),
            ]
            rows.append("| " + " | ".join(cells) + " |")
    return rows


def of(found: Mapping[Arm, Found], public: bool, mode: PrivacyMode, subjects: int, epsilon: float) -> list[Found]:
    """All repeats of an arm."""
    asked = (public, mode, subjects, epsilon)
    return [one for arm, one in found.items() if (arm.public, arm.mode, arm.subjects, arm.epsilon) == asked]


def cell(runs: Sequence[Found], start: Found | None, measure: Measure) -> str:
    """The mean over the repeats, and what it gains."""
    if not runs or start is None:
        return ""
    value = float(np.mean([measure.value(run) for run in runs]))
    low, high = interval(np.mean([measure.resampled(run) for run in runs], axis=0) - measure.resampled(start))
    return f"{value:.3f} ({value - measure.value(start):+.3f}, {low:+.3f} to {high:+.3f})"


def shown(epsilon: float) -> str:
    """Epsilon in a heading."""
    return f"{epsilon:g}" if math.isfinite(epsilon) else "infinity"


def noise_table(sizes: Sizes) -> list[str]:
    """Noise to signal for each mode, cohort and epsilon."""
    finite = [epsilon for epsilon in SHOWN_EPSILONS if math.isfinite(epsilon)]
    rows = [
        "| trained | subjects per site | " + " | ".join(f"epsilon {epsilon:g}" for epsilon in finite) + " |",
        "|---" * (2 + len(finite)) + "|",
    ]
    for mode, subjects in ((mode, subjects) for mode in MODES for subjects in sorted(sizes.samples)):
        arms = [Arm(public=True, mode=mode, subjects=subjects, epsilon=epsilon) for epsilon in finite]
        cells = [f"{noise_share(sizes, arm):.1f} ({privacy_of(sizes, arm).noise_multiplier:g})" for arm in arms]
        rows.append(f"| {MODES[mode]} | {subjects:,} | " + " | ".join(cells) + " |")
    return rows


def draw(sizes: Sizes, found: Mapping[Arm, Found]) -> Figure:
    """AUROC against epsilon: a panel for each start, a line for each mode and cohort, the start itself dashed."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, public in zip(panels, (True, False), strict=True):
        draw_panel(panel, sizes, found, public)
    panels[0].set_ylabel("macro AUROC, 13 disease categories")
    if found:
        panels[0].legend(fontsize=7, frameon=False)
    return figure


def draw_panel(panel: Axes, sizes: Sizes, found: Mapping[Arm, Found], public: bool) -> None:
    """One start."""
    if start := found.get(Arm(public=public, mode=PrivacyMode.none)):
        panel.axhline(macro_auroc(start), color=palette.MUTED, linestyle="--", linewidth=1, label="no training")
    epsilons = sorted(EPSILONS)
    for mode, colour in zip(MODES, ("#1f5f8b", "#CC6677"), strict=True):
        for subjects, marker in zip(sorted(sizes.samples), palette.MARKERS, strict=False):
            runs = {place: of(found, public, mode, subjects, epsilon) for place, epsilon in enumerate(epsilons)}
            points = {place: np.mean([macro_auroc(run) for run in some]) for place, some in runs.items() if some}
            if points:
                label = f"{MODES[mode]}, {subjects:,} subjects"
                panel.plot([*points], [*points.values()], color=colour, marker=marker, linewidth=1, label=label)
    panel.set_xticks(range(len(epsilons)), [shown(epsilon) for epsilon in epsilons])
    panel.set_xlabel("epsilon of each subject, whole study")
    panel.set_title("from the public start" if public else "from a seeded initialisation", fontsize=9)


if __name__ == "__main__":
    main(sys.argv[1:])
