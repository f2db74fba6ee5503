"""What a round promises, each promise as a property over random rounds."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panfm.config import (
    FederationConfig,
    GroupMean,
    RobustConfig,
    ServerOptimiser,
    ServerStepConfig,
    TrunkWeighting,
)
from panfm.groups import group_of, keep_groups
from panfm.protocol import SiteUpdate
from panfm.randomness import stream
from panfm.update import Tensors, add, digest, norm, subtract
from server.aggregation.next_model import RoundResult, aggregate_round
from server.aggregation.state import ServerState
from server.aggregation.votes import vote_of

ORGANS = ("brain", "heart", "liver")
SHAPES = {
    "trunk.block.weight": (3, 2),
    "trunk.norm.bias": (3,),
    "heads.predictor.weight": (2, 2),
    **{f"organs.{organ}.adapter.weight": (2, 3) for organ in ORGANS},
    **{f"organs.{organ}.token": () for organ in ORGANS},
}
MakeUpdate = Callable[..., SiteUpdate]


def _log_momentum_of(num_steps: int) -> float:
    return num_steps * math.log(0.99)


def _random(shapes: Mapping[str, tuple[int, ...]], *labels: str | int) -> dict[str, Tensor]:
    draws = stream(7, *labels)
    return {
        name: torch.from_numpy(np.asarray(draws.uniform(-2, 2, shape), dtype=np.float32))
        for name, shape in shapes.items()
    }


def _of_organs(organs: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    groups = {"trunk", "heads", *organs}
    return {name: shape for name, shape in SHAPES.items() if group_of(name) in groups}


@dataclass(frozen=True)
class Round:
    """A random round: the model before it and the answers of its sites."""

    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    updates: list[SiteUpdate]

    def run(
        self, config: FederationConfig | None = None, state: ServerState | None = None, *, in_place: bool = False
    ) -> RoundResult:
        return aggregate_round(
            self.student,
            self.teacher,
            [vote_of(update) for update in self.updates],
            state or ServerState(),
            config or FederationConfig(),
            _log_momentum_of,
            in_place=in_place,
        )


counts_of_a_site = st.dictionaries(st.sampled_from(ORGANS), st.integers(1, 500), min_size=1)
site_counts = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), counts_of_a_site, min_size=1)
many_sites = st.dictionaries(st.sampled_from("abcdefgh"), counts_of_a_site, min_size=1)
"""Often enough for a robust mean."""
configs = st.builds(
    FederationConfig,
    trunk_weights=st.sampled_from(TrunkWeighting),
    organ_exponent=st.sampled_from([0.0, 0.5, 1.0]),
    server=st.builds(ServerStepConfig, rate=st.sampled_from([0.5, 1.0])),
    min_sites_per_group=st.integers(1, 2),
)
"""Plain: the formulas of the mean hold as they stand."""
all_configs = st.builds(
    FederationConfig,
    trunk_weights=st.sampled_from(TrunkWeighting),
    server=st.builds(
        ServerStepConfig, optimiser=st.sampled_from(ServerOptimiser), rate=st.just(0.1), normalise_steps=st.booleans()
    ),
    robust=st.builds(
        RobustConfig,
        mean=st.sampled_from(GroupMean),
        max_norm=st.sampled_from([0.0, 1.0]),
        past_factor=st.sampled_from([0.0, 1.5]),
    ),
    min_sites_per_group=st.integers(1, 2),
)
"""Every way to average and to step."""
seeds = st.integers(0, 2**20)


@pytest.fixture(scope="session")
def make_round(make_update: MakeUpdate) -> Callable[[int, dict[str, dict[str, int]]], Round]:
    """(seed, site -> organ -> subjects) -> Round."""

    def make(seed: int, counts: dict[str, dict[str, int]]) -> Round:
        updates = [
            make_update(site, _random(_of_organs(organs), seed, site), organs, num_steps=1 + len(organs))
            for site, organs in counts.items()
        ]
        return Round(_random(SHAPES, seed, "student"), _random(SHAPES, seed, "teacher"), updates)

    return make


MakeRound = Callable[[int, dict[str, dict[str, int]]], Round]


def _flower_fedavg(parameters: Mapping[str, Tensors], subjects: Mapping[str, int]) -> dict[str, Tensor]:
    """What Flower's FedAvg computes from whole parameters: an oracle that shares no line with ours."""
    replies = [
        RecordDict(
            {
                "arrays": ArrayRecord(torch_state_dict=dict(parameters[site])),
                "metrics": MetricRecord({"num-examples": subjects[site]}),
            }
        )
        for site in parameters
    ]
    return dict(aggregate_arrayrecords(replies, "num-examples").to_torch_state_dict())


