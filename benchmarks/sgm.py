"""What does Saliency-Guided Masking bring? Every rule and its controls, pooled, federated over six hospitals, and alone.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/sgm.py [minutes=M] [workers=2] [--quick] [--table]

Pooled: the seeded start, seven single-organ models (their probes' answers averaged over the organs at hand), no organ
masking, uniform organ dropout as often as `lift` and as often as `threshold` hide organs, `threshold` (relative, and the skill
card's literal 0.7), `lift`. Federated: none, uniform, threshold, lift, and lift under an averaging that does not know of organs.
Local-only: none, lift. Each model reads the same complete test subjects through each of the 127 sets of organs, by linear
probes that were fitted once on complete subjects. The generator's settings stand in `benchmarks/sgm_cohort.py`, what an arm
is in `benchmarks/sgm_arms.py`.

Each arm is kept below runs/ when it is done, and not run again; the most telling come first, each under every seed. With
`minutes` no arm is begun later than that after the people are there: call it again to go on. `--table` runs nothing and shows
what is there. The page and the figure go to `benchmarks/sgm.md` and `sgm.png`. With `--quick` all is tiny, learns nothing, and
stays below runs/.

On a GPU, at a real size (model `small`, 64 voxels a side, 12,000 subjects to pre-train on, 5,000 steps; planned, not run yet):

    PYTHONPATH=. python benchmarks/sgm.py --large workers=16 minutes=0     # makes the people, some 60,000 volumes, 40 GB
    PYTHONPATH=. python benchmarks/sgm.py --large workers=1 device=cuda    # arm by arm
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks.sgm_arms import Arm, Sizes, all_arms, masked_share_of, recipe_of, run_arm, uniform_rate_of
from benchmarks.sgm_cohort import Generator, make_people, people
from benchmarks.sgm_tables import Found, draw, page, read_found
from panfm import recipes

RUNS = Path("runs") / "benchmark-sgm"
FULL = Sizes(
    runs=RUNS,
    generator=Generator(),
    # Chosen without masking, before any rule was compared; 3 x 200 probe subjects, 500 test subjects, seed 0. Untrained .6006;
    # 120 steps .6102, with turned and zoomed crops .6087 (240 steps .6096) for 8 % more time; batch 16: .6111 after 300 steps,
    # .6104 after 600; rate 1e-3 with loss.organ 30: .6012 after 300. It gains +.01, early, and no more for more steps: hence 120.
    settings=(
        "rounds=4",
        "pretrain.steps_per_round=30",
        "pretrain.augment.rotation_deg=0",
        "pretrain.augment.zoom=0",
    ),
    seeds=(0, 1, 2),
    resamples=400,
    attention_subjects=200,
    sweep_subjects=200,
)
QUICK = Sizes(
    runs=RUNS / "quick",
    generator=Generator(voxels=16, subjects_per_hospital=12, probe_subjects=60, probe_sets=2, test_subjects=40),
    settings=("rounds=2", "pretrain.steps_per_round=2", "model.width=24", "model.depth=2"),
    seeds=(0, 1),
    resamples=20,
    attention_subjects=20,
    sweep_subjects=20,
)
LARGE = Sizes(
    runs=RUNS / "large",
    generator=Generator(voxels=64, subjects_per_hospital=2000, probe_subjects=1500, test_subjects=2000),
    settings=("model=small", "rounds=20", "pretrain.steps_per_round=250", "pretrain.batch_size=32"),
    seeds=(0, 1, 2),
    resamples=1000,
    attention_subjects=500,
    sweep_subjects=2000,
)


def main(arguments: Sequence[str]) -> None:
    """Make what is missing, run what time allows, and show what is there."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    sizes = QUICK if "--quick" in arguments else LARGE if "--large" in arguments else FULL
    sizes = replace(sizes, device=given.get("device", "cpu"))
    arms = all_arms(sizes)
    if "--table" not in arguments:
        run_all(sizes, arms, int(given.get("workers", "2")), float(given.get("minutes", "inf")))
    found = {arm: read_found(place) for arm in arms if (place := place_of(sizes, arm)) is not None and place.exists()}
    show(sizes, found, len(arms))


def run_all(sizes: Sizes, arms: Sequence[Arm], workers: int, minutes: float) -> None:
    """People, then arms; those that copy another's rate and came too early for it get a second turn."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(make_people, sizes.generator), people(sizes.generator, sizes.cohort)))
        deadline = time.time() + 60 * minutes
        for told in pool.map(partial(run_unless_late, sizes, deadline), [*arms, *filter(_copies, arms)]):
            print(told, end="", flush=True)


def _copies(arm: Arm) -> bool:
    return arm.pace_maker is not None


def run_unless_late(sizes: Sizes, deadline: float, arm: Arm) -> str:
    """Run an arm that is missing; returns a line for the terminal, or nothing."""
    place = place_of(sizes, arm)
    if place is None or place.exists() or time.time() > deadline:
        return ""
    run_arm(sizes, arm, place, rate_of(sizes, arm))
    found = read_found(place)
    return f"{arm.name}: {found.complete[0]:.4f} after {found.seconds:.0f} s of processor time\n"


def rate_of(sizes: Sizes, arm: Arm) -> float | None:
    """The rate that an arm takes over from another; None where it has its own, or the other was not run yet."""
    if arm.pace_maker is None or (place := place_of(sizes, arm.pace_maker)) is None or not place.exists():
        return None
    return uniform_rate_of(sizes, masked_share_of(place))


def place_of(sizes: Sizes, arm: Arm) -> Path | None:
    """Where an arm's result lies, another recipe having other results; None as long as the rate that it copies is not known."""
    rate = rate_of(sizes, arm)
    if arm.pace_maker is not None and rate is None:
        return None
    settings = f"{recipes.to_yaml(recipe_of(sizes, arm, rate))}{sizes.resamples} {sizes.sweep_subjects}"
    return sizes.cohort / "arms" / f"{arm.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.npz"


def show(sizes: Sizes, found: dict[Arm, Found], num_arms: int) -> None:
    """The page and the figure."""
    text = page(sizes, found, num_arms)
    print(text)
    beside = Path(__file__).parent if sizes.runs == FULL.runs else sizes.runs
    (beside / "sgm.md").write_text(text, encoding="utf-8")
    draw(sizes, found).savefig(beside / "sgm.png", dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1:])
