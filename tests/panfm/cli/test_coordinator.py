"""The six commands as a person types them, from `init` to `status`: what is shown, what is asked, and what is refused."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from panfm.cli import coordinator_init
from panfm.cli.main import app
from panfm.cli.site_init import spaced
from panfm.coordinator.admitted import admitted_sites
from panfm.coordinator.flower import FlowerCommand, Node
from panfm.coordinator.settings import TASK_KEY
from panfm.enrolment.card import read_card
from panfm.errors import ConfigError, PanfmError
from panfm.signing import fingerprint, load_or_make_key, public_hex
from tests.panfm.coordinator.made_study import BUNDLE


def _panfm(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def _shown(done: Result, label: str) -> str:
    return next(line.removeprefix(label).strip() for line in done.stdout.splitlines() if line.startswith(label))


@dataclass(frozen=True)
class _Study:
    coordinator: Path
    site: Path

    @property
    def card(self) -> Path:
        return self.site / "site_card.json"

    @property
    def fingerprint(self) -> str:
        return fingerprint(read_card(self.card.read_bytes()).signing_key)

    @property
    def kit(self) -> Path:
        return self.coordinator / "kits" / "north.kit.json"

    def admit(self, *more: str | Path) -> Result:
        return _panfm("coordinator", "admit", self.card, "--folder", self.coordinator, *more)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Study:
    """As far as both have begun; what the bundle is, is not built here."""
    return _begun(tmp_path, monkeypatch)


def _begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> _Study:
    monkeypatch.setattr(coordinator_init, "own_bundle", lambda: BUNDLE)
    made = _Study(tmp_path / "coordinator", tmp_path / "north")
    begun = _panfm(
        "coordinator", "init", "--folder", made.coordinator, "--study", "pan", "--address", "localhost", *options
    )
    assert begun.exit_code == 0, begun.exception
    named = ("--site", "north", "--coordinator-key", _shown(begun, "public key"), "--organs", "brain,liver")
    assert _panfm("site", "init", "--folder", made.site, *named, "--no-passphrase").exit_code == 0
    return made


def test_init_shows_key_and_fingerprint_and_what_to_do_next(tmp_path: Path) -> None:
    words = (
        "coordinator",
        "init",
        "--folder",
        tmp_path / "c",
        "--study",
        "pan",
        "--address",
        "a.org",
        "--alias",
        "10.0.0.7",
    )
    done = _panfm(*words)
    assert done.exit_code == 0
    assert "study        pan at a.org:8443" in done.stdout
    assert _shown(done, "fingerprint") == spaced(fingerprint(_shown(done, "public key")))
    for said in ("tls/server.pem", "runs/coordinator.key", "What to do next", "deploy/guides/1_coordinator_init.md"):
        assert said in done.stdout
    again = _panfm(*words)
    assert "is complete; nothing was changed" in again.stdout
    assert _shown(again, "public key") == _shown(done, "public key")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--certificate", "x.pem"), "belong together"),
        (("--alias", "a b"), "expected a host name"),
        (("--health-port", "8443"), "three different ports"),
    ],
)
def test_init_that_cannot_be_is_one_clear_line_and_makes_nothing(
    tmp_path: Path, more: tuple[str, ...], reason: str
) -> None:
    done = _panfm("coordinator", "init", "--folder", tmp_path / "c", "--study", "pan", "--address", "a.org", *more)
    assert isinstance(done.exception, ConfigError)
    assert reason in str(done.exception)
    assert not (tmp_path / "c").exists()


def test_site_is_admitted_by_the_fingerprint_that_it_read_out(study: _Study) -> None:
    done = study.admit("--fingerprint", spaced(study.fingerprint).upper(), "--by", "anna")
    assert done.exit_code == 0, done.exception
    assert _shown(done, "site ") == "north"
    assert _shown(done, "organs") == "brain, liver"
    assert _shown(done, "fingerprint") == spaced(study.fingerprint)
    assert f"admitted north to pan; made {study.kit}" in done.stdout
    assert "The SuperLink is not up; it hears of this when it starts." in done.stdout
    (site,) = admitted_sites(study.coordinator)
    assert (site.site, site.by) == ("north", "anna")


@pytest.mark.parametrize(
    ("more", "reason"),
    [((), "nobody can be asked"), (("--fingerprint", "ab" * 16), "has another fingerprint than the site told")],
)
def test_nobody_is_admitted_unseen(study: _Study, more: tuple[str, ...], reason: str) -> None:
    done = study.admit(*more)
    assert isinstance(done.exception, ConfigError)
    assert reason in str(done.exception)
    assert admitted_sites(study.coordinator) == []
    assert not study.kit.exists()


@pytest.mark.parametrize("answer", ["y", "n"])
def test_person_at_a_terminal_is_asked_whether_the_fingerprint_agrees(study: _Study, answer: str) -> None:
    person, terminal = pty.openpty()
    no_bundle = f"import panfm.cli.coordinator_init as c; c.own_bundle = lambda: {BUNDLE!r}"
    program = f"{no_bundle}; from panfm.cli.main import main; main()"
    call = [sys.executable, "-c", program, "coordinator", "admit", str(study.card), "--folder", str(study.coordinator)]
    asked = subprocess.Popen(call, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    seen = b""
    while not seen.endswith(b"[y/N]: "):
        seen += os.read(person, 1024)
    assert spaced(study.fingerprint).encode() in seen
    os.write(person, answer.encode() + b"\n")
    status = asked.wait()
    os.close(person)
    assert (status == 0) == (answer == "y")
    assert [site.site for site in admitted_sites(study.coordinator)] == (["north"] if answer == "y" else [])


def test_known_key_needs_no_second_comparison(study: _Study) -> None:
    study.admit("--fingerprint", study.fingerprint)
    done = study.admit()
    assert done.exit_code == 0
    assert "signed with the key that was compared then" in done.stdout


def test_changed_card_is_refused_before_anybody_is_asked(study: _Study) -> None:
    study.card.write_bytes(study.card.read_bytes().replace(b"brain", b"heart"))
    done = study.admit("--fingerprint", "ab" * 16)
    assert isinstance(done.exception, PanfmError)
    assert "no site card as it was made" in str(done.exception)
    assert done.stdout == ""


def test_site_joins_with_its_kit_and_is_told_what_to_do_next(study: _Study) -> None:
    study.admit("--fingerprint", study.fingerprint)
    done = _panfm("site", "join", study.kit, "--folder", study.site, "--health-port", "19098")
    assert done.exit_code == 0, done.exception
    assert "north has joined pan at localhost:8443" in done.stdout
    assert _shown(done, "its code") == BUNDLE
    for said in ("a coordinator that policy.yaml names", "panfm site review", "panfm site preflight", "4_site_join.md"):
        assert said in done.stdout


def test_preflight_prints_a_line_each_and_ends_with_1_while_something_is_wrong(study: _Study) -> None:
    done = _panfm("site", "preflight", "--folder", study.site)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1].endswith("to mend before the service is started")
    assert "fail  scans" in done.stdout
    assert "ok    keys" in done.stdout


def test_preflight_of_a_site_that_is_ready_ends_with_0(study: _Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from panfm.site import preflight
    from panfm.site.preflight import Check, Verdict

    good = [Check(name="keys", verdict=Verdict.ok, says="x"), Check(name="disk", verdict=Verdict.warn, says="y")]
    monkeypatch.setattr(preflight, "preflight", lambda _folder, _now: good)
    done = _panfm("site", "preflight", "--folder", study.site)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "ready")


def test_revoked_site_is_told_to_the_superlink_at_once(study: _Study, monkeypatch: pytest.MonkeyPatch) -> None:
    turned_away: list[int] = []
    monkeypatch.setattr("panfm.coordinator.registration.is_up", lambda _folder: True)
    monkeypatch.setattr(FlowerCommand, "register", lambda _self, _key, _name: 7)
    nodes = [Node(node_id=7, status="online", online_at="", offline_at="")]
    monkeypatch.setattr(
        FlowerCommand, "nodes", lambda _self: nodes if admitted_sites(study.coordinator)[0].node else []
    )
    monkeypatch.setattr(FlowerCommand, "unregister", lambda _self, node: turned_away.append(node))
    assert "north is registered as node 7" in study.admit("--fingerprint", study.fingerprint).stdout
    monkeypatch.setattr(FlowerCommand, "nodes", lambda _self: nodes)
    done = _panfm("coordinator", "revoke", "north", "--reason", "stolen", "--folder", study.coordinator)
    assert done.exit_code == 0
    assert "revoked north" in done.stdout
    assert turned_away == [7]


@pytest.mark.parametrize(("options", "told"), [((), False), (("--mutual-tls",), True)])
def test_revoking_says_to_reload_the_proxy_where_it_looks_at_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], told: bool
) -> None:
    study = _begun(tmp_path, monkeypatch, *options)
    assert "systemctl reload panfm-proxy" not in study.admit("--fingerprint", study.fingerprint).stdout
    done = _panfm("coordinator", "revoke", "north", "--reason", "stolen", "--folder", study.coordinator)
    assert ("until the proxy reads that, it takes it: systemctl reload panfm-proxy" in done.stdout) is told


def test_admitting_a_card_with_another_tls_key_says_to_reload_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _begun(tmp_path, monkeypatch, "--mutual-tls")
    study.admit("--fingerprint", study.fingerprint)
    (study.site / "keys" / "tls.key").unlink()
    key = public_hex(load_or_make_key(study.coordinator / TASK_KEY))
    named = ("--site", "north", "--coordinator-key", key, "--organs", "brain,liver")
    assert _panfm("site", "init", "--folder", study.site, *named, "--no-passphrase").exit_code == 0
    assert "it takes it: systemctl reload panfm-proxy" in study.admit().stdout


def test_status_is_told_in_lines_and_as_json(study: _Study) -> None:
    study.admit("--fingerprint", study.fingerprint)
    lines = _panfm("coordinator", "status", "--folder", study.coordinator).stdout
    assert "study pan at localhost:8443; the SuperLink is down" in lines
    assert "north" in lines
    words = json.loads(_panfm("coordinator", "status", "--folder", study.coordinator, "--json").stdout)
    assert [site["site"] for site in words["sites"]] == ["north"]


def test_renewal_says_who_must_do_what(study: _Study) -> None:
    study.admit("--fingerprint", study.fingerprint)
    done = _panfm("coordinator", "renew", "--folder", study.coordinator, "--new-ca")
    assert "the proxy still shows the old one's certificate" in done.stdout
    assert f"made {study.kit} anew" in done.stdout
    assert "once every site has joined again" in done.stdout
    done = _panfm("coordinator", "renew", "--folder", study.coordinator)
    assert "have the proxy read it: systemctl reload panfm-proxy" in done.stdout
