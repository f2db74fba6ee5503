"""The mean of one group: its order, its rounding, and that what lies on disk is read once and in blocks."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panfm.config import GroupMean, RobustConfig
from panfm.protocol import SiteUpdate
from panfm.randomness import stream
from panfm.update import digest
from server.aggregation.organ_mean import Ballot, ballot, mean_delta, mean_of
from server.aggregation.votes import BLOCK, Deltas, DeltasInMemory, Vote, block_size, vote_of

MakeUpdate = Callable[..., SiteUpdate]
seeds = st.integers(0, 2**20)
MEANS = st.sampled_from(GroupMean)


def _ballot(tensors: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Ballot:
    """A plain ballot of sites that sent one trunk parameter each."""
    deltas = tuple(DeltasInMemory({"trunk.w": tensors[site]}) for site in sorted(tensors))
    shares = tuple((weights or dict.fromkeys(tensors, 1 / len(tensors)))[site] for site in sorted(tensors))
    return Ballot(deltas=deltas, weights=shares, scales=(1.0,) * len(deltas), mean=GroupMean.mean)


def _drawn(seed: int, sites: str, size: int) -> dict[str, Tensor]:
    draws = stream(seed, "deltas")
    return {
        site: torch.from_numpy((draws.normal(size=size) * 10.0 ** draws.integers(-3, 3, size=size)).astype(np.float32))
        for site in sites
    }


@given(seed=seeds)
def test_it_is_the_weighted_mean_in_exact_fractions(seed: int) -> None:
    """Every product and sum in rational numbers, rounded once at the end; ours may differ by the last bit of fp32 only, and by
    the 2 ** -30 to which weights are rounded."""
    votes, shares = _drawn(seed, "abcde", 4), stream(seed, "weights").dirichlet(np.ones(5)).tolist()
    mean = mean_delta("trunk", _ballot(votes, dict(zip("abcde", shares, strict=True))))["trunk.w"]
    for i in range(4):
        terms = [Fraction(votes[site][i].item()) * Fraction(share) for site, share in zip("abcde", shares, strict=True)]
        slack = float(sum(map(abs, terms))) * 2**-30 + abs(float(sum(terms))) * 2**-24
        assert abs(mean[i].item() - float(sum(terms))) <= slack


@given(data=st.data(), seed=seeds, mean=MEANS)
def test_arrival_order_changes_no_bit(data: st.DataObject, seed: int, mean: GroupMean, make_update: MakeUpdate) -> None:
    tensors = _drawn(seed, "abcdef", 8)
    weights = dict(zip("abcdef", stream(seed, "weights").dirichlet(np.ones(6)).tolist(), strict=True))
    scales = {site: 1.0 / (1 + i) for i, site in enumerate("abcdef")}

    def averaged(sites: Collection[str]) -> str:
        voting = [vote_of(make_update(site, {"trunk.w": tensors[site]}, {"brain": 1})) for site in sites]
        return digest(mean_delta("trunk", ballot(voting, weights, scales, RobustConfig(mean=mean))))

    assert averaged(data.draw(st.permutations("abcdef"))) == averaged("abcdef")


@given(data=st.data(), seed=seeds, mean=st.sampled_from([GroupMean.median, GroupMean.trimmed_mean]))
def test_no_site_is_special_to_a_robust_mean(data: st.DataObject, seed: int, mean: GroupMean) -> None:
    """Even when sites change their deltas among themselves, names and all."""
    tensors = _drawn(seed, "abcdefg", 8)
    renamed = dict(zip("abcdefg", (tensors[site] for site in data.draw(st.permutations("abcdefg"))), strict=True))
    one, other = (mean_delta("trunk", _with(_ballot(votes), mean=mean)) for votes in (tensors, renamed))
    assert digest(one) == digest(other)


def _with(votes: Ballot, mean: GroupMean, scales: tuple[float, ...] | None = None) -> Ballot:
    return Ballot(deltas=votes.deltas, weights=votes.weights, scales=scales or votes.scales, mean=mean, trim=0.25)


@given(value=st.floats(-(2.0**100), 2.0**100, width=32), sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=16))
def test_equal_votes_return_themselves_bit_for_bit(value: float, sizes: list[int]) -> None:
    vote = torch.tensor([value, -0.0, 0.0])
    sites = [f"{i:02}" for i in range(len(sizes))]
    weights = {site: size / sum(sizes) for site, size in zip(sites, sizes, strict=True)}
    assert digest(mean_delta("trunk", _ballot(dict.fromkeys(sites, vote), weights))) == digest({"trunk.w": vote})


@given(seed=seeds, factor=st.floats(0.001, 1000), mean=MEANS)
def test_scaled_copies_give_the_scaled_vote(seed: int, factor: float, mean: GroupMean) -> None:
    """Five sites sent multiples of one delta, and each is scaled back by what it multiplied."""
    vote, times = _drawn(seed, "a", 8)["a"], (1.0, 2.0, 0.5, factor, 1 / factor)
    votes = _ballot({str(i): vote * multiple for i, multiple in enumerate(times)})
    scaled = mean_delta("trunk", _with(votes, mean, tuple(1 / multiple for multiple in times)))["trunk.w"]
    torch.testing.assert_close(scaled, vote, rtol=1e-6, atol=0)


@given(seed=seeds, sites=st.integers(5, 9), mean=MEANS)
def test_the_mean_lies_among_the_votes(seed: int, sites: int, mean: GroupMean) -> None:
    tensors = _drawn(seed, "abcdefghi"[:sites], 8)
    found = mean_delta("trunk", _with(_ballot(tensors), mean))["trunk.w"]
    votes = torch.stack(list(tensors.values()))
    assert bool((found >= votes.amin(0) * (1 - 1e-6 * votes.amin(0).sign())).all())
    assert bool((found <= votes.amax(0) * (1 + 1e-6 * votes.amax(0).sign())).all())


@pytest.mark.parametrize("mean", GroupMean)
def test_blocks_do_not_show(mean: GroupMean) -> None:
    """A tensor of several blocks and a bit is averaged as its elements are."""
    size = 2 * BLOCK + 3
    tensors = _drawn(3, "abcde", size)
    votes = _with(_ballot(tensors), mean)
    together = mean_delta("trunk", votes)["trunk.w"]
    assert together.shape == (size,)
    for i in (0, 1, votes.block_size - 1, votes.block_size, BLOCK - 1, BLOCK, 2 * BLOCK, size - 1):
        alone = mean_delta("trunk", _with(_ballot({site: t[i : i + 1] for site, t in tensors.items()}), mean))
        assert torch.equal(alone["trunk.w"], together[i : i + 1])


@pytest.mark.parametrize("mean", GroupMean)
def test_shapes_without_and_with_many_axes_stay(mean: GroupMean) -> None:
    for shape in ((), (1,), (2, 3, 4), (0, 3)):
        votes = _with(_ballot({site: torch.full(shape, 2.0) for site in "abcde"}), mean)
        found = mean_delta("trunk", votes)["trunk.w"]
        assert torch.equal(found, torch.full(shape, 2.0))


class Spooled(Deltas):
    """Deltas that are made when they are read, as from a disk; remembers what was read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = DeltasInMemory(tensors)
        self.read: list[tuple[str, int, int]] = []

    def names(self) -> Collection[str]:
        return self.tensors.names()

    def shape(self, name: str) -> torch.Size:
        return self.tensors.shape(name)

    def block(self, name: str, start: int, stop: int) -> Tensor:
        self.read.append((name, start, stop))
        return self.tensors.block(name, start, stop).clone()


