"""Writes a synthetic site to disk as a hospital would offer it: NIfTI files, a table of scans and a table of labels.

One subject at a time, so that memory does not grow with the cohort. A subject is a function of (seed, index), an
organ's body of (seed, index, organ), a scan of these and the scanner: neither the order of writing, nor the site, nor which
other organs are present changes a voxel.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from panfm.config import Missingness, OrganGrid
from panfm.data.manifest import COLUMNS
from panfm.data.synthetic.anatomy import EXTENT_MM, PAINTERS
from panfm.data.synthetic.diseases import LABELS, draw_labels
from panfm.data.synthetic.factors import Factors, draw_factors
from panfm.data.synthetic.missingness import calibrate
from panfm.data.synthetic.scanner import Scanner, acquire, recommended_grids, sampling_of, scanner_of, stored_image
from panfm.data.synthetic.shapes import Frame, Point, Volume, posed_frame
from panfm.data.synthetic.traits import DRAWN_LIMIT, draw_traits
from panfm.errors import ConfigError
from panfm.organs import SEVEN_ORGANS, in_order
from panfm.randomness import stream

LABEL_COLUMNS = ("subject", "visit", "age", "sex", *LABELS)

TURN_SD_DEG = 3.0
"""Standard deviation of an organ's turn about each axis."""
SHIFT_SD = 0.012
"""Standard deviation of an organ's place in its scan, as a share of its box."""
TABLE_SD_MM = 15.0
"""Standard deviation of where the scan lies in the scanner's room; seen in the affine alone."""


@dataclass(frozen=True, slots=True)
class SyntheticSite:
    """A pretend hospital."""

    name: str
    organs: tuple[str, ...]
    """The organs that it images, of the seven."""
    num_subjects: int

    def __post_init__(self) -> None:
        if not self.organs:
            raise ConfigError(f"site {self.name!r} images no organ; give it at least one of {', '.join(SEVEN_ORGANS)}")
        in_order(self.organs, SEVEN_ORGANS)
        if self.num_subjects < 1:
            raise ConfigError(f"site {self.name!r} needs at least 1 subject, got {self.num_subjects}")


def _triple(values: np.ndarray) -> Point:
    return float(values[0]), float(values[1]), float(values[2])


def draw_body(
    seed: int, subject: int, organ: str, frame_of: Callable[[Point, Point], Frame], factors: Factors
) -> Volume:
    """Tissue brightness of one organ of one subject on the frame made of its turn (degrees) and shift (mm)."""
    rng = stream(seed, "subject", subject, organ, "body")
    turn = np.clip(rng.normal(0, TURN_SD_DEG, 3), -3 * TURN_SD_DEG, 3 * TURN_SD_DEG)
    shift = np.clip(rng.standard_normal(3), -2.5, 2.5) * SHIFT_SD * np.array(EXTENT_MM[organ])
    traits = draw_traits(seed, subject, organ, factors)
    drawn = {name: min(max(value, -DRAWN_LIMIT), DRAWN_LIMIT) for name, value in traits.items()}
    return PAINTERS[organ](frame_of(_triple(turn), _triple(shift)), drawn, rng)


def scan_organ(
    seed: int, subject: int, organ: str, scanner: Scanner, grid: OrganGrid, factors: Factors
) -> nib.Nifti1Image:
    """One organ of one subject as that scanner would store it."""
    sampling = sampling_of(scanner, grid)

    def frame_of(turn_deg: Point, shift_mm: Point) -> Frame:
        return posed_frame(sampling.axes_mm(), turn_deg, shift_mm, sampling.edge_mm())

    tissue = sampling.merge_slabs(draw_body(seed, subject, organ, frame_of, factors))
    rng = stream(seed, "subject", subject, organ, "scan", scanner.name)
    centre = _triple(rng.normal(0, TABLE_SD_MM, 3))
    return stored_image(scanner, sampling, acquire(scanner, tissue, rng), centre)


def _scan_rows(subject: str, files: Iterable[tuple[str, str]], split: str) -> list[dict[str, str]]:
    return [{"subject": subject, "visit": "1", "organ": organ, "path": path, "split": split} for organ, path in files]


def _label_row(subject: str, seed: int, index: int, factors: Factors) -> dict[str, str]:
    known = {"subject": subject, "visit": "1", "age": f"{factors.age_years:.1f}", "sex": str(int(factors.is_male))}
    return known | {name: str(value) for name, value in draw_labels(seed, index, factors).items()}


def write_synthetic_site(
    folder: Path,
    site: SyntheticSite,
    *,
    seed: int,
    voxels: int,
    missingness: Missingness,
    missing_rate: float,
    first_subject: int = 0,
    split: str = "",
    scanners: tuple[str, ...] = (),
    on_subject: Callable[[int, int], None] | None = None,
) -> None:
    """Write the subjects first_subject, first_subject + 1, ... of a site.

    Makes `scans/sub-XXXXX_organ.nii`, `scans.csv` (one row per scan, paths relative to the folder, columns of label
    maps and boxes empty) and `labels.csv` (age in years; sex 1 male, 0 female; each label 0 or 1). The same call writes the
    same files, byte for byte.

    Args:
        folder: made if need be; files of the same names in it are replaced.
        seed: root seed; sites of one study share it and take disjoint ranges of subjects.
        voxels: voxels a side of the nominal grid (`recommended_grids`); a scanner's own spacing differs from it.
        missing_rate: share of each organ's scans that are missing; 0 writes complete subjects.
        first_subject: index of the first subject.
        split: what the column `split` says for every scan.
        scanners: names of the scanners, cycled over the subjects; empty: the site's own, named like the site.
        on_subject: called with (subjects written, subjects in all) after each subject.

    Raises: ConfigError when the missing rate cannot be held; see `calibrate`.
    """
    organs = in_order(site.organs, SEVEN_ORGANS)
    who_is_missing = calibrate(missingness, organs, missing_rate)
    machines = [scanner_of(seed, name) for name in scanners or (site.name,)]
    grids = recommended_grids(voxels)
    (folder / "scans").mkdir(parents=True, exist_ok=True)
    with (folder / "scans.csv").open("w", newline="") as scans, (folder / "labels.csv").open("w", newline="") as labels:
        scan_table = csv.DictWriter(scans, COLUMNS, restval="", lineterminator="\n")
        label_table = csv.DictWriter(labels, LABEL_COLUMNS, lineterminator="\n")
        scan_table.writeheader()
        label_table.writeheader()
        for done in range(site.num_subjects):
            index = first_subject + done
            name, factors = f"sub-{index:05d}", draw_factors(seed, index)
            files = [(o, f"scans/{name}_{o}.nii") for o in who_is_missing.present(seed, index, factors)]
            for organ, path in files:
                image = scan_organ(seed, index, organ, machines[done % len(machines)], grids[organ], factors)
                nib.save(image, folder / path)
            scan_table.writerows(_scan_rows(name, files, split))
            label_table.writerow(_label_row(name, seed, index, factors))
            if on_subject is not None:
                on_subject(done + 1, site.num_subjects)
