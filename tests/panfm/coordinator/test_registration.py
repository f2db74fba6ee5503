"""The SuperLink's list follows the coordinator's, through crashes, lost databases and hands that register by themselves."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panfm.coordinator.admitted import AdmittedSite, admitted_sites, revoke
from panfm.coordinator.flower import PROGRAMS, FlowerCommand, Node
from panfm.coordinator.registration import Registrar, is_up, reconcile
from panfm.coordinator.settings import DATABASE, FLOWER_HOME, LOOPBACK, LOOPBACK_CA, LOOPBACK_KEY, SECRET, read_settings
from panfm.errors import RunError
from tests.panfm.coordinator.made_study import (
    NOW,
    SETTINGS,
    PretendSuperLink,
    admitted,
    made_coordinator,
    made_site,
    made_study,
)

LATER = NOW + timedelta(days=1)


def _site(coordinator: Path) -> AdmittedSite:
    (site,) = admitted_sites(coordinator)
    return site


def test_admitted_site_is_registered_under_its_name_and_once(tmp_path: Path) -> None:
    study, superlink = made_study(tmp_path), PretendSuperLink()
    assert reconcile(study.coordinator, superlink) == ["north is registered as node 1000"]
    assert reconcile(study.coordinator, superlink) == []
    assert (_site(study.coordinator).node, superlink.let_in) == ("1000", {"north": 1000})
    assert list(superlink.keys) == [study.card.node_key]


def test_revoked_site_is_turned_away_also_when_the_superlink_was_down(tmp_path: Path) -> None:
    study, superlink = made_study(tmp_path), PretendSuperLink()
    reconcile(study.coordinator, superlink)
    superlink.is_down = True
    revoke(study.coordinator, "north", reason="left", at=LATER)
    with pytest.raises(RunError, match="did not answer"):
        reconcile(study.coordinator, superlink)
    superlink.is_down = False
    assert reconcile(study.coordinator, superlink) == ["node 1000 is turned away: no admitted site has it"]
    assert superlink.let_in == {}


def test_new_node_key_turns_the_old_node_away(tmp_path: Path) -> None:
    study, superlink = made_study(tmp_path), PretendSuperLink()
    reconcile(study.coordinator, superlink)
    (study.site / "keys" / "node.key").unlink()
    admitted(study.coordinator, made_site(study.site, "north", study.public_key, now=LATER), LATER)
    assert reconcile(study.coordinator, superlink) == [
        "node 1000 is turned away: no admitted site has it",
        "north is registered as node 1001",
    ]
    assert superlink.let_in == {"north": 1001}


def test_node_that_somebody_registered_by_hand_is_turned_away(tmp_path: Path) -> None:
    study, superlink = made_study(tmp_path), PretendSuperLink()
    reconcile(study.coordinator, superlink)
    (tmp_path / "stray.pub").write_text("ecdsa-sha2-nistp384 AAAA stray")
    superlink.register(tmp_path / "stray.pub", "north")
    assert reconcile(study.coordinator, superlink) == ["node 1001 is turned away: no admitted site has it"]
    assert _site(study.coordinator).node == "1000"


def test_superlink_that_forgot_everything_is_told_again(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    reconcile(study.coordinator, PretendSuperLink())
    fresh = PretendSuperLink()
    fresh.listed[77] = Node(node_id=77, status="unregistered", online_at="N/A", offline_at="N/A")
    assert reconcile(study.coordinator, fresh) == ["north is registered as node 1000"]


class _Killed(BaseException):
    """Not to be caught by what is tested."""


@pytest.mark.parametrize("after", [True, False])
def test_crash_around_a_registration_loses_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    """A key is registered once in its life: to lose the number that it got would cost the site its key."""
    study, superlink = made_study(tmp_path), PretendSuperLink()
    register = superlink.register

    def killed(key: Path, name: str) -> int:
        if after:
            register(key, name)
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(superlink, "register", killed)
        with pytest.raises(_Killed):
            reconcile(study.coordinator, superlink)
    assert _site(study.coordinator).registering
    done = reconcile(study.coordinator, superlink)
    assert done == ([] if after else ["north is registered as node 1000"])
    assert (_site(study.coordinator).node, _site(study.coordinator).registering) == ("1000", False)
    assert superlink.let_in == {"north": 1000}


def test_key_that_the_superlink_refuses_is_told_with_what_to_do(tmp_path: Path) -> None:
    study, superlink = made_study(tmp_path), PretendSuperLink()
    superlink.keys[study.card.node_key] = 5
    (line,) = reconcile(study.coordinator, superlink)
    assert "north could not be registered" in line
    assert "3_coordinator_admit.md" in line
    assert superlink.let_in == {}


def test_registrar_asks_only_when_something_changed_or_a_minute_went_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    study, superlink = made_study(tmp_path), PretendSuperLink()
    registrar = Registrar(study.coordinator, superlink)
    assert registrar.look() == ["north is registered as node 1000"]
    asked = len(superlink.asked)
    assert registrar.look() == []
    assert len(superlink.asked) == asked
    revoke(study.coordinator, "north", reason="left", at=LATER)
    assert registrar.look() == ["node 1000 is turned away: no admitted site has it"]
    asked, now = len(superlink.asked), 61.0
    assert registrar.look() == []
    assert superlink.asked[asked:] == ["list"]


def test_registrar_tries_again_after_a_superlink_that_did_not_answer(tmp_path: Path) -> None:
    study, superlink = made_study(tmp_path), PretendSuperLink(is_down=True)
    registrar = Registrar(study.coordinator, superlink)
    with pytest.raises(RunError):
        registrar.look()
    superlink.is_down = False
    assert registrar.look() == ["north is registered as node 1000"]


@settings(max_examples=12)  # each makes two folders, every file flushed to disk
@given(steps=st.lists(st.sampled_from(["admit", "revoke", "new key", "reconcile", "stray", "forget"]), max_size=8))
def test_whatever_happened_only_who_is_admitted_is_let_in(
    tmp_path_factory: pytest.TempPathFactory, steps: Sequence[str]
) -> None:
    folder = tmp_path_factory.mktemp("study")
    study, superlink = made_study(folder), PretendSuperLink()
    card, key = study.card, study.public_key
    for number, step in enumerate(steps):
        at = NOW + timedelta(hours=number)
        known = admitted_sites(study.coordinator)
        if step == "admit" and not (known and card.node_key in known[0].retired):
            admitted(study.coordinator, card, at)
        elif step == "revoke" and known and not known[0].is_revoked:
            revoke(study.coordinator, "north", reason="x", at=at)
        elif step == "new key":
            (study.site / "keys" / "node.key").unlink()
            card = made_site(study.site, "north", key, now=at)
        elif step == "reconcile":
            reconcile(study.coordinator, superlink)
        elif step == "stray":
            (folder / "stray.pub").write_text(f"ecdsa-sha2-nistp384 {number}")
            superlink.register(folder / "stray.pub", "north")
        elif step == "forget":
            superlink = PretendSuperLink()
    reconcile(study.coordinator, superlink)
    known = admitted_sites(study.coordinator)
    wanted = {site.card.node_key for site in known if not site.is_revoked}
    numbers = {superlink.keys[node_key] for node_key in wanted}
    assert set(superlink.let_in.values()) == numbers


def test_superlink_is_knocked_for_before_a_program_is_started(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        made_coordinator(tmp_path, replace(SETTINGS, superlink_port=port))
        assert not is_up(tmp_path)
        server.listen()
        assert is_up(tmp_path)


@contextlib.contextmanager
def _real_superlink(coordinator: Path) -> Iterator[None]:
    """Flower's own program over the coordinator's certificates and database; ended by its own process id."""
    settings = read_settings(coordinator)
    flags = ["--host", "127.0.0.1", "--port", str(settings.superlink_port), "--enable-supernode-auth"]
    flags += ["--ssl-ca-certfile", str(coordinator / LOOPBACK_CA), "--ssl-certfile", str(coordinator / LOOPBACK)]
    flags += ["--ssl-keyfile", str(coordinator / LOOPBACK_KEY), "--database", str(coordinator / DATABASE)]
    flags += ["--isolation", "process", "--superexec-auth-secret-file", str(coordinator / SECRET)]
    flower = FlowerCommand(coordinator / FLOWER_HOME)
    with (coordinator / "superlink.log").open("wb") as log:
        command = [str(PROGRAMS / "flower-superlink"), *flags, "--disable-runtime-dependency-installation"]
        process = subprocess.Popen(command, env=flower.environment(), stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 180
            while not is_up(coordinator) and time.monotonic() < deadline:
                time.sleep(0.5)
            yield
        finally:
            process.kill()
            process.wait(30)


@pytest.mark.slow
def test_flowers_own_superlink_lets_in_who_is_admitted_and_takes_no_key_twice(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    study = made_study(tmp_path, replace(SETTINGS, superlink_port=port), datetime.now(UTC))
    coordinator, flower = study.coordinator, FlowerCommand(study.coordinator / FLOWER_HOME)
    with _real_superlink(coordinator):
        (line,) = reconcile(coordinator, flower)
        node = int(_site(coordinator).node)
        assert line == f"north is registered as node {node}"
        assert [(one.node_id, one.status) for one in flower.nodes()] == [(node, "registered")]
    with _real_superlink(coordinator):  # killed, and begun again over its database
        assert reconcile(coordinator, flower) == []
        revoke(coordinator, "north", reason="left", at=LATER)
        assert reconcile(coordinator, flower) == [f"node {node} is turned away: no admitted site has it"]
        assert [one.status for one in flower.nodes()] == ["unregistered"]
        (tmp_path / "node.pub").write_text(f"{study.card.node_key}\n")
        with pytest.raises(RunError):
            flower.register(tmp_path / "node.pub", "north")