@pytest.mark.parametrize("mean", GroupMean)
def test_lazy_deltas_are_read_once_and_only_in_the_group(mean: GroupMean) -> None:
    size = BLOCK + 5
    tensors = {"organs.heart.w": torch.ones(size), "organs.heart.v": torch.ones(2), "trunk.w": torch.ones(3)}
    spooled = [Spooled(tensors) for _ in range(5)]
    votes = Ballot(deltas=tuple(spooled), weights=(0.2,) * 5, scales=(1.0,) * 5, mean=mean)
    mean_delta("heart", votes)
    for deltas in spooled:
        assert {name for name, _, _ in deltas.read} == {"organs.heart.v", "organs.heart.w"}
        read = [(start, stop) for name, start, stop in deltas.read if name == "organs.heart.w"]
        assert [0, *(stop for _, stop in read)] == [*(start for start, _ in read), size]
        assert all(stop - start <= votes.block_size for start, stop in read)


def test_robust_blocks_shrink_with_the_number_of_sites() -> None:
    """All sites' blocks together stay near one size, so that memory does not grow with the number of sites."""
    for sites in (5, 16, 100, 200):
        deltas = (DeltasInMemory({}),) * sites
        votes = Ballot(deltas=deltas, weights=(1 / sites,) * sites, scales=(1.0,) * sites, mean=GroupMean.median)
        assert votes.block_size * sites <= 8 * block_size()
        assert votes.block_size <= block_size()


@pytest.mark.parametrize("mean", GroupMean)
def test_fewer_than_five_sites_get_the_weighted_mean(mean: GroupMean) -> None:
    assert [mean_of(sites, RobustConfig(mean=mean)) for sites in (1, 4)] == [GroupMean.mean] * 2
    assert [mean_of(sites, RobustConfig(mean=mean)) for sites in (5, 6)] == [mean] * 2


def test_what_does_not_fit_together_is_a_defect() -> None:
    def votes(other: Mapping[str, Tensor]) -> Ballot:
        deltas = (DeltasInMemory({"trunk.w": torch.ones(2)}), DeltasInMemory(other))
        return Ballot(deltas=deltas, weights=(0.5, 0.5), scales=(1.0, 1.0), mean=GroupMean.mean)

    for other in ({}, {"trunk.v": torch.ones(2)}, {"trunk.w": torch.ones(1, 2)}):
        with pytest.raises(ValueError, match="must hold the same names and shapes"):
            mean_delta("trunk", votes(other))
    assert mean_delta("trunk", votes({"trunk.w": torch.zeros(2), "heads.w": torch.ones(1)})).keys() == {"trunk.w"}


def test_a_ballot_is_in_the_order_of_site_names(make_update: MakeUpdate) -> None:
    voting: list[Vote] = [
        vote_of(make_update(site, {"trunk.w": torch.tensor([float(i)])}, {"brain": 1})) for i, site in enumerate("cab")
    ]
    made = ballot(voting, {"a": 0.1, "b": 0.2, "c": 0.7}, {"a": 1.0, "b": 2.0, "c": 3.0}, RobustConfig())
    assert (made.weights, made.scales) == ((0.1, 0.2, 0.7), (1.0, 2.0, 3.0))
    # By hand: a sent 1, b sent 2, c sent 0.
    assert mean_delta("trunk", made)["trunk.w"].item() == pytest.approx(0.1 * 1 + 0.2 * 2 * 2, rel=1e-7)
    assert math.isclose(sum(made.weights), 1)
