"""Which organ a scan shows, where its folder or file does not say so in the study's own words: by the site's rules only.

`brain` holds for every scan; `liver=*/anat/*acq-liver*` for those whose place the pattern matches. Nothing is guessed from
a file's name or header.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from panfm.data.index.found import Skipped
from panfm.data.index.site_tree import Entry
from panfm.organs import in_order


@dataclass(frozen=True, slots=True)
class OrganRules:
    """A site's rules over a study's vocabulary; build them with `organ_rules`."""

    vocabulary: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    """Organ and pattern."""

    def matching(self, text: str) -> tuple[str, ...]:
        """The organs whose rules match a text, in the order of the vocabulary."""
        return in_order({organ for organ, pattern in self.rules if fnmatchcase(text, pattern)}, self.vocabulary)

    def organ(self, entry: Entry, word: str, *, from_map: bool) -> str | Skipped:
        """The organ of an entry, empty where label maps will say it.

        Args:
            entry: the scan.
            word: what its place says the organ is, empty where it says nothing.
            from_map: whether label maps may say it.
        """
        if word in self.vocabulary:
            return word
        found = self.matching(word or entry.stem)
        if len(found) == 1:
            return found[0]
        if found:
            reason = f"rules for {' and '.join(found)} fit it; make one of them narrower (--organ)"
            return Skipped(entry.name, "ambiguous_organ", reason)
        if word:
            known = ", ".join(self.vocabulary)
            reason = f"this study knows {known}; say --organ ORGAN=WORD where the site has another word for one"
            return Skipped(entry.name, "unknown_organ", reason)
        if from_map:
            return ""
        return Skipped(entry.name, "unknown_organ", "nothing says which organ it shows; say --organ ORGAN=PATTERN")


def organ_rules(texts: Iterable[str], vocabulary: Sequence[str]) -> OrganRules:
    """Rules from `ORGAN` or `ORGAN=PATTERN`. Raises: ConfigError for an organ that the study does not know."""
    rules = []
    for text in texts:
        organ, _, pattern = text.partition("=")
        in_order([organ], vocabulary)
        rules.append((organ, pattern or "*"))
    return OrganRules(tuple(vocabulary), tuple(rules))
