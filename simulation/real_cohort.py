"""Five pretend hospitals made of the real volumes: tables that point into the data folder, nothing copied.

Two brain hospitals share the IXI brains, which all come from one scanner: they are pseudo-sites, and say nothing about
differences between scanners. A heart centre, an abdominal centre and a kidney centre hold a handful of subjects each.
Which brains train, and at which of the two hospitals, follows from a hash of the subject; the rest are held out. The seed turns
the split on, so that with a train_share of 2/3 three seeds in a row hold out each brain once.

Left out, each for a reason: the DICOM series (a later reader's), `example_ct_sm` (a cut of `example_ct`, but its header
puts it 246 mm lower), the limb scans (`sts`: no organ of the seven but a rim of fat around a tumour), second echoes and
field maps of the kidney sessions (`e2` correlates with `e1` at .93 to .97; `e1a` is a map of frequencies), and
the 4D cine (the same heart as SCD0000301's ED and ES).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panfm.data.manifest import LabelTable, ScanRow, VoxelBox, write_labels, write_scan_table
from panfm.data.reading import read_scan
from panfm.errors import DataError
from panfm.organs import SEVEN_ORGANS, TOTALSEGMENTATOR_CT, TOTALSEGMENTATOR_MR

FAT_HU = (-190.0, -30.0)
"""Adipose tissue on CT (the usual range, for example Yoshizumi et al. 1999, Radiology 211:283)."""

BRAIN_WINDOW = (1.0, 255.0)
"""Voxels outside the brain were set to 0 in these files; every other value is brain or its fluid."""

_ABDOMINAL = ("liver", "kidney", "spleen", "pancreas")
_ABDOMEN_CT_BOX: VoxelBox = ((0, 122), (5, 97), (58, 112))
"""Where `example_ct` shows the upper abdomen: above the table, from the lower poles of the kidneys upwards (seen on the
slices); so that its fat and that of the shorter CRLM scan are of the same region."""


@dataclass(frozen=True, slots=True)
class RealCohort:
    """The pretend hospitals as written."""

    sites: Mapping[str, Path]
    """Name of each site -> folder with its `scans.csv`, sorted by name."""
    evaluation: Path
    """Folder with `scans.csv` (splits `probe` and `test`) and `labels.csv` (age, sex_male, brain_ml)."""


@dataclass(frozen=True, slots=True)
class _Brain:
    subject: str
    path: Path
    age: float
    """Years; NaN where unknown."""
    sex_male: float
    """1 male, 0 female, NaN unknown."""


def write_real_hospitals(data: Path, folder: Path, *, train_share: float, seed: int) -> RealCohort:
    """Write one table per pretend hospital, and the evaluation's tables.

    Args:
        data: folder of the real volumes (the one that holds `brain_ixi/`); only pointed to.
        folder: gets a folder per site, and `evaluation/`.
        train_share: share of the brains that train; the rest are held out.
        seed: of the run; which share of them it is.
    Raises: DataError when the data folder lacks what is expected.
    """
    data = data.absolute()
    brains = _read_brains(data)
    training = [brain for brain in brains if _trains(brain.subject, train_share, seed)]
    tables = {
        "abdomen": _abdomen_rows(data),
        "brain_a": [_brain_row(brain, "pretrain") for brain in training if _share("site", brain.subject) < 0.5],
        "brain_b": [_brain_row(brain, "pretrain") for brain in training if _share("site", brain.subject) >= 0.5],
        "heart": _heart_rows(data),
        "kidney": _kidney_rows(data),
    }
    for site, rows in tables.items():
        _write_site(folder / site, rows)
    known = [brain for brain in brains if math.isfinite(brain.age)]
    splits = ["probe" if _trains(brain.subject, train_share, seed) else "test" for brain in known]
    _write_evaluation(folder / "evaluation", known, splits)
    return RealCohort({site: folder / site for site in tables}, folder / "evaluation")


def _write_site(folder: Path, rows: Sequence[ScanRow]) -> None:
    if not rows:
        raise DataError(f"no scan for {folder.name}; choose another train_share")
    missing = [path for row in rows for path in (row.path, *row.label_map) if not path.is_file()]
    if missing:
        raise DataError(f"the real volumes lack {missing[0]}; complete the folder that data= names")
    write_scan_table(folder / "scans.csv", rows)


def _write_evaluation(folder: Path, brains: Sequence[_Brain], splits: Sequence[str]) -> None:
    _write_site(folder, [_brain_row(brain, split) for brain, split in zip(brains, splits, strict=True)])
    values = [[brain.age, brain.sex_male, _brain_ml(brain.path)] for brain in brains]
    subjects = tuple(brain.subject for brain in brains)
    table = LabelTable(
        names=("age", "sex_male", "brain_ml"),
        subjects=subjects,
        visits=("",) * len(subjects),
        values=np.array(values, dtype=np.float64),
    )
    write_labels(folder / "labels.csv", table)


def _share(purpose: str, subject: str) -> float:
    """A number in [0, 1) that depends on the purpose and the subject alone."""
    digest = hashlib.blake2b(f"panfm real cohort/{purpose}/{subject}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _trains(subject: str, train_share: float, seed: int) -> bool:
    return (_share("brains", subject) + seed * (1 - train_share)) % 1 < train_share


# ---- brains ---------------------------------------------------------------------------------------------------------


def _read_brains(data: Path) -> list[_Brain]:
    people = _read_people(data)
    suffix = "_T1brain.nii.gz"
    paths = sorted((data / "brain_ixi").glob(f"*{suffix}"))
    if not paths:
        raise DataError(f"data={data} should point at the folder with brain_ixi/*{suffix}; that folder holds no brain")
    return [_brain(path, path.name.removesuffix(suffix), people) for path in paths]


def _read_people(data: Path) -> dict[str, dict[str, str]]:
    try:
        with (data / "brain_ixi" / "participants.csv").open(newline="", encoding="utf-8") as stream:
            return {person["MRID"]: person for person in csv.DictReader(stream)}
    except (OSError, KeyError) as error:
        found = ", ".join(sorted(path.name for path in data.iterdir())) if data.is_dir() else "no such folder"
        raise DataError(
            f"data={data} should point at the folder with brain_ixi/participants.csv; got {found or 'an empty folder'}"
        ) from error


def _brain(path: Path, subject: str, people: Mapping[str, Mapping[str, str]]) -> _Brain:
    person = people.get(subject, {})
    sex = {"M": 1.0, "F": 0.0}.get(person.get("Sex", ""), math.nan)
    return _Brain(subject, path, float(person.get("Age") or math.nan), sex)


def _brain_row(brain: _Brain, split: str) -> ScanRow:
    return ScanRow(subject=brain.subject, organ="brain", path=brain.path, window=BRAIN_WINDOW, split=split)


def _brain_ml(path: Path) -> float:
    """Volume of the non-zero voxels, millilitres."""
    scan = read_scan(path)
    return float(np.count_nonzero(scan.voxels) * math.prod(scan.spacing_mm) / 1000)


# ---- hearts ---------------------------------------------------------------------------------------------------------


def _heart_rows(data: Path) -> list[ScanRow]:
    """Short-axis cine at two phases, cut around the left ventricle; one CT cut around the whole heart."""
    folder = data / "heart_sunnybrook"
    cine = [
        ScanRow(
            subject=subject,
            visit=phase,
            organ="heart",
            path=folder / f"{subject}_{phase}.nii.gz",
            label_map=(folder / f"{subject}_{phase}_gt.nii.gz",),
            split="pretrain",
        )
        for subject in ("SCD0000101", "SCD0000201", "SCD0000301")
        for phase in ("ED", "ES")
    ]
    report = data / "abdomen_totalsegmentator" / "aorta_report"
    mask = report / "heart_on_ct_cropped_grid.nii.gz"
    ct = ScanRow(
        subject="aorta_report", organ="heart", path=report / "ct_cropped.nii.gz", label_map=(mask,), split="pretrain"
    )
    return [ct, *cine]


# ---- abdomens -------------------------------------------------------------------------------------------------------


def _abdomen_rows(data: Path) -> list[ScanRow]:
    folder = data / "abdomen_totalsegmentator"
    ct, ct_map = folder / "example_ct.nii.gz", folder / "example_seg_fast_force_split.nii.gz"
    mr, mr_map = folder / "example_mr_sm.nii.gz", folder / "example_seg_mr.nii.gz"
    rows = [
        *_labelled_rows("example_ct", ct, ct_map, TOTALSEGMENTATOR_CT),
        ScanRow(subject="example_ct", organ="adipose", path=ct, box=_ABDOMEN_CT_BOX, window=FAT_HU, split="pretrain"),
        *_labelled_rows("example_mr", mr, mr_map, TOTALSEGMENTATOR_MR),
        *_boxed_rows(data / "body_tcia"),
    ]
    return sorted(rows, key=lambda row: (row.subject, SEVEN_ORGANS.index(row.organ)))


def _labelled_rows(subject: str, path: Path, label_map: Path, ids: Mapping[str, tuple[int, ...]]) -> list[ScanRow]:
    return [
        ScanRow(subject=subject, organ=organ, path=path, label_map=(label_map,), label_ids=ids[organ], split="pretrain")
        for organ in _ABDOMINAL
    ]


def _boxed_rows(folder: Path) -> list[ScanRow]:
    """The CRLM scans that are there, cut by the boxes that somebody drew around their organs."""
    try:
        boxes = json.loads((folder / "organ_boxes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}/organ_boxes.json cannot be read ({error}); complete the folder") from error
    paths = sorted((folder / "crlm").glob("*_CT.nii.gz"))
    return [row for path in paths for row in _boxed_scan(path, boxes.get(f"crlm/{path.name}", {}))]


def _boxed_scan(path: Path, drawn: Mapping[str, Sequence[int]]) -> list[ScanRow]:
    subject = path.name.removesuffix("_CT.nii.gz")
    found = {organ: [box for name, box in drawn.items() if name.split("_")[0] == organ] for organ in _ABDOMINAL}
    organs = [
        ScanRow(subject=subject, organ=organ, path=path, box=_union(boxes), split="pretrain")
        for organ, boxes in found.items()
        if boxes
    ]
    return [*organs, ScanRow(subject=subject, organ="adipose", path=path, window=FAT_HU, split="pretrain")]


def _union(boxes: Sequence[Sequence[int]]) -> VoxelBox:
    """The box around several boxes, each x0, x1, y0, y1, z0, z1: right and left kidney become one."""
    low, high = np.min(boxes, axis=0), np.max(boxes, axis=0)
    x, y, z = ((int(low[2 * axis]), int(high[2 * axis + 1])) for axis in range(3))
    return (x, y, z)


# ---- kidneys --------------------------------------------------------------------------------------------------------

_KIDNEY_SESSIONS = (
    ("philips_01", "00501", "_B0_map_expiration_volume_2DMS_product_auto_e1", "01001"),
    ("philips_01", "01001", "_B0_map_expiration_volume_2DMS_product_auto_e1", "01001"),
    ("philips_04", "00501", "_B0_map_expiration_volume_2DMS_delTE2.3_e1", "00501"),
    ("siemens_01", "0044", "bh_b0map_fa3_default_bh_b0map_fa3_default_e1", "0044"),
    ("siemens_02", "0039", "bh_b0map_default_bh_b0map_default_e1", "0039"),
)
"""Session, series (our visit), rest of the file name, and the series on whose grid the kidneys were drawn: the two series
of philips_01 are breath-holds of one session on one grid. philips_04 and siemens_02 were drawn on one coronal slice,
which is enough to centre the crop."""


def _kidney_rows(data: Path) -> list[ScanRow]:
    """Coronal slabs, cut around both kidneys."""
    return [_kidney_row(data / "kidney_ukat" / session, *series) for session, *series in _KIDNEY_SESSIONS]


def _kidney_row(folder: Path, series: str, name: str, drawn_on: str) -> ScanRow:
    return ScanRow(
        subject=folder.name,
        visit=series,
        organ="kidney",
        path=folder / f"{series}_{name}.nii.gz",
        label_map=tuple(folder / f"{drawn_on}_{name}_roi-{side}.nii.gz" for side in ("L", "R")),
        split="pretrain",
    )
