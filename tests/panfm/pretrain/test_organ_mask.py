"""Organ masks follow the stated law, against probabilities found by walking every possible course of the draws.

The law of `lift`: m = min(Binomial(organs present, rate), all but one); then m successive draws without replacement with
p = (1 - e) softmax(log lift / T) + e / organs present. `uniform` has p = 1 / organs present.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from panfm.config import OrganMaskConfig, OrganMaskRule
from panfm.pretrain.organ_mask import draw_organ_masks, lift_probabilities
from panfm.pretrain.saliency import Saliency, saliency_of
from panfm.randomness import stream

NUM_DRAWS = 10_000
TOKENS = {"brain": 9, "heart": 9, "liver": 3, "kidney": 28, "spleen": 5}
ORGANS = tuple(TOKENS)

STEEP = {"brain": 0.50, "heart": 0.12, "liver": 0.02, "kidney": 0.20}
EVEN = {organ: TOKENS[organ] / 100 for organ in ("brain", "heart", "liver", "kidney")}
PAIR = {"heart": 0.3, "spleen": 0.1}
"""Attention maps of subjects with four or two of the five organs."""

Law = dict[frozenset[str], float]


def _saliency(attention: Mapping[str, float], num_subjects: int) -> Saliency:
    return saliency_of(
        {organ: torch.full((num_subjects,), value) for organ, value in attention.items()},
        {organ: torch.arange(num_subjects) for organ in attention},
        TOKENS,
        ORGANS,
        num_subjects,
    )


def _observed(
    attention: Mapping[str, float], config: OrganMaskConfig, num_draws: int = NUM_DRAWS
) -> Counter[frozenset[str]]:
    draws = [
        stream(0, "organ mask test")
    ] * num_draws  # one generator, so that each subject's draws go on from the last
    masks = draw_organ_masks(_saliency(attention, num_draws), config, draws)
    return Counter(frozenset(o for o, m in zip(ORGANS, row, strict=True) if m) for row in masks.tolist())


def _probabilities(attention: Mapping[str, float], temperature: float, explore: float) -> dict[str, float]:
    """p of each organ present, from the definition."""
    tokens = sum(TOKENS[organ] for organ in attention)
    lift = {o: (a / sum(attention.values())) / (TOKENS[o] / tokens) for o, a in attention.items()}
    weights = {o: math.exp(math.log(lift[o]) / temperature) for o in attention}
    return {o: (1 - explore) * weights[o] / sum(weights.values()) + explore / len(attention) for o in attention}


def _successive_law(p: Mapping[str, float], rate: float) -> Law:
    """Probability of each set: over the number drawn, over every order in which the set can be drawn."""
    law: Law = {}
    for number in range(len(p)):
        enough = range(number, len(p) + 1) if number == len(p) - 1 else (number,)
        of_number = sum(math.comb(len(p), n) * rate**n * (1 - rate) ** (len(p) - n) for n in enough)
        for order in itertools.permutations(p, number):
            course, left = of_number, 1.0
            for organ in order:
                course, left = course * p[organ] / left, left - p[organ]
            law[frozenset(order)] = law.get(frozenset(order), 0.0) + course
    assert sum(law.values()) == pytest.approx(1.0)
    return law


def _p_value(observed: Counter[frozenset[str]], law: Law) -> float:
    """Chi-square of the observed sets; sets expected fewer than 5 times are counted together."""
    total = observed.total()
    assert observed.keys() <= law.keys()
    common = [chosen for chosen in law if total * law[chosen] >= 5]
    seen, expected = [observed[chosen] for chosen in common], [total * law[chosen] for chosen in common]
    if total - sum(expected) > 1e-6 * total:
        seen, expected = [*seen, total - sum(seen)], [*expected, total - sum(expected)]
    return float(stats.chisquare(seen, expected, sum_check=False).pvalue)


@pytest.mark.parametrize("attention", [STEEP, EVEN, PAIR], ids=["steep", "even", "pair"])
@pytest.mark.parametrize(
    ("temperature", "explore", "rate"), [(0.5, 0.25, 0.3), (1.0, 0.0, 0.5), (0.2, 0.1, 0.7), (5.0, 0.25, 1.0)]
)
def test_lift_follows_its_law(attention: dict[str, float], temperature: float, explore: float, rate: float) -> None:
    config = OrganMaskConfig(temperature=temperature, explore=explore, rate=rate)
    law = _successive_law(_probabilities(attention, temperature, explore), rate)
    assert _p_value(_observed(attention, config), law) > 1e-3


def test_the_chi_square_can_tell_laws_apart() -> None:
    """The same draws against neighbouring laws: no exploration, another temperature, shares instead of lift, uniform."""
    observed = _observed(STEEP, OrganMaskConfig())
    even = dict.fromkeys(STEEP, 0.25)
    others = [_probabilities(STEEP, 0.5, 0.0), _probabilities(STEEP, 0.6, 0.25), _by_share(STEEP), even]
    for p in others:
        assert _p_value(observed, _successive_law(p, 0.3)) < 1e-6


def _by_share(attention: Mapping[str, float]) -> dict[str, float]:
    weights = {organ: (a / sum(attention.values())) ** 2 for organ, a in attention.items()}
    return {organ: 0.75 * w / sum(weights.values()) + 0.25 / len(weights) for organ, w in weights.items()}


@pytest.mark.parametrize("rate", [0.3, 0.8])
def test_uniform_has_the_same_number_and_no_preference(rate: float) -> None:
    config = OrganMaskConfig(rule=OrganMaskRule.uniform, rate=rate)
    law = _successive_law({organ: 1 / len(STEEP) for organ in STEEP}, rate)
    assert _p_value(_observed(STEEP, config), law) > 1e-3


@pytest.mark.parametrize(
    ("absolute", "threshold", "dominant"),
    [
        (False, 1.5, {"brain"}),  # shares .595 .143 .024 .238 against 1.5 / 4
        (False, 0.9, {"brain", "kidney"}),
        (True, 0.7, set()),
        (True, 0.1, {"brain", "heart", "kidney"}),
        (True, 0.01, {"brain", "heart", "liver", "kidney"}),
    ],
)
def test_threshold_masks_dominant_organs_with_its_probability(
    absolute: bool, threshold: float, dominant: set[str]
) -> None:
    config = OrganMaskConfig(
        rule=OrganMaskRule.threshold, threshold=threshold, threshold_absolute=absolute, threshold_probability=0.6
    )
    law: Law = {}
    for number in range(len(dominant) + 1):
        for chosen in itertools.combinations(sorted(dominant), number):
            left = {"liver"} if len(chosen) == len(STEEP) else set()  # all of them: the least attended stays
            key = frozenset(chosen) - left
            law[key] = law.get(key, 0.0) + 0.6**number * 0.4 ** (len(dominant) - number)
    observed = _observed(STEEP, config)
    if dominant:
        assert _p_value(observed, law) > 1e-3
    else:
        assert observed == {frozenset(): NUM_DRAWS}


def test_none_masks_nothing() -> None:
    assert _observed(STEEP, OrganMaskConfig(rule=OrganMaskRule.none), 100) == {frozenset(): 100}


configs = st.builds(
    OrganMaskConfig,
    rule=st.sampled_from(OrganMaskRule),
    rate=st.sampled_from([0.0, 0.3, 1.0]),
    temperature=st.sampled_from([0.01, 0.5, 10.0]),
    explore=st.sampled_from([0.0, 0.25, 1.0]),
    threshold=st.sampled_from([0.01, 1.5]),
    threshold_absolute=st.booleans(),
    threshold_probability=st.sampled_from([0.5, 1.0]),
)
attentions = st.lists(
    st.dictionaries(st.sampled_from(ORGANS), st.floats(0.0, 1.0, width=32), min_size=1), min_size=1, max_size=6
)


def _ragged(attention: list[dict[str, float]]) -> Saliency:
    rows = {o: [row for row, own in enumerate(attention) if o in own] for o in ORGANS}
    rows = {organ: present for organ, present in rows.items() if present}
    return saliency_of(
        {organ: torch.tensor([attention[row][organ] for row in present]) for organ, present in rows.items()},
        {organ: torch.tensor(present) for organ, present in rows.items()},
        TOKENS,
        ORGANS,
        len(attention),
    )


@given(attention=attentions, config=configs, seed=st.integers(0, 99))
def test_only_present_organs_are_masked_and_one_stays(
    attention: list[dict[str, float]], config: OrganMaskConfig, seed: int
) -> None:
    saliency = _ragged(attention)
    masks = draw_organ_masks(saliency, config, [stream(seed, row) for row in range(len(attention))])
    assert (masks.dtype, masks.device.type, masks.shape) == (torch.bool, "cpu", saliency.presence.shape)
    assert not bool((masks & ~saliency.presence).any())
    assert bool((saliency.presence & ~masks).any(1).all())
    single = saliency.presence.sum(1) == 1
    assert not bool(masks[single].any())


@given(attention=attentions, config=configs, seed=st.integers(0, 99))
def test_a_subjects_draw_depends_on_no_other_subject(
    attention: list[dict[str, float]], config: OrganMaskConfig, seed: int
) -> None:
    together = draw_organ_masks(_ragged(attention), config, [stream(seed, row) for row in range(len(attention))])
    for row, own in enumerate(attention):
        alone = draw_organ_masks(_ragged([own]), config, [stream(seed, row)])
        assert torch.equal(alone[0], together[row])


def test_all_but_one_at_rate_one() -> None:
    assert {len(chosen) for chosen in _observed(STEEP, OrganMaskConfig(rate=1.0), 200)} == {len(STEEP) - 1}


@given(
    lift=st.lists(st.floats(1e-3, 100.0), min_size=2, max_size=7),
    temperature=st.floats(0.1, 10.0),
    explore=st.floats(0.0, 1.0),
)
def test_probabilities_by_definition(lift: list[float], temperature: float, explore: float) -> None:
    found = lift_probabilities(np.array(lift), temperature, explore)
    powers = [value ** (1 / temperature) for value in lift]
    expected = [(1 - explore) * power / sum(powers) + explore / len(lift) for power in powers]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert float(found.sum()) == pytest.approx(1.0)
    assert np.diff(found[np.argsort(lift)]).min() >= 0  # more lift, more likely


def test_at_a_low_temperature_organs_go_in_the_order_of_lift() -> None:
    """Even where the chance of the second and third organ is below anything that fp32 can hold beside the first."""
    lift = torch.tensor([[0.5, 2.0, 1.0, 0.1]])
    saliency = Saliency(share=lift / lift.sum(), lift=lift, presence=torch.ones(1, 4, dtype=torch.bool))
    config = OrganMaskConfig(temperature=0.01, explore=0.0, rate=0.5)
    generator, orders = stream(0), set()
    for _ in range(200):
        masks = draw_organ_masks(saliency, config, [generator])
        orders.add(tuple(masks[0].tolist()))
    by_lift = [
        (False, False, False, False),
        (False, True, False, False),
        (False, True, True, False),
        (True, True, True, False),
    ]
    assert orders == set(by_lift)
