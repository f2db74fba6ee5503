"""The plan of faults: a function of its seed, the site and the round, and of nothing else."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.config import FaultConfig, FaultKind
from panfm.reporting.record import RoundStarted
from simulation.faults import Fault, planned_fault, planned_faults

SITES = [f"site{number}" for number in range(40)]


def _plan(config: FaultConfig, rounds: int = 50) -> dict[tuple[str, int], Fault | None]:
    return {(site, number): planned_fault(config, site, number) for site in SITES for number in range(1, rounds + 1)}


def test_share_of_faults_is_the_rate_and_kinds_are_equally_likely() -> None:
    plans = [_plan(FaultConfig(rate=0.3, seed=seed)) for seed in range(5)]
    faults = [fault for plan in plans for fault in plan.values() if fault]
    assert len(faults) / 10_000 == pytest.approx(0.3, abs=0.0184)  # four standard deviations of 10,000 draws
    kinds = Counter(fault.kind for fault in faults)
    assert kinds.keys() == set(FaultKind)
    assert all(abs(count - len(faults) / 13) < 59 for count in kinds.values())  # likewise
    assert {fault.trained for fault in faults} == {False, True}


def test_nothing_or_everything_goes_wrong_at_the_ends() -> None:
    assert set(_plan(FaultConfig(rate=0.0)).values()) == {None}
    assert None not in set(_plan(FaultConfig(rate=1.0)).values())


def test_a_seed_is_a_plan() -> None:
    first, again, other = (_plan(FaultConfig(rate=0.5, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@given(kinds=st.permutations([FaultKind.drop, FaultKind.slow, FaultKind.sign_flip]))
def test_order_in_which_kinds_are_written_changes_nothing(kinds: list[FaultKind]) -> None:
    config = FaultConfig(rate=1.0, kinds=kinds)
    assert [planned_fault(config, "a", number) for number in range(1, 9)] == [
        planned_fault(FaultConfig(rate=1.0, kinds=sorted(kinds, key=lambda kind: kind.name)), "a", number)
        for number in range(1, 9)
    ]


def test_only_named_sites_and_kinds() -> None:
    config = FaultConfig(rate=1.0, kinds=[FaultKind.replay], sites=["site3"])
    assert {site for (site, _), fault in _plan(config).items() if fault} == {"site3"}
    assert {fault.kind for fault in _plan(config).values() if fault} == {FaultKind.replay}
    everywhere = FaultConfig(rate=1.0, kinds=[FaultKind.replay])
    assert planned_fault(everywhere, "site3", 5) == planned_fault(config, "site3", 5)


def test_what_was_planned_is_told_from_the_record_alone() -> None:
    config = FaultConfig(rate=1.0, kinds=[FaultKind.drop], sites=["a", "b"], seed=4)
    asked = [RoundStarted(round=1, sites=["b", "a", "c"]), RoundStarted(round=2, sites=["a"])]
    told = planned_faults(config, [*asked, asked[1]])  # a round that was begun again
    assert told.seed == 4
    assert [(fault["round"], fault["site"], fault["kind"]) for fault in told.faults] == [
        (1, "a", "drop"),
        (1, "b", "drop"),
        (2, "a", "drop"),
    ]