def _assert_fedavg(result: RoundResult, start: Tensors, updates: list[SiteUpdate]) -> None:
    parameters = {update.site: add(start, update.deltas) for update in updates}
    subjects = {update.site: update.num_subjects for update in updates}
    flower = _flower_fedavg(parameters, subjects)
    assert result.student.keys() == flower.keys() == SHAPES.keys()
    for name in SHAPES:
        naive = torch.zeros(SHAPES[name], dtype=torch.float64)
        for site in parameters:
            naive += parameters[site][name].double() * subjects[site] / sum(subjects.values())
        torch.testing.assert_close(result.student[name].double(), naive, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            result.student[name].double(), flower[name].double().reshape(SHAPES[name]), rtol=0, atol=1e-6
        )


@settings(max_examples=40)  # Flower's records take most of the time
@given(seed=seeds, sizes=st.lists(st.integers(1, 500), min_size=1, max_size=5))
def test_with_every_organ_at_every_site_it_is_fedavg(seed: int, sizes: list[int], make_round: MakeRound) -> None:
    """Every subject has every organ; sites may differ in size, for then the organ weights are the subject weights."""
    before = make_round(seed, {f"site-{i}": dict.fromkeys(ORGANS, size) for i, size in enumerate(sizes)})
    _assert_fedavg(before.run(), before.student, before.updates)


@settings(max_examples=40)  # Flower's records take most of the time
@given(seed=seeds, sites=st.integers(1, 5), size=st.integers(1, 500), config=configs)
def test_with_equal_counts_every_weighting_is_fedavg(
    seed: int, sites: int, size: int, config: FederationConfig, make_round: MakeRound
) -> None:
    before = make_round(seed, {f"site-{i}": dict.fromkeys(ORGANS, size) for i in range(sites)})
    result = before.run(replace(config, server=ServerStepConfig(), min_sites_per_group=1))
    _assert_fedavg(result, before.student, before.updates)


def test_deltas_of_local_training_add_up_to_fedavg(make_update: MakeUpdate) -> None:
    """The way a site makes deltas: parameters after training minus those of the task."""
    start = _random(SHAPES, "start")
    trained = {site: _random(SHAPES, "trained", site) for site in "abc"}
    updates = [make_update(site, subtract(trained[site], start), dict.fromkeys(ORGANS, 5)) for site in trained]
    result = Round(start, start, updates).run()
    flower = _flower_fedavg(trained, dict.fromkeys(trained, 5))
    for name in SHAPES:
        torch.testing.assert_close(result.student[name], flower[name].float(), rtol=0, atol=1e-6)


@settings(max_examples=50)
@given(seed=seeds, counts=site_counts, config=configs)
def test_a_site_without_an_organ_changes_no_bit_of_it(
    seed: int, counts: dict[str, dict[str, int]], config: FederationConfig, make_round: MakeRound
) -> None:
    before = make_round(seed, counts)
    result = before.run(config)
    for site, organs in counts.items():
        without = replace(before, updates=[update for update in before.updates if update.site != site]).run(config)
        foreign = set(ORGANS) - set(organs)
        assert digest(keep_groups(result.student, foreign)) == digest(keep_groups(without.student, foreign))
        assert digest(keep_groups(result.teacher, foreign)) == digest(keep_groups(without.teacher, foreign))


