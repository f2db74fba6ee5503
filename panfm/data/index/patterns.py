"""Layouts by pattern: `{organ}/{subject}`, `{subject}_{visit}_gt`, and whatever else a site's folders look like.

A pattern is written as a path below the indexed folder without ending; `{subject}`, `{visit}`, `{organ}` and, for masks
in files of their own, `{label}` stand for a part of one name, `*` for any part of one name and `**` for any folders.
Placeholders take as much as they can from the left, and one that comes twice must be the same both times.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from panfm.data.index.found import Found, FoundScan, LabelList, LabelMap, Skipped
from panfm.data.index.organ_rules import OrganRules
from panfm.data.index.site_tree import Entry, SiteTree, stem_of
from panfm.errors import ConfigError

_PLACEHOLDERS = ("subject", "visit", "organ", "label")
_TOKEN = re.compile(r"\{(\w*)\}|(\*\*)|(\*)")

Key = tuple[str, str]
"""Person and visit, as the site names them."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern; build one with `compile_pattern`."""

    text: str
    regex: re.Pattern[str]

    def match(self, stem: str) -> dict[str, str] | None:
        """What each placeholder stands for, or None."""
        found = self.regex.fullmatch(stem)
        return found.groupdict() if found else None


@dataclass(frozen=True, slots=True)
class LabelPattern:
    """Where label maps lie, and what their numbers or names mean."""

    pattern: Pattern
    labels: LabelList | None = None
    organ: str = ""
    """What a whole map is a mask of."""


@dataclass(frozen=True, slots=True)
class PatternRule:
    """Scans and the label maps that belong to them by person and visit."""

    scans: tuple[Pattern, ...]
    label_maps: tuple[LabelPattern, ...] = ()


def compile_pattern(text: str) -> Pattern:
    """A pattern from its text. Raises: ConfigError for an unknown placeholder, or where `{subject}` is missing."""
    parts, seen, end = [], set[str](), 0
    for token in _TOKEN.finditer(text := stem_of(text)):
        parts.append(re.escape(text[end : token.start()]))
        parts.append(_token_regex(text, token, seen))
        end = token.end()
    if "subject" not in seen:
        raise ConfigError(f"pattern {text!r} should say where the subject stands; put {{subject}} into it")
    return Pattern(text, re.compile("".join([*parts, re.escape(text[end:])])))


def _token_regex(text: str, token: re.Match[str], seen: set[str]) -> str:
    name, folders, _ = token.groups()
    if folders:
        return ".*"
    if name is None:
        return "[^/]*"
    if name not in _PLACEHOLDERS:
        known = ", ".join(f"{{{known}}}" for known in _PLACEHOLDERS)
        raise ConfigError(f"pattern {text!r}: {{{name}}} is not known, only {known}; correct it")
    regex = f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)"
    seen.add(name)
    return regex


def scans_by_pattern(tree: SiteTree, rules: Sequence[PatternRule], organ_rules: OrganRules) -> Found:
    """The scans that the rules find, each with its label maps, and every other entry with a reason."""
    scans: list[FoundScan] = []
    skipped: list[Skipped] = []
    used: set[str] = set()
    for rule in rules:
        maps = label_maps_by_key(tree, rule.label_maps)
        used |= {one.path.as_posix() for found in maps.values() for one in found}
        for entry in tree.entries:
            match = _first_match(rule.scans, entry.stem)
            if match is not None and entry.path.as_posix() not in used:
                used.add(entry.path.as_posix())
                answer = _scan(entry, match, organ_rules, maps if rule.label_maps else None)
                if isinstance(answer, Skipped):
                    skipped.append(answer)
                else:
                    scans.append(answer)
    skipped += [not_understood(entry) for entry in tree.entries if entry.path.as_posix() not in used]
    return _without_contradictions(tree, scans, skipped)


def _without_contradictions(tree: SiteTree, scans: Sequence[FoundScan], skipped: Sequence[Skipped]) -> Found:
    """Leave out scans whose label map two rules read by two lists, such as a CT and an MR beside one map."""
    meanings: dict[Path, list[LabelList | None]] = {}
    for one in (label_map for scan in scans for label_map in scan.label_maps):
        if not one.name and one.labels not in (known := meanings.setdefault(one.path, [])):
            known.append(one.labels)
    torn = [scan for scan in scans if any(len(meanings.get(one.path, ())) > 1 for one in scan.label_maps)]
    reason = "scans of two kinds share its label map, whose numbers mean different organs for each; say --label-map"
    names = {entry.path: entry.name for entry in tree.entries}
    left_out = [Skipped(names[scan.path], "ambiguous_label_map", reason) for scan in torn]
    return Found(tuple(scan for scan in scans if scan not in torn), (*skipped, *left_out))


def not_understood(entry: Entry) -> Skipped:
    """An entry that no rule of the layout names."""
    return Skipped(entry.name, "not_understood", "not where this layout has scans; see --layout and --scan")


def label_maps_by_key(tree: SiteTree, patterns: Sequence[LabelPattern]) -> dict[Key, tuple[LabelMap, ...]]:
    """The label maps of each person and visit."""
    maps: dict[Key, tuple[LabelMap, ...]] = {}
    for entry in tree.entries:
        for one in patterns:
            if (match := one.pattern.match(entry.stem)) is not None:
                found = LabelMap(
                    entry.path, one.labels, name=match.get("label", ""), organ=one.organ or match.get("organ", "")
                )
                maps[_key(match)] = (*maps.get(_key(match), ()), found)
                break
    return maps


def maps_of(scan_organ: str, key: Key, maps: Mapping[Key, tuple[LabelMap, ...]]) -> tuple[LabelMap, ...]:
    """The label maps of a scan: those of its person and visit, and of its organ where they are of one."""
    return tuple(one for one in maps.get(key, ()) if not scan_organ or one.organ in ("", scan_organ))


def _first_match(patterns: Sequence[Pattern], stem: str) -> dict[str, str] | None:
    return next((match for pattern in patterns if (match := pattern.match(stem)) is not None), None)


def _key(match: Mapping[str, str]) -> Key:
    return (match["subject"], match.get("visit", ""))


def _scan(
    entry: Entry,
    match: Mapping[str, str],
    organ_rules: OrganRules,
    maps: Mapping[Key, tuple[LabelMap, ...]] | None,
) -> FoundScan | Skipped:
    organ = organ_rules.organ(entry, match.get("organ", ""), from_map=maps is not None)
    if isinstance(organ, Skipped):
        return organ
    person, visit = _key(match)
    label_maps = () if maps is None else maps_of(organ, (person, visit), maps)
    if maps is not None and not label_maps:
        return Skipped(
            entry.name, "no_label_map", "no label map of this subject and visit; make one, or correct --label-map"
        )
    return FoundScan(person=person, visit=visit, organ=organ, path=entry.path, label_maps=label_maps)
