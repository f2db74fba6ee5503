"""What an answer must be before it counts: of the right round and site, well-formed, finite, bounded, plausible.

What fails is left out with a reason and the round goes on. The whole update of that site is left out, not only the
group that failed: its groups were trained jointly, so a trunk trained beside a broken adapter is no better than the
adapter, and the counts and metrics would say something false about the half that stays. Reasons stand in the record:
they name parameters, groups and fields, and hold no count of subjects, no metric and no element of a tensor.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields

import torch

from panfm.groups import SHARED_GROUPS, group_of
from panfm.protocol import PrivacySpent, SiteUpdate, TrainMetrics
from server.aggregation.norm_bounds import squared_norm
from server.aggregation.votes import Deltas

Expected = Mapping[str, torch.Size]
"""Parameter name -> shape, of everything that the site was sent."""
_HEAD = re.compile(r"[0-9a-f]{64}:[1-9][0-9]{0,14}")
"""DIGEST:LENGTH of a log that holds something."""


def check_update(
    update: SiteUpdate,
    deltas: Deltas,
    *,
    run: str,
    round: int,
    site: str,
    task_digest: str,
    expected: Expected,
    organs: Collection[str],
    max_delta_norm: float,
    max_steps: int,
    private_names: Collection[str] | None = None,
) -> str | None:
    """Why this update must be left out, or None when it may count.

    Args:
        update: the answer's header, as decoded from the wire; its own deltas are not looked at.
        deltas: what the wire decoded or the spool holds; each tensor is read once, and none before all else is right.
        run, round, site, task_digest: of the task that went to this site.
        expected: shape of each parameter that the site was sent.
        organs: organs that the site declared when it joined.
        max_delta_norm: largest L2 norm of the delta of one group.
        max_steps: most optimiser steps that the recipe allows in a round.
        private_names: with privacy, the parameters that the site must send, no more and no fewer: what a site sends must not
            depend on its subjects. None: without, whole groups, as many as it trained.
    Returns: None, or one line that names what came; see above for what it may not hold.
    """
    # In this order: a tensor is measured only after its name and shape are known to be right.
    return (
        _check_address(update, run, round, site, task_digest)
        or _check_names(deltas, expected, private_names)
        or _check_shapes(deltas, expected)
        or _check_counts(update, deltas, organs, max_steps)
        or _check_metrics(update)
        or _check_privacy(update, private_names is not None, max_steps)
        or _check_values(deltas, max_delta_norm)
    )


def _check_address(update: SiteUpdate, run: str, round: int, site: str, task_digest: str) -> str | None:
    asked: dict[str, str | int] = {"run": run, "round": round, "site": site, "task_digest": task_digest}
    for name, value in asked.items():
        if (came := getattr(update, name)) != value:
            return f"answers {name} {_short(came)}, expected {_short(value)}"
    return None


def _check_names(deltas: Deltas, expected: Expected, private_names: Collection[str] | None) -> str | None:
    sent = set(deltas.names())
    if not sent:
        return "holds no tensor; a site that trained nothing should refuse instead"
    unknown = sorted(sent - expected.keys())
    if unknown:
        return f"holds tensor {_short(unknown[0])}, which the site was not sent ({len(unknown)} such)"
    if private_names is not None:
        return _check_private_names(sent, private_names)
    groups = {group_of(name) for name in sent}
    missing = sorted(name for name in expected if group_of(name) in groups and name not in sent)
    if missing:
        return f"group {group_of(missing[0])} is incomplete: lacks {_short(missing[0])} ({len(missing)} such)"
    return None


def _check_private_names(sent: Collection[str], private_names: Collection[str]) -> str | None:
    if wrong := sorted({*sent} ^ {*private_names}):
        what = "holds" if wrong[0] in sent else "lacks"
        return f"{what} tensor {_short(wrong[0])}, against what privacy.mode trains there ({len(wrong)} such)"
    return None


def _check_shapes(deltas: Deltas, expected: Expected) -> str | None:
    for name in sorted(deltas.names()):
        if (shape := deltas.shape(name)) != expected[name]:
            return f"{name} has shape {tuple(shape)}, expected {tuple(expected[name])}"
    return None


def _check_counts(update: SiteUpdate, deltas: Deltas, organs: Collection[str], max_steps: int) -> str | None:
    if not 1 <= update.num_steps <= max_steps:
        return f"did {update.num_steps} steps, expected 1 to {max_steps}"
    if update.num_subjects < 1:
        return "trained on no subject; a site without subjects should refuse instead"
    counts = update.organ_subjects
    for organ in sorted(counts):
        if organ not in organs:
            return f"counts subjects with organ {_short(organ)}, which the site did not declare"
        if not 0 <= counts[organ] <= update.num_subjects:
            return f"counts subjects with organ {organ} outside 0 to its subjects in all"
    if not any(counts.values()):
        return "counts no subject with any organ"
    sent = sorted({group_of(name) for name in deltas.names()} - set(SHARED_GROUPS))
    without = [organ for organ in sent if counts.get(organ, 0) == 0]
    return f"trained group {without[0]} without a subject that has the organ" if without else None


def _check_metrics(update: SiteUpdate) -> str | None:
    for name, value in _numbers(update.metrics) if update.metrics else ():
        if not math.isfinite(value):
            return f"metric {_short(name)} is not finite"
    return None


def _check_privacy(update: SiteUpdate, is_private: bool, steps: int) -> str | None:
    """With privacy a site does the recipe's steps whatever its samples hold, and tells nothing that was not paid for."""
    if not is_private:
        return None if update.privacy is None else "tells what privacy cost, and the recipe has none"
    if update.num_steps != steps:
        return f"did {update.num_steps} steps, expected {steps}: with privacy every step counts, those without a subject too"
    if update.metrics is not None:
        return "tells metrics, for which privacy pays nothing; the site runs other code"
    return check_spent(update.privacy) if update.privacy else None  # a policy may set no budget


def check_spent(spent: PrivacySpent) -> str | None:
    """Why what a site tells of its ledger cannot be, or None when it can."""
    if not (0 < spent.epsilon <= spent.budget < math.inf and 0 < spent.delta < 1):
        return "tells an epsilon that is not within its own budget, or a delta that is none"
    if _HEAD.fullmatch(spent.ledger_head) is None:
        return f"tells {_short(spent.ledger_head)} as the head of its ledger, expected DIGEST:LENGTH"
    return None


def _check_values(deltas: Deltas, max_delta_norm: float) -> str | None:
    squares: dict[str, float] = {}
    for name in sorted(deltas.names()):
        square = squared_norm(deltas, name)
        if not math.isfinite(square):
            return f"{name} holds values that are not finite"
        squares[group_of(name)] = squares.get(group_of(name), 0.0) + square
    for group, square in sorted(squares.items()):
        if (length := math.sqrt(square)) > max_delta_norm:
            return (
                f"delta of group {group} has L2 norm {length:.3g}, above federation.max_delta_norm {max_delta_norm:.3g}"
            )
    return None


def _numbers(metrics: TrainMetrics) -> Iterator[tuple[str, float]]:
    for f in fields(metrics):
        value = getattr(metrics, f.name)
        if isinstance(value, Mapping):
            yield from ((f"{f.name}.{organ}", number) for organ, number in sorted(value.items()))
        elif value is not None:
            yield f.name, value


def _short(value: str | int) -> str:
    """A peer's word as one printable line of at most 80 characters."""
    return f"{value!r:.80}"