@settings(max_examples=50)
@given(seed=seeds, counts=site_counts, config=configs, data=st.data())
def test_arrival_order_changes_no_bit(
    seed: int, counts: dict[str, dict[str, int]], config: FederationConfig, data: st.DataObject, make_round: MakeRound
) -> None:
    before = make_round(seed, counts)
    shuffled = replace(before, updates=data.draw(st.permutations(before.updates)))
    one, other = before.run(config), shuffled.run(config)
    assert digest(one.student) == digest(other.student)
    assert digest(one.teacher) == digest(other.teacher)
    assert (one.weights, one.unchanged, one.delta_norm) == (other.weights, other.unchanged, other.delta_norm)


@settings(max_examples=50)
@given(seed=seeds, counts=site_counts, config=configs)
def test_a_group_that_is_left_alone_stays_the_same_tensors(
    seed: int, counts: dict[str, dict[str, int]], config: FederationConfig, make_round: MakeRound
) -> None:
    before = make_round(seed, counts)
    old = digest(before.student), digest(before.teacher)
    result = before.run(config)
    trained = [organ for organs in counts.values() for organ in organs]
    assert result.unchanged.keys() == {o for o in ORGANS if trained.count(o) < config.min_sites_per_group}
    assert result.weights.keys() == {"trunk", "heads", *ORGANS} - result.unchanged.keys()
    for name in SHAPES:
        untouched = group_of(name) in result.unchanged
        assert (result.student[name] is before.student[name]) == untouched
        assert (result.teacher[name] is before.teacher[name]) == untouched
    assert (digest(before.student), digest(before.teacher)) == old


@settings(max_examples=50)
@given(seed=seeds, counts=site_counts, config=configs)
def test_weights_sum_to_one_and_the_student_moves_among_the_votes(
    seed: int, counts: dict[str, dict[str, int]], config: FederationConfig, make_round: MakeRound
) -> None:
    before = make_round(seed, counts)
    result = before.run(config)
    for group, weights in result.weights.items():
        assert abs(math.fsum(weights.values()) - 1) <= 4 * 2**-53
        for name in keep_groups(SHAPES, [group]):
            mean = (result.student[name] - before.student[name]) / config.server.rate
            votes = torch.stack([update.deltas[name] for update in before.updates if update.site in weights])
            assert bool((mean >= votes.amin(0) - 2e-6).all())
            assert bool((mean <= votes.amax(0) + 2e-6).all())


@settings(max_examples=50)
@given(seed=seeds, counts=site_counts, config=configs)
def test_student_and_teacher_follow_the_formulas(
    seed: int, counts: dict[str, dict[str, int]], config: FederationConfig, make_round: MakeRound
) -> None:
    before = make_round(seed, counts)
    result = before.run(config)
    votes = {update.site: update for update in before.updates}
    for group, weights in result.weights.items():
        steps = [votes[site].num_steps for site in weights]
        momentum = 0.99 ** (sum(n * n for n in steps) / sum(steps))
        deltas = {}
        for name in keep_groups(SHAPES, [group]):
            delta = sum(weights[site] * votes[site].deltas[name].numpy().astype(np.float64) for site in weights)
            student = before.student[name].numpy() + config.server.rate * delta
            teacher = momentum * before.teacher[name].numpy() + (1 - momentum) * student
            np.testing.assert_allclose(result.student[name].numpy(), student, rtol=0, atol=1e-6)
            np.testing.assert_allclose(result.teacher[name].numpy(), teacher, rtol=0, atol=1e-6)
            deltas[name] = delta
        squares = sum(float(np.square(delta).sum()) for delta in deltas.values())
        assert result.delta_norm[group] == pytest.approx(math.sqrt(squares), rel=1e-6)


