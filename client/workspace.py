"""A site's folder as the client sees it: policy, prepared store and the site's own state.

    policy.yaml     what the site takes part in (panfm.site.policy_file)
    store/          prepared scans (panfm.data.store)
    state/answers/  answers given, by run and round
    state/reports/  reports given on models, by run and round
    state/parcels/  parcels of a task that is not here yet
    state/audit.*   what was asked and what left (panfm.site.audit_log)
    state/ledger.*  what was charged to the subjects' privacy (panfm.site.ledger), from the first charge on
    keys/           the site's signing key (panfm.site.identity)
    site.log        what went wrong here, in full; it never leaves the site

The folder comes from the SuperNode's own configuration (`site-folder`), never from a message.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from panfm.config import Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore
from panfm.errors import ConfigError
from panfm.organs import in_order
from panfm.site.answers import AnswerStore
from panfm.site.audit_chain import Head
from panfm.site.audit_log import AuditLog
from panfm.site.identity import SiteIdentity
from panfm.site.ledger import Ledger, has_ledger
from panfm.site.parcel_shelf import ParcelShelf
from panfm.site.policy import Policy
from panfm.site.policy_file import read_policy
from panfm.site.reports_given import ReportStore

TRAINING_SPLITS = ("", "pretrain")
"""Values of a scan's `split` that allow training on it; every other (probe, validation, test, ...) forbids it."""

VALIDATION_SPLIT = "validation"
"""The value of a scan's `split` that lets a site judge models by it, between rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """What the client may read and write."""

    folder: Path
    policy: Policy
    store: PreparedStore
    """Only the scans to train on; what the site's table marks for another use is not in it."""
    held_out: PreparedStore
    """Only the scans of the split `validation`."""
    answers: AnswerStore
    reports: ReportStore
    parcels: ParcelShelf
    audit: AuditLog

    def subjects(self) -> dict[str, frozenset[str]]:
        """Organ -> subjects with a prepared scan of it to train on, for the organs that the policy offers."""
        return _by_organ(self.store, self.policy.organs)

    def held_out_subjects(self) -> dict[str, frozenset[str]]:
        """The same for the subjects on whom models are judged."""
        return _by_organ(self.held_out, self.policy.organs)

    def dataset(self, organs: tuple[str, ...], recipe: Recipe) -> SubjectDataset:
        """The site's subjects with these organs, cut to the recipe's grids."""
        return SubjectDataset(self.store, in_order(organs, tuple(recipe.organs)), recipe.organs)

    def ledger(self, witnesses: Sequence[Head] = ()) -> Ledger:
        """The site's privacy ledger, to write; begun if there was none.

        Args:
            witnesses: heads of it that others have recorded.
        Raises: AuditError when it is not as it was written, or not as a witness has it.
        """
        return Ledger.open(self.folder, SiteIdentity.open(self.folder).signing_key, self.audit, witnesses)

    def spent_epsilon(self) -> float | None:
        """What those of its subjects who have lost most have lost; None where the policy has no budget, or nobody was charged.

        Raises: AuditError when the ledger is not as it was written.
        """
        budget = self.policy.privacy.budget
        if budget is None or not has_ledger(self.folder):
            return None
        ledger, subjects = self.ledger(), frozenset[str]().union(*self.subjects().values())
        return max(ledger.book().spent(cohort, budget.delta) for cohort in ledger.cohorts(subjects))


def open_workspace(node_config: Mapping[str, object]) -> Workspace:
    """The workspace of this node.

    Raises: ConfigError, DataError or AuditError, in one line, when the folder, its policy, key, log or store is not as it
        should be.
    """
    folder = Path(str(node_config.get("site-folder", "")))
    if not node_config.get("site-folder") or not folder.is_dir():
        raise ConfigError("the node has no site folder; start the SuperNode with --node-config 'site-folder=\"/path\"'")
    policy, store = read_policy(folder), PreparedStore.open(folder / "store")
    return Workspace(
        folder=folder,
        policy=policy,
        store=_in_splits(store, TRAINING_SPLITS),
        held_out=_in_splits(store, (VALIDATION_SPLIT,)),
        answers=AnswerStore(folder / "state" / "answers"),
        reports=ReportStore(folder / "state" / "reports"),
        parcels=ParcelShelf(folder / "state" / "parcels"),
        audit=open_audit_log(folder),
    )


def open_audit_log(folder: Path) -> AuditLog:
    """The site's audit log, to write. Raises: ConfigError without a key that can be used, AuditError without a sound log."""
    return AuditLog.open(folder, SiteIdentity.open(folder).signing_key)


def _in_splits(store: PreparedStore, splits: Collection[str]) -> PreparedStore:
    """A store that knows the rows of these splits and no others, so that nothing below can count or read the rest.

    A subject is in one split: one of whom any row is held out is not trained on, and one of whom any row is held out for
    something else is not there at all.
    """
    elsewhere = {entry.subject for entry in store.entries if entry.split not in (*TRAINING_SPLITS, *splits)}
    return replace(store, entries=tuple(e for e in store.entries if e.split in splits and e.subject not in elsewhere))


def _by_organ(store: PreparedStore, organs: tuple[str, ...]) -> dict[str, frozenset[str]]:
    held = {organ: frozenset(entry.subject for entry in store.entries if entry.organ == organ) for organ in organs}
    return {organ: subjects for organ, subjects in held.items() if subjects}
