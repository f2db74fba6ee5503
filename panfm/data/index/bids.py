"""BIDS: `sub-<label>/[ses-<label>/]<datatype>/<entities>_<suffix>.nii.gz` (bids-specification.readthedocs.io, 1.10).

BIDS says who, when and how, and rarely which organ: that is the site's to say. Of one subject, visit and organ one scan is
taken: of the suffixes in the order of preference, then of repeated runs the first. What differs otherwise (acq, rec, ...)
is a choice that only the site can make, so both are refused as `several_scans` until --leave-out or --organ tells them apart.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from panfm.data.index.found import Found, FoundScan, Skipped
from panfm.data.index.organ_rules import OrganRules
from panfm.data.index.patterns import LabelPattern, label_maps_by_key, maps_of, not_understood
from panfm.data.index.site_tree import Entry, SiteTree

_PLACE = re.compile(r"sub-(?P<subject>[^/_]+)/(?:ses-(?P<visit>[^/_]+)/)?(?P<datatype>[^/]+)/(?P<name>[^/]+)")
_NOT_SUBJECTS = ("derivatives/", "sourcedata/", "code/", "stimuli/", "phenotype/")
_NOT_MAGNITUDE = ("phase", "real", "imag")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """One file, with what its name says."""

    entry: Entry
    person: str
    visit: str
    organ: str
    suffix: str
    entities: Mapping[str, str]


def scans_in_bids(
    tree: SiteTree, organ_rules: OrganRules, suffixes: Sequence[str], label_patterns: Sequence[LabelPattern] = ()
) -> Found:
    """The scans of a BIDS dataset.

    Args:
        tree: the dataset.
        organ_rules: which organ a scan shows.
        suffixes: suffixes that are taken, the preferred one first.
        label_patterns: where label maps lie, usually below `derivatives/`.
    """
    maps = label_maps_by_key(tree, label_patterns)
    drawn = {one.path for found in maps.values() for one in found}
    images: list[_Image] = []
    skipped: list[Skipped] = []
    for entry in tree.entries:
        if entry.path not in drawn and not entry.name.startswith(_NOT_SUBJECTS):
            answer = _image(entry, organ_rules, suffixes, from_map=bool(label_patterns))
            if isinstance(answer, Skipped):
                skipped.append(answer)
            else:
                images.append(answer)
    chosen, others = _chosen(images, suffixes)
    scans = [
        FoundScan(
            person=image.person,
            visit=image.visit,
            organ=image.organ,
            path=image.entry.path,
            label_maps=maps_of(image.organ, (image.person, image.visit), maps),
        )
        for image in chosen
    ]
    if label_patterns:
        skipped += [_no_map(image.entry) for image, scan in zip(chosen, scans, strict=True) if not scan.label_maps]
        scans = [scan for scan in scans if scan.label_maps]
    return Found(tuple(scans), (*skipped, *others))


def _no_map(entry: Entry) -> Skipped:
    return Skipped(
        entry.name, "no_label_map", "no label map of this subject and visit; make one, or correct --label-map"
    )


def _image(entry: Entry, organ_rules: OrganRules, suffixes: Sequence[str], *, from_map: bool) -> _Image | Skipped:
    place = _PLACE.fullmatch(entry.stem)
    if place is None:
        return not_understood(entry)
    *pairs, suffix = place["name"].split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    visit = place["visit"] or ""
    if entities.get("sub") != place["subject"] or entities.get("ses", "") != visit:
        return Skipped(entry.name, "bids_name", "file and folder name another subject or session; correct one of them")
    if suffix not in suffixes:
        return Skipped(entry.name, "other_suffix", f"only {', '.join(suffixes)} was asked for; see --suffix")
    if entities.get("part") in _NOT_MAGNITUDE:
        return Skipped(entry.name, "no_magnitude", "phase, real or imaginary part; the magnitude image is what is used")
    organ = organ_rules.organ(entry, "", from_map=from_map)
    if isinstance(organ, Skipped):
        return organ
    return _Image(entry=entry, person=place["subject"], visit=visit, organ=organ, suffix=suffix, entities=entities)


def _chosen(images: Sequence[_Image], suffixes: Sequence[str]) -> tuple[list[_Image], list[Skipped]]:
    """Of each subject, visit and organ the preferred suffix, and of each kind of it the first run."""
    chosen, others = [], []
    groups: dict[tuple[str, str, str], list[_Image]] = {}
    for image in images:
        groups.setdefault((image.person, image.visit, image.organ), []).append(image)
    for group in groups.values():
        best = min(suffixes.index(image.suffix) for image in group)
        preferred = [image for image in group if suffixes.index(image.suffix) == best]
        reason = f"a {suffixes[best]} of the same organ and visit is preferred"
        others += [Skipped(i.entry.name, "less_preferred", reason) for i in group if i not in preferred]
        first = _first_runs(preferred)
        chosen += first
        reason = "an earlier run of the same scan is taken"
        others += [Skipped(i.entry.name, "later_run", reason) for i in preferred if i not in first]
    return chosen, others


def _first_runs(images: Sequence[_Image]) -> list[_Image]:
    kinds: dict[tuple[tuple[str, str], ...], _Image] = {}
    for image in sorted(images, key=_run):
        kind = tuple(sorted((k, v) for k, v in image.entities.items() if k != "run"))
        kinds.setdefault(kind, image)
    return list(kinds.values())


def _run(image: _Image) -> tuple[int, str]:
    run = image.entities.get("run", "0")
    return (int(run) if run.isdecimal() else 0, image.entry.name)