def test_a_group_held_back_says_why_and_holds_nothing_else_back(make_round: MakeRound) -> None:
    before = make_round(1, {"a": {"brain": 3, "heart": 2}, "b": {"heart": 5}})
    result = before.run(FederationConfig(min_sites_per_group=2))
    assert result.unchanged == {
        "brain": "trained by 1 sites, federation.min_sites_per_group asks for 2",
        "liver": "no accepted update trained it in this round",
    }
    assert result.weights["trunk"] == {"a": 3 / 8, "b": 5 / 8}
    assert result.weights["heart"] == {"a": 2 / 7, "b": 5 / 7}
    # The bound protects an organ's sites from each other; a single site still moves what all share.
    alone = make_round(1, {"a": {"brain": 3}}).run(FederationConfig(min_sites_per_group=2))
    assert alone.weights == {"heads": {"a": 1.0}, "trunk": {"a": 1.0}}


def test_a_round_without_answers_changes_nothing(make_round: MakeRound) -> None:
    before = make_round(1, {})
    result = before.run()
    assert result.unchanged.keys() == {"trunk", "heads", *ORGANS}
    assert (digest(result.student), digest(result.teacher)) == (digest(before.student), digest(before.teacher))
    assert not result.weights
    assert not result.delta_norm


def test_many_equal_rounds_do_not_drift(make_update: MakeUpdate) -> None:
    """Ten rounds of zero deltas leave the student bit for bit, and the teacher closes in on it by 0.99 a step."""
    student, teacher = {"trunk.w": torch.tensor([0.1, -3.0])}, {"trunk.w": torch.tensor([1.1, -2.0])}
    zero = make_update("a", {"trunk.w": torch.zeros(2)}, {"brain": 1}, num_steps=4)
    for _ in range(10):
        result = Round(student, teacher, [zero]).run()
        assert digest(result.student) == digest(student)
        teacher = result.teacher
    gap = subtract(teacher, student)
    assert norm(gap) == pytest.approx(math.sqrt(2) * 0.99**40, rel=1e-5)


def test_what_does_not_fit_together_is_a_defect(make_round: MakeRound) -> None:
    before = make_round(1, {"a": {"brain": 3}, "b": {"brain": 5}})
    with pytest.raises(ValueError, match="one update a site"):
        replace(before, updates=[*before.updates, before.updates[0]]).run()
    with pytest.raises(ValueError, match="student and teacher differ"):
        replace(before, teacher={}).run()
    before.updates[1].deltas["organs.brain.token"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"organs\.brain\.token of b should be of a parameter and of its shape"):
        before.run()


# What is remembered between rounds, and the rest of the ways to average.


def _whole(result: RoundResult) -> tuple[str, str, str, dict[str, list[float]]]:
    return digest(result.student), digest(result.teacher), digest(result.state.moments), result.state.past_norms


def _two_rounds(
    first: Round, second: Round, config: FederationConfig, *, in_place: bool = False
) -> tuple[RoundResult, RoundResult]:
    one = first.run(config, in_place=in_place)
    return one, replace(second, student=one.student, teacher=one.teacher).run(config, one.state, in_place=in_place)


@settings(max_examples=30)
@given(seed=seeds, counts=many_sites, config=all_configs, data=st.data())
def test_arrival_order_changes_no_bit_of_anything(
    seed: int, counts: dict[str, dict[str, int]], config: FederationConfig, data: st.DataObject, make_round: MakeRound
) -> None:
    rounds = make_round(seed, counts), make_round(seed + 1, counts)
    shuffled = [replace(r, updates=data.draw(st.permutations(r.updates))) for r in rounds]
    for one, other in zip(_two_rounds(*rounds, config), _two_rounds(shuffled[0], shuffled[1], config), strict=True):
        assert _whole(one) == _whole(other)
        assert (one.means, one.shortened, one.delta_norm) == (other.means, other.shortened, other.delta_norm)


