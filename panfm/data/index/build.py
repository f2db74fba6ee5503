"""The index itself: one request in, the site's tables out, the same bytes for the same folder and key.

Real identifiers enter here and end here. What is written holds pseudonyms, numbers, and the paths that the site's own files
have; the table of what was skipped names files and lines, never a cell's text that could be a name.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from panfm.data.index.bids import scans_in_bids
from panfm.data.index.dicom_export import scans_in_export
from panfm.data.index.found import Found, FoundScan, LabelList, Skipped
from panfm.data.index.label_lists import label_pattern
from panfm.data.index.layout import Layout
from panfm.data.index.mapped_table import read_lines, scans_in_table
from panfm.data.index.organ_rules import OrganRules
from panfm.data.index.patterns import LabelPattern, Pattern, PatternRule, compile_pattern, scans_by_pattern
from panfm.data.index.people import PARTICIPANTS, Key, Person, label_table, people_in, read_people
from panfm.data.index.present_organs import scans_by_organ
from panfm.data.index.pseudonym import PseudonymKey
from panfm.data.index.site_tree import SiteTree, walk
from panfm.data.manifest import LabelTable, ScanRow, write_labels, write_scan_table
from panfm.data.store import write_csv
from panfm.errors import ConfigError, DataError

SCANS, LABELS, SKIPPED, STATEMENT = "scans.csv", "labels.csv", "skipped.csv", "index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRequest:
    """What a site asks for."""

    source: Path
    """The folder of scans, or the table of layout `table`."""
    organs: OrganRules
    layout: Layout = Layout.auto
    scan_patterns: tuple[Pattern, ...] = ()
    label_patterns: tuple[LabelPattern, ...] = ()
    table_labels: LabelList | None = None
    """Layout `table`: what the numbers in its label maps mean, for lines without organ."""
    suffixes: tuple[str, ...] = ("T1w",)
    """Layout `bids`: the preferred one first."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """panfm's names -> headers of the site's own tables."""
    participants: Path | None = None
    left_out: tuple[str, ...] = ()
    """Patterns of files that are not looked at."""
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Organ -> raw intensities outside which all is background."""
    shares: Mapping[str, float] = field(default_factory=lambda: {"pretrain": 1.0})


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteIndex:
    """A site's tables, before they are written."""

    layout: Layout
    rows: tuple[ScanRow, ...]
    """Sorted by subject, visit and organ."""
    labels: LabelTable | None
    skipped: tuple[Skipped, ...]
    """Sorted by path."""
    key: str
    """The key's fingerprint."""


def build_index(request: IndexRequest, key: PseudonymKey) -> SiteIndex:
    """Look through a folder or a table, and list what can be used and what cannot.

    Raises: DataError when it cannot be read, or two people came out as one; ConfigError when the request does not fit it.
    """
    layout = _layout(request)
    tree = None if layout is Layout.table else walk(request.source, request.left_out)
    found, people = _from_table(request) if tree is None else (_from_tree(tree, layout, request), _people(request))
    folder = request.source.absolute().parent if tree is None else tree.folder
    scans, no_organ = scans_by_organ(found.scans, request.organs.vocabulary, lambda path: _name(path, folder))
    single, several = _one_each(scans, folder)
    rows = _rows(single, key, request)
    _refuse_shared_pseudonyms(rows)
    return SiteIndex(
        layout=layout,
        rows=tuple(row for _, row in rows),
        labels=label_table(rows, people),
        skipped=tuple(sorted({*found.skipped, *no_organ, *several})),
        key=key.fingerprint,
    )


