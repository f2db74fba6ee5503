"""A site's folder as the client sees it: policy, prepared store and the site's own state.

    policy.yaml     what the site takes part in (panfm.site.policy)
    store/          prepared scans (panfm.data.store)
    state/answers/  answers given, by run and round

The folder comes from the SuperNode's own configuration (`site-folder`), never from a message.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from panfm.config import Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore
from panfm.errors import ConfigError
from panfm.organs import in_order
from panfm.site.answers import AnswerStore
from panfm.site.policy import Policy, read_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """What the client may read and write."""

    folder: Path
    policy: Policy
    store: PreparedStore
    answers: AnswerStore

    def offered_organs(self) -> dict[str, int]:
        """Organ -> subjects with a prepared scan of it, for the organs that the policy offers."""
        counts: dict[str, set[str]] = {}
        for entry in self.store.entries:
            if entry.organ in self.policy.organs:
                counts.setdefault(entry.organ, set()).add(entry.subject)
        return {organ: len(counts[organ]) for organ in self.policy.organs if organ in counts}

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
        store=PreparedStore.open(folder / "store"),
        answers=AnswerStore(folder / "state" / "answers"),
    )