@settings(max_examples=30)
@given(seed=seeds, counts=many_sites, later=many_sites, config=all_configs)
def test_a_group_that_stays_keeps_its_state(
    seed: int,
    counts: dict[str, dict[str, int]],
    later: dict[str, dict[str, int]],
    config: FederationConfig,
    make_round: MakeRound,
) -> None:
    one, two = _two_rounds(make_round(seed, counts), make_round(seed + 1, later), config)
    for group in two.unchanged:
        kept = {name: tensor for name, tensor in one.state.moments.items() if group_of(name.partition("/")[2]) == group}
        assert all(two.state.moments[name] is tensor for name, tensor in kept.items())
        assert two.state.past_norms.get(group) == one.state.past_norms.get(group)


@settings(max_examples=30)
@given(seed=seeds, counts=many_sites, config=all_configs)
def test_in_place_gives_the_same_bits_in_the_same_memory(
    seed: int, counts: dict[str, dict[str, int]], config: FederationConfig, make_round: MakeRound
) -> None:
    rounds, again = [(make_round(seed, counts), make_round(seed + 1, counts)) for _ in range(2)]
    pure = _two_rounds(*rounds, config)[1]
    before = again[0]
    own = {id(tensor) for tensor in (*before.student.values(), *before.teacher.values())}
    over = _two_rounds(*again, config, in_place=True)[1]
    assert _whole(pure) == _whole(over)
    assert {id(tensor) for tensor in (*over.student.values(), *over.teacher.values())} == own


@pytest.mark.parametrize("in_place", [False, True])
def test_a_student_and_a_teacher_that_begin_as_one_part_ways(make_update: MakeUpdate, in_place: bool) -> None:
    start = torch.tensor([1.0, 2.0])
    vote = make_update("a", {"trunk.w": torch.ones(2)}, {"brain": 1}, num_steps=1)
    result = Round({"trunk.w": start}, {"trunk.w": start}, [vote]).run(in_place=in_place)
    assert result.student["trunk.w"].tolist() == [2.0, 3.0]
    assert result.teacher["trunk.w"].tolist() == pytest.approx([1.01, 2.01])


@settings(max_examples=30)
@given(seed=seeds, config=all_configs)
def test_a_state_that_went_through_a_checkpoint_goes_on_alike(
    seed: int, config: FederationConfig, make_round: MakeRound
) -> None:
    """Nothing that the next round depends on lies outside student, teacher and state, in the precision they are kept in."""
    counts = {site: dict.fromkeys(ORGANS, 3) for site in "abcdef"}
    first, second = make_round(seed, counts), make_round(seed + 1, counts)
    one, two = _two_rounds(first, second, config)
    assert all(moment.dtype == torch.float32 for moment in one.state.moments.values())
    kept = ServerState(
        moments={name: torch.tensor(tensor.tolist()) for name, tensor in one.state.moments.items()},
        past_norms={group: list(norms) for group, norms in one.state.past_norms.items()},
    )
    student, teacher = ({name: t.clone() for name, t in part.items()} for part in (one.student, one.teacher))
    resumed = Round(student, teacher, second.updates).run(config, kept)
    assert _whole(resumed) == _whole(two)


@pytest.mark.parametrize("mean", [GroupMean.median, GroupMean.trimmed_mean])
def test_robust_means_where_five_sites_hold_the_group(mean: GroupMean, make_round: MakeRound) -> None:
    counts = {site: {"brain": 3, **({"heart": 9} if site < "e" else {})} for site in "abcdef"}
    before = make_round(1, counts)
    config = FederationConfig(robust=RobustConfig(mean=mean))
    result = before.run(config)
    assert result.means == {"trunk": mean, "heads": mean, "brain": mean, "heart": GroupMean.mean}
    assert result.weights["trunk"] == dict.fromkeys("abcdef", 1 / 6)
    assert result.weights["heart"] == dict.fromkeys("abcd", 1 / 4)
    name = "trunk.block.weight"
    votes = np.stack([update.deltas[name].double().numpy() for update in before.updates])
    expected = np.median(votes, axis=0) if mean is GroupMean.median else np.sort(votes, axis=0)[1:-1].mean(axis=0)
    np.testing.assert_allclose(result.student[name] - before.student[name], expected, atol=1e-6)


