"""How fast is the synthetic cohort written? Volumes a second on one core, per organ and voxels a side, files included.

Run `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/synthetic.py`; it prints the table that `benchmarks/synthetic.md` holds. The
seconds are of processor time, for other programs may share the machine. The scanners are those of eight sites, so
that thick and thin slices are both in the mean.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import datetime
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine
from panfm.config import Missingness
from panfm.data.synthetic import SyntheticSite, write_synthetic_site
from panfm.organs import SEVEN_ORGANS

SIDES = (24, 32, 48)
SUBJECTS = 40
SCANNERS = tuple(f"site{number}" for number in range(8))


def volumes_per_second(organs: tuple[str, ...], voxels: int) -> float:
    """Volumes written in a second of processor time, for complete subjects with these organs."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        write_synthetic_site(
            Path(folder),
            SyntheticSite("speed", organs, SUBJECTS),
            seed=0,
            voxels=voxels,
            missingness=Missingness.mcar,
            missing_rate=0.0,
            scanners=SCANNERS,
        )
        return SUBJECTS * len(organs) / (time.process_time() - start)


def main() -> None:
    volumes_per_second(("liver",), SIDES[0])  # the first call also calibrates the labels
    print(f"Volumes a second of processor time, one core ({machine()}), {datetime.date.today()}.\n")
    print("| organ | " + " | ".join(f"{side} voxels a side" for side in SIDES) + " |")
    print("|---" * (len(SIDES) + 1) + "|")
    for name, organs in [*((organ, (organ,)) for organ in SEVEN_ORGANS), ("all seven", SEVEN_ORGANS)]:
        speeds = [f"{volumes_per_second(organs, side):.0f}" for side in SIDES]
        print(f"| {name} | " + " | ".join(speeds) + " |", flush=True)


if __name__ == "__main__":
    main()
