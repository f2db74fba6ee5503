"""What a federated mean over organs promises, each promise as a property over random rounds."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panfm.config import FederationConfig, TrunkWeighting
from panfm.groups import group_of, keep_groups
from panfm.protocol import SiteUpdate
from panfm.randomness import stream
from panfm.update import Tensors, add, digest, norm, subtract
from server.aggregation.organ_mean import RoundResult, aggregate_round, mean_delta

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

    def run(self, config: FederationConfig | None = None) -> RoundResult:
        return aggregate_round(self.student, self.teacher, self.updates, config or FederationConfig(), _log_momentum_of)


counts_of_a_site = st.dictionaries(st.sampled_from(ORGANS), st.integers(1, 500), min_size=1)
site_counts = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), counts_of_a_site, min_size=1)
configs = st.builds(
    FederationConfig,
    trunk_weights=st.sampled_from(TrunkWeighting),
    organ_exponent=st.sampled_from([0.0, 0.5, 1.0]),
    server_rate=st.sampled_from([0.5, 1.0]),
    min_sites_per_group=st.integers(1, 2),
)
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
    result = before.run(replace(config, server_rate=1.0, min_sites_per_group=1))
    _assert_fedavg(result, before.student, before.updates)


def test_deltas_of_local_training_add_up_to_fedavg(make_update: MakeUpdate) -> None:
    """The way a site makes deltas: parameters after training minus those of the task."""
    start = _random(SHAPES, "start")
    trained = {site: _random(SHAPES, "trained", site) for site in "abc"}
    updates = [make_update(site, subtract(trained[site], start), dict.fromkeys(ORGANS, 5)) for site in trained]
    result = aggregate_round(start, start, updates, FederationConfig(), _log_momentum_of)
    flower = _flower_fedavg(trained, dict.fromkeys(trained, 5))
    for name in SHAPES:
        torch.testing.assert_close(result.student[name], flower[name].float(), rtol=0, atol=1e-6)


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


@given(seed=seeds, counts=site_counts, config=configs)
def test_weights_sum_to_one_and_the_mean_lies_among_the_votes(
    seed: int, counts: dict[str, dict[str, int]], config: FederationConfig, make_round: MakeRound
) -> None:
    before = make_round(seed, counts)
    for group, weights in before.run(config).weights.items():
        assert abs(math.fsum(weights.values()) - 1) <= 4 * 2**-53
        for name, mean in mean_delta(group, before.updates, weights).items():
            votes = torch.stack([update.deltas[name] for update in before.updates if update.site in weights])
            assert bool((mean >= votes.amin(0) - 1e-6).all())
            assert bool((mean <= votes.amax(0) + 1e-6).all())


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
            student = before.student[name].numpy() + config.server_rate * delta
            teacher = momentum * before.teacher[name].numpy() + (1 - momentum) * student
            np.testing.assert_allclose(result.student[name].numpy(), student, rtol=0, atol=1e-6)
            np.testing.assert_allclose(result.teacher[name].numpy(), teacher, rtol=0, atol=1e-6)
            deltas[name] = delta
        squares = sum(float(np.square(delta).sum()) for delta in deltas.values())
        assert result.delta_norm[group] == pytest.approx(math.sqrt(squares), rel=1e-6)


@given(data=st.data(), seed=seeds)
def test_sums_run_in_the_order_of_site_names(data: st.DataObject, seed: int, make_update: MakeUpdate) -> None:
    """In fp64, where no final rounding hides the order of a sum."""
    draws = stream(seed, "fp64")
    votes = {site: torch.from_numpy(draws.normal(size=8) * 10.0 ** draws.integers(-3, 3, size=8)) for site in "abcde"}
    weights = dict(zip("abcde", (draws.dirichlet(np.ones(5))).tolist(), strict=True))
    by_hand = [0.0] * 8
    for i in range(8):
        by_hand[i] = votes["a"][i].item() * weights["a"]
        for site in "bcde":
            by_hand[i] += votes[site][i].item() * weights[site]
    sites = data.draw(st.permutations("abcde"))
    updates = [make_update(site, {"trunk.w": votes[site]}, {"brain": 1}) for site in sites]
    shuffled = {site: weights[site] for site in data.draw(st.permutations("abcde"))}
    assert mean_delta("trunk", updates, shuffled)["trunk.w"].tolist() == by_hand


@given(
    value=st.floats(-(2.0**100), 2.0**100, width=32),
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_equal_votes_return_themselves_bit_for_bit(
    value: float, sizes: list[int], dtype: torch.dtype, make_update: MakeUpdate
) -> None:
    vote = torch.tensor([value, -0.0, 0.0]).clamp(-6e4, 6e4).to(dtype)
    updates = [make_update(str(i), {"trunk.w": vote.clone()}, {"brain": size}) for i, size in enumerate(sizes)]
    weights = {str(i): size / sum(sizes) for i, size in enumerate(sizes)}
    assert digest(mean_delta("trunk", updates, weights)) == digest({"trunk.w": vote})


class Spooled(Mapping[str, Tensor]):
    """Tensors that are made when they are read, as from a disk; remembers which were read."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.read.append(name)
        return self.tensors[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_lazy_updates_are_read_once_and_only_in_the_group(make_round: MakeRound) -> None:
    before = make_round(1, {"a": {"brain": 3, "heart": 2}, "b": {"heart": 5}})
    spooled = {update.site: Spooled(update.deltas) for update in before.updates}
    lazy = [replace(update, deltas=spooled[update.site]) for update in before.updates]  # type: ignore[arg-type]  # a dict on the wire, any mapping here
    weights = {"a": 0.4, "b": 0.6}
    assert digest(mean_delta("heart", lazy, weights)) == digest(mean_delta("heart", before.updates, weights))
    for tensors in spooled.values():
        assert tensors.read == ["organs.heart.adapter.weight", "organs.heart.token"]


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
        result = aggregate_round(student, teacher, [zero], FederationConfig(), _log_momentum_of)
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
    with pytest.raises(ValueError, match="weights name the sites"):
        mean_delta("brain", before.updates, {"a": 0.5, "c": 0.5})
    with pytest.raises(ValueError, match="must hold the same names"):
        mean_delta("heart", before.updates, {"a": 0.5, "b": 0.5})
    del before.updates[1].deltas["organs.brain.token"]
    with pytest.raises(ValueError, match="must hold the same names"):
        before.run()
