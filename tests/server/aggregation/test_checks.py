"""Each way in which an answer may be wrong: left out with a reason, while the rest of the round goes on."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panfm.config import FederationConfig
from panfm.protocol import PrivacySpent, SiteUpdate, TrainMetrics
from panfm.update import digest
from server.aggregation.checks import check_update
from server.aggregation.next_model import aggregate_round
from server.aggregation.state import ServerState
from server.aggregation.votes import DeltasInMemory, vote_of

MakeUpdate = Callable[..., SiteUpdate]
Change = Callable[[SiteUpdate], SiteUpdate]

MODEL = {
    "heads.w": torch.zeros(2),
    "organs.brain.adapter": torch.zeros(2, 3),
    "organs.brain.token": torch.zeros(3),
    "organs.heart.adapter": torch.zeros(2, 3),
    "organs.heart.token": torch.zeros(3),
    "trunk.w": torch.zeros(4),
}
EXPECTED = {name: tensor.shape for name, tensor in MODEL.items()}


def _check(update: SiteUpdate, private_names: Collection[str] | None = None) -> str | None:
    return check_update(
        update,
        DeltasInMemory(update.deltas),
        run="run",
        round=3,
        site="site-a",
        task_digest="ab" * 32,
        expected=EXPECTED,
        organs=("brain", "heart"),
        max_delta_norm=10.0,
        max_steps=20,
        private_names=private_names,
    )


@pytest.fixture(scope="session")
def make_good(make_update: MakeUpdate) -> Callable[[], SiteUpdate]:
    """A new answer of site-a, whose counts are numbers that stand nowhere else."""

    def make() -> SiteUpdate:
        deltas = {name: torch.full_like(tensor, 0.1) for name, tensor in MODEL.items()}
        return make_update("site-a", deltas, {"brain": 7919, "heart": 6131}, num_subjects=8111)

    return make


MakeGood = Callable[[], SiteUpdate]


def _with(**values: Any) -> Change:
    return lambda update: replace(update, **values)


def _tensor(name: str, tensor: Tensor) -> Change:
    return lambda update: replace(update, deltas={**update.deltas, name: tensor})


def _only(*names: str) -> Change:
    return lambda update: replace(update, deltas={name: update.deltas[name] for name in names})


def _metric(**values: Any) -> Change:
    def change(update: SiteUpdate) -> SiteUpdate:
        assert update.metrics is not None
        return replace(update, metrics=replace(update.metrics, **values))

    return change


WRONG: dict[str, tuple[Change, str]] = {
    "another run": (_with(run="other"), "answers run 'other', expected 'run'"),
    "an old round": (_with(round=2), "answers round 2, expected 3"),
    "another site": (_with(site="site-b"), "answers site 'site-b', expected 'site-a'"),
    "another task": (_with(task_digest="cd" * 32), "answers task_digest 'cdcd"),
    "nothing": (_with(deltas={}), "holds no tensor"),
    "an unknown tensor": (_tensor("trunk.v", torch.zeros(4)), "'trunk.v', which the site was not sent"),
    "a tensor of another organ": (_tensor("organs.liver.token", torch.zeros(3)), "'organs.liver.token', which the"),
    "no path at all": (_tensor("w", torch.zeros(4)), "'w', which the site was not sent"),
    "half a group": (_only("trunk.w", "organs.heart.token"), "group heart is incomplete: lacks 'organs.heart.adapter'"),
    "a shape": (_tensor("trunk.w", torch.zeros(2, 2)), "trunk.w has shape (2, 2), expected (4,)"),
    "a scalar": (_tensor("trunk.w", torch.tensor(0.0)), "trunk.w has shape (), expected (4,)"),
    "a NaN": (_tensor("trunk.w", torch.tensor([0.0, math.nan, 0, 0])), "trunk.w holds values that are not finite"),
    "an infinity": (_tensor("heads.w", torch.tensor([0.0, -math.inf])), "heads.w holds values that are not finite"),
    "too far": (_tensor("trunk.w", torch.full((4,), 6.0)), "delta of group trunk has L2 norm 12, above"),
    "huge": (_tensor("trunk.w", torch.full((4,), 3e38)), "delta of group trunk has L2 norm 6e+38, above"),
    "no step": (_with(num_steps=0), "did 0 steps, expected 1 to 20"),
    "too many steps": (_with(num_steps=21), "did 21 steps, expected 1 to 20"),
    "no subject": (_with(num_subjects=0), "trained on no subject"),
    "fewer than none": (_with(num_subjects=-5), "trained on no subject"),
    "more than all": (_with(num_subjects=7000), "counts subjects with organ brain outside"),
    "a negative organ": (_with(organ_subjects={"brain": -1, "heart": 5}), "counts subjects with organ brain outside"),
    "an undeclared organ": (_with(organ_subjects={"liver": 5}), "organ 'liver', which the site did not declare"),
    "no organ": (_with(organ_subjects={}), "counts no subject with any organ"),
    "no subject of any organ": (_with(organ_subjects={"brain": 0}), "counts no subject with any organ"),
    "a vote without subjects": (_with(organ_subjects={"brain": 5}), "trained group heart without a subject"),
    "a vote with zero": (_with(organ_subjects={"brain": 5, "heart": 0}), "trained group heart without a subject"),
    "a NaN loss": (_metric(loss=math.nan), "metric 'loss' is not finite"),
    "an infinite term": (_metric(loss_organ=math.inf), "metric 'loss_organ' is not finite"),
    "a NaN share": (_metric(share={"brain": 0.5, "heart": math.nan}), "metric 'share.heart' is not finite"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_each_fault_is_named_in_one_line_without_values(wrong: str, make_good: MakeGood) -> None:
    change, reason = WRONG[wrong]
    said = _check(change(make_good()))
    assert said is not None
    assert reason in said
    assert "\n" not in said
    assert len(said) < 200
    assert not any(count in said for count in ("7919", "6131", "8111"))


@pytest.mark.parametrize("wrong", WRONG)
def test_the_rest_of_the_round_goes_on(wrong: str, make_good: MakeGood, make_update: MakeUpdate) -> None:
    change, _ = WRONG[wrong]
    others = [make_update(site, make_good().deltas, {"brain": 3, "heart": 3}) for site in ("site-b", "site-c")]
    accepted = [answer for answer in [change(make_good())] if _check(answer) is None] + others

    def averaged(updates: list[SiteUpdate]) -> str:
        votes = [vote_of(update) for update in updates]
        result = aggregate_round(MODEL, MODEL, votes, ServerState(), FederationConfig(), lambda n: -0.01 * n)
        return digest(result.student) + digest(result.teacher)

    assert averaged(accepted) == averaged(others)


@pytest.mark.parametrize(
    "change",
    [
        _with(),
        _only("trunk.w", "heads.w"),
        _only("organs.brain.adapter", "organs.brain.token"),
        _with(metrics=None),
        _with(num_steps=1),
        _with(num_steps=20),
        _with(num_subjects=7919),
        _tensor("trunk.w", torch.full((4,), 5.0)),
        _metric(loss_organ=0.5, share_entropy=1.0),
    ],
)
def test_what_is_right_may_count(change: Change, make_good: MakeGood) -> None:
    assert _check(change(make_good())) is None


@given(
    name=st.sampled_from(sorted(MODEL)), where=st.integers(0, 5), bad=st.sampled_from([math.nan, math.inf, -math.inf])
)
def test_one_bad_element_anywhere_is_seen(name: str, where: int, bad: float, make_good: MakeGood) -> None:
    update = make_good()
    flat = update.deltas[name].reshape(-1)
    flat[where % flat.numel()] = bad
    assert _check(update) == f"{name} holds values that are not finite"


@given(field=st.sampled_from([f.name for f in fields(TrainMetrics)]), bad=st.sampled_from([math.nan, math.inf]))
def test_no_metric_may_be_infinite(field: str, bad: float, make_good: MakeGood) -> None:
    update = make_good()
    value = {"brain": bad} if isinstance(getattr(update.metrics, field), dict) else bad
    said = _check(_metric(**{field: value})(update))
    assert said is not None
    assert said.startswith(f"metric '{field}")


@given(text=st.text(max_size=300))
def test_a_peers_words_cannot_break_the_line(text: str, make_good: MakeGood) -> None:
    changes = (
        _with(site=text),
        _with(task_digest=text),
        _with(organ_subjects={text: 5}),
        _tensor(text, torch.zeros(1)),
        _metric(share={text: math.nan}),
    )
    for change in changes:
        said = _check(change(make_good()))
        assert said is not None
        assert said.isprintable()
        assert len(said) < 300


# ---- with privacy -------------------------------------------------------------------------------------------------------

TRAINED = ("heads.w", "organs.brain.adapter", "organs.heart.adapter")
"""What privacy.mode trains of `MODEL`: parts of groups."""
SPENT = PrivacySpent(epsilon=1.5, delta=1e-5, budget=3.0, ledger_head="ab" * 32 + ":7")


def _private(update: SiteUpdate) -> SiteUpdate:
    return replace(_only(*TRAINED)(update), num_steps=20, metrics=None, privacy=SPENT)


def _spent(**values: Any) -> Change:
    return _with(privacy=replace(SPENT, **values))


WRONG_WITH_PRIVACY: dict[str, tuple[Change, str]] = {
    "a frozen parameter": (
        _tensor("trunk.w", torch.zeros(4)),
        "holds tensor 'trunk.w', against what privacy.mode trains",
    ),
    "one that no subject touched": (_only("heads.w", TRAINED[1]), "lacks tensor 'organs.heart.adapter', against what"),
    "an unknown tensor": (_tensor("trunk.v", torch.zeros(4)), "'trunk.v', which the site was not sent"),
    "an empty sample skipped": (_with(num_steps=19), "did 19 steps, expected 20: with privacy every step counts"),
    "more than its budget": (_spent(epsilon=3.1), "not within its own budget"),
    "nothing spent": (_spent(epsilon=0.0), "not within its own budget"),
    "no number": (_spent(epsilon=math.nan), "not within its own budget"),
    "no budget": (_spent(budget=math.inf), "not within its own budget"),
    "no delta": (_spent(delta=0.0), "a delta that is none"),
    "no head": (_spent(ledger_head="../../etc"), "as the head of its ledger, expected DIGEST:LENGTH"),
    "an empty ledger": (_spent(ledger_head="ab" * 32 + ":0"), "as the head of its ledger, expected DIGEST:LENGTH"),
    "a NaN": (_tensor("heads.w", torch.tensor([0.0, math.nan])), "heads.w holds values that are not finite"),
}


@pytest.mark.parametrize("case", WRONG_WITH_PRIVACY)
def test_what_is_wrong_with_privacy_is_named(case: str, make_good: MakeGood) -> None:
    change, reason = WRONG_WITH_PRIVACY[case]
    said = _check(change(_private(make_good())), TRAINED)
    assert said is not None
    assert reason in said


def test_parts_of_groups_count_with_privacy_and_a_site_may_keep_no_budget(make_good: MakeGood) -> None:
    good = _private(make_good())
    assert _check(good, TRAINED) is None
    assert _check(replace(good, privacy=None), TRAINED) is None
    loss = replace(good, metrics=make_good().metrics)
    assert _check(loss, TRAINED) == "tells metrics, for which privacy pays nothing; the site runs other code"


def test_a_statement_for_a_recipe_without_privacy_is_other_code(make_good: MakeGood) -> None:
    assert _check(replace(make_good(), privacy=SPENT)) == "tells what privacy cost, and the recipe has none"