def write_index(folder: Path, index: SiteIndex) -> None:
    """Write `scans.csv`, `labels.csv` where something is known, `skipped.csv` and `index.json` into the site's folder.

    Raises: DataError when there is no scan, when the folder cannot be written, or when its tables were made with another
        key: half of the subjects would be under other pseudonyms than the store's.
    """
    if not index.rows:
        raise DataError(f"no scan found to list; {_reasons(index.skipped)}")
    _refuse_other_key(folder / STATEMENT, index.key)
    try:
        write_scan_table(folder / SCANS, index.rows)
        if index.labels is not None:
            write_labels(folder / LABELS, index.labels)
        write_csv(folder / SKIPPED, ("path", "code", "reason"), [[s.path, s.code, s.reason] for s in index.skipped])
        (folder / STATEMENT).write_text(
            json.dumps(_statement(index), indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise DataError(
            f"cannot write into {folder} ({error.strerror}); free space or choose another folder"
        ) from error


def subjects_by_organ(index: SiteIndex) -> dict[str, int]:
    """How many subjects have each organ."""
    return dict(Counter(organ for _, organ in {(row.subject, row.organ) for row in index.rows}))


# ---- layouts --------------------------------------------------------------------------------------------------------


def _layout(request: IndexRequest) -> Layout:
    if request.layout is not Layout.auto:
        return request.layout
    if request.source.is_file():
        return Layout.table
    if request.scan_patterns:
        return Layout.pattern
    fitting = _fitting(request.source, request.organs.vocabulary)
    if len(fitting) != 1:
        what = "several layouts fit" if fitting else "no layout fits"
        choices = ", ".join(layout.value for layout in fitting or Layout if layout is not Layout.auto)
        raise ConfigError(f"{what} {request.source}; say --layout, one of {choices}, or --scan with a pattern")
    return fitting[0]


def _fitting(folder: Path, vocabulary: Sequence[str]) -> list[Layout]:
    if not folder.is_dir():
        raise DataError(f"{folder} should be a folder of scans or a table; correct the path")
    inside = [path for path in folder.iterdir() if path.is_dir()]
    fits = {
        Layout.bids: any(path.name.startswith("sub-") for path in inside),
        Layout.organs: any(path.name in vocabulary for path in inside),
        Layout.bodies: any((path / name).exists() for path in inside for name in _BODIES_FILES),
    }
    return [layout for layout, fit in fits.items() if fit]


_BODIES_FILES = ("segmentations", "segmentations.nii.gz", "segmentations.nii")


def _from_tree(tree: SiteTree, layout: Layout, request: IndexRequest) -> Found:
    found = _by_layout(tree, layout, request)
    return Found(found.scans, (*found.skipped, *tree.skipped))


def _by_layout(tree: SiteTree, layout: Layout, request: IndexRequest) -> Found:
    if layout is Layout.bids:
        return scans_in_bids(tree, request.organs, request.suffixes, request.label_patterns)
    if layout is Layout.dicom:
        return scans_in_export(tree, request.organs)
    if layout is Layout.organs:
        rules = [PatternRule((compile_pattern("{organ}/{subject}"),), request.label_patterns)]
        rules += [PatternRule((compile_pattern("{organ}/{subject}/{visit}"),), request.label_patterns)]
    elif layout is Layout.bodies:
        rules = _bodies(request)
    else:
        rules = [PatternRule(request.scan_patterns, request.label_patterns)]
    if not any(rule.scans for rule in rules):
        raise ConfigError("--layout pattern needs --scan, such as --scan '{subject}/{visit}/t1'")
    return scans_by_pattern(tree, rules, request.organs)


def _bodies(request: IndexRequest) -> list[PatternRule]:
    """`<case>/ct` with TotalSegmentator's CT list, `<case>/mri` with its MR list: one map, or a folder of masks."""
    kinds = {"totalsegmentator_ct": ("{subject}/ct",), "totalsegmentator_mr": ("{subject}/mri", "{subject}/mr")}
    rules = []
    for labels, scans in kinds.items():
        where = (f"{{subject}}/segmentations={labels}", f"{{subject}}/segmentations/{{label}}={labels}")
        maps = tuple(label_pattern(text, request.organs.vocabulary) for text in where)
        rules.append(PatternRule(tuple(compile_pattern(text) for text in scans), request.label_patterns or maps))
    return rules


def _from_table(request: IndexRequest) -> tuple[Found, Mapping[Key, Person]]:
    lines = read_lines(request.source, request.columns, ("subject", "path"))
    found = scans_in_table(request.source, lines, request.organs, request.table_labels)
    return found, people_in(lines, request.source.name)


def _people(request: IndexRequest) -> Mapping[Key, Person]:
    if request.participants is not None:
        return read_people(request.participants, request.columns)
    usual = request.source / PARTICIPANTS
    return read_people(usual, request.columns) if usual.is_file() else {}


# ---- rows -----------------------------------------------------------------------------------------------------------


def _one_each(scans: Sequence[FoundScan], folder: Path) -> tuple[list[FoundScan], list[Skipped]]:
    """Scans that are the only one of their person, visit and organ; a choice among several is the site's."""
    groups: dict[tuple[str, str, str], list[FoundScan]] = {}
    for scan in scans:
        groups.setdefault((scan.person, scan.visit, scan.organ), []).append(scan)
    several = [
        Skipped(
            _name(scan.path, folder),
            "several_scans",
            f"{len(group)} scans of the {scan.organ} of one subject and visit; --leave-out one, or tell visits apart",
        )
        for group in groups.values()
        for scan in group
        if len(group) > 1
    ]
    return [group[0] for group in groups.values() if len(group) == 1], several


def _rows(scans: Sequence[FoundScan], key: PseudonymKey, request: IndexRequest) -> list[tuple[Key, ScanRow]]:
    splits = _splits(scans, key, request.shares)
    rows = [((scan.person, scan.visit), _row(scan, key, splits[scan.person], request.windows)) for scan in scans]
    return sorted(rows, key=lambda row: (row[1].subject, row[1].visit, row[1].organ))


def _splits(scans: Sequence[FoundScan], key: PseudonymKey, shares: Mapping[str, float]) -> dict[str, str]:
    """The split of each person: the site's own where its table says one, which must then be one."""
    stated: dict[str, set[str]] = {}
    for scan in scans:
        stated.setdefault(scan.person, set()).add(scan.split)
    if mixed := sum(len(splits) > 1 for splits in stated.values()):
        raise DataError(
            f"{mixed} subjects are in several splits; a person with all visits belongs to one, correct the table"
        )
    return {person: next(iter(splits)) or key.split(person, shares) for person, splits in stated.items()}


def _row(scan: FoundScan, key: PseudonymKey, split: str, windows: Mapping[str, tuple[float, float]]) -> ScanRow:
    return ScanRow(
        subject=key.subject(scan.person),
        visit=key.visit(scan.person, scan.visit),
        organ=scan.organ,
        path=scan.path,
        volume=scan.volume,
        label_map=tuple(one.path for one in scan.label_maps),
        label_ids=scan.label_ids,
        box=scan.box,
        window=scan.window or windows.get(scan.organ),
        split=split,
    )


def _refuse_shared_pseudonyms(rows: Sequence[tuple[Key, ScanRow]]) -> None:
    for taken in (
        {(row.subject, person) for (person, _), row in rows},
        {((row.subject, row.visit), key) for key, row in rows},
    ):
        if len({pseudonym for pseudonym, _ in taken}) != len(taken):
            raise DataError("two people or visits came out under one pseudonym; make the tables with another key")


# ---- what is written ------------------------------------------------------------------------------------------------


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def _reasons(skipped: Sequence[Skipped]) -> str:
    counts = Counter(one.code for one in skipped).most_common(3)
    if not counts:
        return "the folder holds no NIfTI file and no DICOM series"
    first = next(one for one in skipped if one.code == counts[0][0])
    text = ", ".join(f"{count} {code}" for code, count in counts)
    return f"{len(skipped)} files skipped ({text}), such as {first.path}: {first.reason}"


def _statement(index: SiteIndex) -> dict[str, object]:
    """No times and no places, so that equal inputs give equal bytes."""
    return {
        "layout": index.layout.value,
        "key_fingerprint": index.key,
        "scans": len(index.rows),
        "subjects": len({row.subject for row in index.rows}),
        "subjects_by_organ": subjects_by_organ(index),
        "skipped_by_code": dict(Counter(one.code for one in index.skipped)),
    }


def _refuse_other_key(statement: Path, fingerprint: str) -> None:
    try:
        recorded = json.loads(statement.read_text(encoding="utf-8"))["key_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if recorded != fingerprint:
        raise DataError(
            f"the tables in {statement.parent} were made with another key ({recorded}, now {fingerprint}): "
            "give that one with --key, or choose another folder"
        )
