"""A site's folder as the client sees it: policy, prepared store and the site's own state.

    policy.yaml     what the site takes part in (panfm.site.policy)
    store/          prepared scans (panfm.data.store)
    state/answers/  answers given, by run and round
    site.log        what went wrong here, in full; it never leaves the site

The folder comes from the SuperNode's own configuration (`site-folder`), never from a message.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from panfm.config import Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore
from panfm.errors import ConfigError
from panfm.organs import in_order
from panfm.site.answers import AnswerStore
from panfm.site.policy import Policy, read_policy

TRAINING_SPLITS = ("", "pretrain")
"""Values of a scan's `split` that allow training on it; every other (probe, validation, test, ...) forbids it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """What the client may read and write."""

    folder: Path
    policy: Policy
    store: PreparedStore
    """Only the scans to train on; what the site's table marks for another use is not in it."""
    answers: AnswerStore

    def subjects(self) -> dict[str, frozenset[str]]:
        """Organ -> subjects with a prepared scan of it to train on, for the organs that the policy offers."""
        held = {
            organ: frozenset(entry.subject for entry in self.store.entries if entry.organ == organ)
            for organ in self.policy.organs
        }
        return {organ: subjects for organ, subjects in held.items() if subjects}

    def dataset(self, organs: tuple[str, ...], recipe: Recipe) -> SubjectDataset:
        """The site's subjects with these organs, cut to the recipe's grids."""
        return SubjectDataset(self.store, in_order(organs, tuple(recipe.organs)), recipe.organs)


def open_workspace(node_config: Mapping[str, object]) -> Workspace:
    """The workspace of this node.

    Raises: ConfigError or DataError, in one line, when the folder, its policy or its store is not as it should be.
    """
    folder = Path(str(node_config.get("site-folder", "")))
    if not node_config.get("site-folder") or not folder.is_dir():
        raise ConfigError("the node has no site folder; start the SuperNode with --node-config 'site-folder=\"/path\"'")
    policy = read_policy(folder)
    return Workspace(
        folder=folder,
        policy=policy,
        store=_to_train_on(PreparedStore.open(folder / "store")),
        answers=AnswerStore(folder / "state" / "answers"),
    )


def _to_train_on(store: PreparedStore) -> PreparedStore:
    """A store that knows the rows to train on and no others, so that nothing below can count or read the rest.

    A subject is in one split: one of whom any row is held out is held out altogether.
    """
    held_out = {entry.subject for entry in store.entries if entry.split not in TRAINING_SPLITS}
    return replace(store, entries=tuple(entry for entry in store.entries if entry.subject not in held_out))
