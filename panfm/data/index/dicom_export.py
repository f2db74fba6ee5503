"""An export as an archive writes it: any folders, each with the slices of one series; who it is of stands in the headers.

Patient and study identifiers are read to be hashed. Everything else in a header, names and dates above all, is left alone.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from panfm.data.index.found import Found, FoundScan, Skipped
from panfm.data.index.organ_rules import OrganRules
from panfm.data.index.patterns import not_understood
from panfm.data.index.site_tree import Entry, SiteTree
from panfm.errors import ScanError


def scans_in_export(tree: SiteTree, organ_rules: OrganRules) -> Found:
    """One scan per series folder."""
    scans: list[FoundScan] = []
    skipped: list[Skipped] = []
    for entry in tree.entries:
        answer = _series(entry, organ_rules)
        if isinstance(answer, Skipped):
            skipped.append(answer)
        else:
            scans.append(answer)
    return Found(tuple(scans), tuple(skipped))


def _series(entry: Entry, organ_rules: OrganRules) -> FoundScan | Skipped:
    from panfm.data.dicom import series_identity  # its library is large, and most layouts do without it

    if not entry.path.is_dir():
        return not_understood(entry)
    try:
        identity = series_identity(entry.path)
    except ScanError as error:
        return Skipped(entry.name, error.code, str(error))
    if not identity.patient:
        reason = "the header names no patient; say by folders whose it is: --scan '{subject}/...'"
        return Skipped(entry.name, "no_patient", reason)
    organ = organ_rules.organ(entry, "", from_map=False)
    if isinstance(organ, Skipped):
        return organ
    return FoundScan(person=identity.patient, visit=identity.study, organ=organ, path=entry.path)