def test_a_long_delta_is_shortened_and_the_record_can_say_so(make_update: MakeUpdate) -> None:
    # By hand: a sent 3-4-5, to be 2 long, so it is multiplied by .4; b sent .6 along the first axis. Equal weights.
    start = {"trunk.w": torch.zeros(2)}
    updates = [
        make_update("a", {"trunk.w": torch.tensor([3.0, 4.0])}, {"brain": 1}),
        make_update("b", {"trunk.w": torch.tensor([0.6, 0.0])}, {"brain": 1}),
    ]
    config = FederationConfig(robust=RobustConfig(max_norm=2.0))
    result = Round(start, start, updates).run(config)
    assert result.shortened == {"trunk": {"a": 0.4}}
    assert result.student["trunk.w"].tolist() == pytest.approx([0.9, 0.8])
    assert result.state.past_norms == {}
    # Bounded by the past: the first round has none; what it leaves is the lower median, .6; twice that holds a to 1.2.
    config = FederationConfig(robust=RobustConfig(past_factor=2.0))
    one, two = _two_rounds(Round(start, start, updates), Round(start, start, updates), config)
    assert one.shortened == {}
    assert one.state.past_norms == {"trunk": [pytest.approx(0.6)]}
    assert two.shortened == {"trunk": {"a": pytest.approx(1.2 / 5)}}
    assert two.state.past_norms == {"trunk": [pytest.approx(0.6)] * 2}


def test_unequal_steps_pull_alike_where_they_are_normalised(make_update: MakeUpdate) -> None:
    # By hand: a moved 1 a step for 10 steps, b moved 3 a step for 2. Mean movement a step 2, mean steps 6: 12 in all.
    start = {"trunk.w": torch.zeros(1)}
    updates = [
        make_update("a", {"trunk.w": torch.tensor([10.0])}, {"brain": 1}, num_steps=10),
        make_update("b", {"trunk.w": torch.tensor([6.0])}, {"brain": 1}, num_steps=2),
    ]
    config = FederationConfig(server=ServerStepConfig(normalise_steps=True))
    result = Round(start, start, updates).run(config)
    assert result.student["trunk.w"].item() == pytest.approx(12.0)
    assert result.weights == {"trunk": {"a": 0.5, "b": 0.5}}
    # A site that says it did one step gains nothing by it where norms are bounded: the bound holds for what enters the mean.
    bounded = replace(config, robust=RobustConfig(max_norm=12.0))
    result = Round(start, start, updates).run(bounded)
    assert result.shortened == {"trunk": {"b": pytest.approx(12 / 18)}}


def test_server_momentum_carries_a_group_on_only_when_it_is_trained(make_update: MakeUpdate) -> None:
    # By hand, momentum .5: means 1, then 0: the first moment is 1, then .5. A round without the organ moves nothing.
    start = {"organs.brain.w": torch.zeros(1), "trunk.w": torch.zeros(1)}
    config = FederationConfig(server=ServerStepConfig(optimiser=ServerOptimiser.fedavgm, momentum=0.5))
    one = make_update("a", {name: torch.ones(1) for name in start}, {"brain": 1})
    trunk = make_update("a", {"trunk.w": torch.zeros(1)}, {"heart": 1})
    zero = make_update("a", {name: torch.zeros(1) for name in start}, {"brain": 1})
    result = Round(start, start, [one]).run(config)
    seen = [result.student["organs.brain.w"].item()]
    for update in (trunk, zero):
        result = Round(result.student, result.teacher, [update]).run(config, result.state)
        seen.append(result.student["organs.brain.w"].item())
    assert seen == [1.0, 1.0, 1.5]
    assert result.student["trunk.w"].item() == 1.75
    assert result.state.moments["first/organs.brain.w"].item() == 0.5


def test_deltas_for_other_parameters_than_the_models_are_a_defect(make_update: MakeUpdate) -> None:
    start = {"trunk.w": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"trunk\.v of a should be of a parameter"):
        Round(start, start, [make_update("a", {"trunk.v": torch.ones(1)}, {"brain": 1})]).run()
