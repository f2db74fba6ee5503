"""With privacy the sites of a group need not send the same: each parameter is averaged over those who trained it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panfm.config import FederationConfig, GroupMean, RobustConfig, ServerOptimiser, ServerStepConfig
from panfm.groups import SHARED_GROUPS, group_of
from panfm.protocol import SiteUpdate
from panfm.randomness import stream
from panfm.update import digest
from server.aggregation.next_model import RoundResult, aggregate_round
from server.aggregation.sections import sections
from server.aggregation.state import ServerState
from server.aggregation.votes import vote_of
from server.aggregation.weights import voters

MakeUpdate = Callable[..., SiteUpdate]
MODEL = (
    "heads.organ_predictor.w",
    "heads.patch_predictor.w",
    "organs.brain.adapters.0.w",
    "organs.brain.query",
    "organs.heart.adapters.0.w",
    "organs.heart.query",
    "trunk.w",
)
SIZE = 3


def _draw(*labels: str | int) -> Tensor:
    return torch.from_numpy(stream(11, *labels).uniform(-2, 2, SIZE).astype(np.float32))


def _round(sent: Mapping[str, list[str]], make_update: MakeUpdate) -> tuple[dict[str, Tensor], list[SiteUpdate]]:
    """The model, and what each site sends: drawn by its own name and the parameter's."""
    updates = []
    for site, names in sent.items():
        organs = {group_of(name) for name in names} - set(SHARED_GROUPS) or {"brain"}
        subjects = 1 + int(stream(11, site).integers(50))
        deltas = {name: _draw(site, name) for name in names}
        updates.append(make_update(site, deltas, dict.fromkeys(sorted(organs), subjects)))
    return {name: _draw("model", name) for name in MODEL}, updates


def _result(
    model: dict[str, Tensor], updates: list[SiteUpdate], config: FederationConfig, *, in_place: bool = False
) -> RoundResult:
    teacher = {name: tensor + 1 for name, tensor in model.items()}
    votes = [vote_of(update) for update in updates]
    return aggregate_round(
        model, teacher, votes, ServerState(), config, lambda steps: steps * math.log(0.9), in_place=in_place
    )


ragged = st.dictionaries(
    st.sampled_from("abcdefg"), st.lists(st.sampled_from(MODEL), min_size=1, unique=True), min_size=1
)


@settings(max_examples=50)
@given(sent=ragged, fewest=st.integers(1, 2))
def test_each_parameter_moves_by_those_who_sent_it_and_the_rest_stays(
    sent: dict[str, list[str]], fewest: int, make_update: MakeUpdate
) -> None:
    """The slow way, parameter by parameter, with the weights of whole groups taken among its senders."""
    model, updates = _round(sent, make_update)
    result = _result(model, updates, FederationConfig(min_sites_per_group=fewest))
    for name in MODEL:
        senders = [update for update in updates if name in update.deltas]
        if len(senders) < (1 if group_of(name) in SHARED_GROUPS else fewest):
            assert result.student[name] is model[name]
            assert torch.equal(result.teacher[name], model[name] + 1)
            continue
        shares = [update.num_subjects for update in senders]
        mean = sum(
            share / sum(shares) * update.deltas[name].double() for share, update in zip(shares, senders, strict=True)
        )
        student = model[name] + mean
        momentum = 0.9**4  # each site of these tests does 4 steps
        torch.testing.assert_close(result.student[name].double(), student, rtol=0, atol=1e-6)
        teacher = momentum * (model[name] + 1) + (1 - momentum) * student
        torch.testing.assert_close(result.teacher[name].double(), teacher, rtol=0, atol=1e-6)


@settings(max_examples=30)
@given(sent=ragged, data=st.data(), optimiser=st.sampled_from(ServerOptimiser), mean=st.sampled_from(GroupMean))
def test_neither_order_nor_place_changes_a_bit(
    sent: dict[str, list[str]],
    data: st.DataObject,
    optimiser: ServerOptimiser,
    mean: GroupMean,
    make_update: MakeUpdate,
) -> None:
    config = FederationConfig(server=ServerStepConfig(optimiser=optimiser, rate=0.1), robust=RobustConfig(mean=mean))
    model, updates = _round(sent, make_update)
    one = _result(model, updates, config)
    shuffled = data.draw(st.permutations(updates))
    other = _result({name: tensor.clone() for name, tensor in model.items()}, shuffled, config, in_place=True)
    assert digest(one.student) == digest(other.student)
    assert digest(one.teacher) == digest(other.teacher)
    assert digest(one.state.moments) == digest(other.state.moments)
    assert (one.weights, one.means, one.delta_norm) == (other.weights, other.means, other.delta_norm)


def test_a_group_that_all_voters_sent_whole_is_one_section(make_update: MakeUpdate) -> None:
    model, updates = _round({"b": list(MODEL), "a": list(MODEL), "c": ["trunk.w"]}, make_update)
    votes = [vote_of(update) for update in updates]
    for group in ("heads", "brain", "heart"):
        (whole,) = sections(group, voters(group, votes), model)
        assert list(whole.names) == [name for name in MODEL if group_of(name) == group]
        assert [vote.site for vote in whole.voting] == ["a", "b"]


def test_a_robust_mean_is_told_only_where_every_parameter_got_it(make_update: MakeUpdate) -> None:
    """Five sites trained the patch predictor and four the organ predictor: of four there is no robust mean."""
    both = ["heads.organ_predictor.w", "heads.patch_predictor.w", "trunk.w"]
    model, updates = _round({**dict.fromkeys("abcd", both), "e": both[1:]}, make_update)
    result = _result(model, updates, FederationConfig(robust=RobustConfig(mean=GroupMean.median)))
    assert result.means == {"heads": GroupMean.mean, "trunk": GroupMean.median}
    stacked = torch.stack([update.deltas["heads.patch_predictor.w"] for update in updates])
    moved = result.student["heads.patch_predictor.w"] - model["heads.patch_predictor.w"]
    torch.testing.assert_close(moved, stacked.median(0).values)


@pytest.mark.parametrize("delta", [{"trunk.v": torch.zeros(SIZE)}, {"trunk.w": torch.zeros(1, SIZE)}])
def test_what_is_no_parameter_or_of_another_shape_is_a_defect(
    delta: dict[str, Tensor], make_update: MakeUpdate
) -> None:
    model, _ = _round({}, make_update)
    with pytest.raises(ValueError, match="should be of a parameter and of its shape"):
        _result(model, [make_update("a", delta, {"brain": 1})], FederationConfig())
