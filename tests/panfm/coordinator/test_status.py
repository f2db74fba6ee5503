"""How a study stands: what people are told is what files and SuperLink say, and nothing that ends soon is passed over."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from panfm.coordinator.admitted import revoke
from panfm.coordinator.flower import Node
from panfm.coordinator.registration import reconcile
from panfm.coordinator.status import CoordinatorStatus, as_json, coordinator_status, lines_of, warnings_of
from panfm.errors import ConfigError
from panfm.lock import held
from panfm.reporting.record import Event, RoundFinished, RunFinished, RunStarted, SiteJoined, to_line
from tests.panfm.coordinator.made_study import NOW, SETTINGS, PretendSuperLink, admitted, made_site, made_study

MUTUAL = replace(SETTINGS, mutual_tls=True)


def _started(rounds: int = 3) -> RunStarted:
    return RunStarted(
        run="r",
        recipe="organs: {brain: {}, liver: {}}",
        seed=0,
        rounds=rounds,
        panfm_version="0.1.0",
        torch_version="2.13.0",
        flower_version="1.41.0",
        group_parameters={},
    )


def _finished_round(number: int, **coverage: int) -> RoundFinished:
    return RoundFinished(
        round=number, seconds=1.0, weights={}, unchanged_groups={}, delta_norm={}, model_digest="", coverage=coverage
    )


def _recorded(coordinator: Path, run: str, *events: Event, at: datetime = NOW) -> Path:
    folder = coordinator / "runs" / run
    folder.mkdir()
    lines = [to_line(event, at + timedelta(seconds=place)) for place, event in enumerate(events)]
    (folder / "record.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def _node(status: str, online: str = "N/A", offline: str = "N/A", number: int = 1000) -> Node:
    return Node(node_id=number, status=status, online_at=online, offline_at=offline)


def _status(coordinator: Path, *nodes: Node, now: datetime = NOW) -> CoordinatorStatus:
    return coordinator_status(coordinator, nodes, now)


def test_new_study_says_what_comes_next(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    found = coordinator_status(study.coordinator, None, NOW)
    text = "\n".join(lines_of(found))
    assert "study pan at localhost:8443; the SuperLink is down" in text
    assert "runs: none yet (panfm coordinator run)" in text
    assert "organs offered: brain by north; liver by north" in text
    assert "no certificate ends within 30 days" in text
    (site,) = found.sites
    assert (site.state, site.last_seen, site.panfm_version, site.last_run) == ("unknown", "", "0.1.0", "")


@pytest.mark.parametrize(
    ("nodes", "state", "seen"),
    [
        ((), "not registered", "never"),
        ((_node("registered"),), "registered", "never"),
        ((_node("online", online="2026-11-22 11:00:00Z"),), "online", "now"),
        (
            (_node("offline", online="2026-11-22 11:00:00Z", offline="2026-11-22 11:30:00Z"),),
            "offline",
            "2026-11-22 11:30:00Z",
        ),
        ((_node("unregistered"),), "not registered", "never"),
        ((_node("online", number=7),), "not registered", "never"),
    ],
)
def test_site_is_as_the_superlink_has_its_node(tmp_path: Path, nodes: tuple[Node, ...], state: str, seen: str) -> None:
    study = made_study(tmp_path)
    reconcile(study.coordinator, PretendSuperLink())
    (site,) = _status(study.coordinator, *nodes).sites
    assert site.state == state
    if state != "not registered":
        assert site.last_seen == seen


def test_site_tells_what_it_told_when_it_last_joined(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    old = SiteJoined(site="north", organs=["brain", "liver"], panfm_version="0.0.9", device="cpu")
    new = SiteJoined(site="north", organs=["brain"], panfm_version="0.1.1", torch_version="2.13.0", device="cuda")
    _recorded(study.coordinator, "b-first", _started(), old)
    _recorded(study.coordinator, "a-second", _started(), new, at=NOW + timedelta(hours=1))
    found = _status(study.coordinator)
    (site,) = found.sites
    assert (site.organs, site.panfm_version, site.last_run) == (("brain",), "0.1.1", "a-second")
    assert found.offered == {"brain": ("north",)}
    assert "panfm 0.1.1, torch 2.13.0, trains on cuda; last joined a-second" in "\n".join(lines_of(found))


def test_run_is_told_with_its_rounds_and_its_coverage(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    rounds = (_finished_round(1, brain=1, liver=0), _finished_round(2, brain=2, liver=1))
    end = RunFinished(status="incomplete", reason="liver was not covered", rounds_done=2, seconds=2.0)
    _recorded(study.coordinator, "ended", _started(), *rounds, end)
    going = _recorded(study.coordinator, "going", _started(), rounds[0])
    (study.coordinator / "runs" / "asked").mkdir()
    (study.coordinator / "runs" / "asked" / "wanted.yaml").write_text("")
    with held(going / "run.lock"):
        asked, ended, running = _status(study.coordinator).runs
    assert (asked.run, asked.state, asked.rounds_done) == ("asked", "waiting", 0)
    assert (ended.state, ended.rounds_done, ended.rounds, ended.coverage) == (
        "incomplete",
        2,
        3,
        {"brain": 2, "liver": 1},
    )
    assert (running.run, running.state, running.rounds_done) == ("going", "running", 1)
    assert _status(study.coordinator).runs[2].state == "waiting", "nobody works on it any more"
    text = "\n".join(lines_of(_status(study.coordinator)))
    assert "incomplete  round 2 of 3; covered by sites: brain 2, liver 1" in text
    assert "liver was not covered" in text


def test_revoked_site_stays_on_the_list_and_offers_nothing(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    admitted(study.coordinator, made_site(tmp_path / "south", "south", study.public_key))
    revoke(study.coordinator, "north", reason="machine stolen", at=NOW)
    found = _status(study.coordinator)
    assert [site.state for site in found.sites] == ["revoked", "not registered"]
    assert found.offered == {"brain": ("south",), "liver": ("south",)}
    assert "revoked: 2026-11-22T12:00:00+00:00 machine stolen" in "\n".join(lines_of(found))


def test_certificates_that_end_soon_are_warned_of_with_what_to_do(tmp_path: Path) -> None:
    study = made_study(tmp_path, MUTUAL)
    assert warnings_of(_status(study.coordinator, now=NOW + timedelta(days=360))) == []
    soon = warnings_of(_status(study.coordinator, now=NOW + timedelta(days=380)))
    assert len(soon) == 2
    assert soon[0].startswith(
        "the proxy's certificate ends in 16 days (2027-12-24T11:50:00+00:00): panfm coordinator renew"
    )
    assert soon[1].startswith("the certificate of north ends in 16 days")
    assert "admit north again" in soon[1]
    late = warnings_of(_status(study.coordinator, now=NOW + timedelta(days=400)))
    assert [line.split(" (")[0] for line in late] == [
        "the proxy's certificate ran out",
        "the certificate of north ran out",
    ]
    revoke(study.coordinator, "north", reason="left", at=NOW)
    assert len(warnings_of(_status(study.coordinator, now=NOW + timedelta(days=380)))) == 1


def test_status_is_json_for_other_programs(tmp_path: Path) -> None:
    study = made_study(tmp_path, MUTUAL)
    words = json.loads(json.dumps(as_json(_status(study.coordinator, now=datetime.now(UTC)))))
    assert words["sites"][0]["site"] == "north"
    assert words["sites"][0]["certificate"]["name"] == "the certificate of north"
    assert words["superlink"] == "up"


def test_folder_of_no_coordinator_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="panfm coordinator init"):
        coordinator_status(tmp_path, None, NOW)
