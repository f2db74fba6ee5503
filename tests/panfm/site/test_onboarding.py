"""How a site begins: once, completely, and never over what is there."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import panfm
from panfm.enrolment.card import read_card
from panfm.enrolment.certificates import public_key_pem
from panfm.errors import AuditError, ConfigError
from panfm.site import identity as identity_module
from panfm.site import onboarding
from panfm.site.audit_log import AuditLog, inspect_folder
from panfm.site.identity import SiteIdentity, has_identity, write_identity
from panfm.site.onboarding import begin_identity, begin_site
from panfm.site.policy import Policy
from panfm.site.policy_file import read_policy
from panfm.site.policy_template import closed_policy

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NODE_AND_CARD = ("keys/node.key", "keys/tls.key", "site_card.json")
POLICY = closed_policy("north", ("ab" * 32,), ("brain", "liver"))


def _no_passphrase() -> None:
    return None


def _begin(folder: Path, policy: Policy = POLICY, now: datetime = NOW) -> onboarding.Begun:
    return begin_site(folder, policy, now, _no_passphrase)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_site_has_policy_key_and_a_log_that_begins_with_them(tmp_path: Path) -> None:
    begun = _begin(tmp_path / "new" / "site")
    folder = tmp_path / "new" / "site"
    assert begun.made == ("policy.yaml", "keys/signing.key", "state/audit.log", *NODE_AND_CARD)
    assert read_policy(folder) == POLICY
    assert SiteIdentity.open(folder).public_key == begun.public_key
    found = inspect_folder(folder, begun.public_key)
    assert found.fault is None
    (opened,) = found.entries
    assert (opened.event, opened.about["site"], opened.about["public_key"]) == ("log_opened", "north", begun.public_key)


def test_beginning_again_changes_nothing(tmp_path: Path) -> None:
    first = _begin(tmp_path)
    before = _content(tmp_path)

    def asked() -> str:
        pytest.fail("asked for a passphrase that is not needed")

    again = begin_site(tmp_path, POLICY, NOW + timedelta(days=1), asked, asked)
    assert (again.public_key, again.made) == (first.public_key, ())
    assert _content(tmp_path) == before


def test_policy_that_a_person_filled_in_is_kept(tmp_path: Path) -> None:
    _begin(tmp_path)
    path = tmp_path / "policy.yaml"
    path.write_text(path.read_text().replace("public: []", "public: [updates]"))
    before = path.read_text()
    _begin(tmp_path)
    assert path.read_text() == before


def test_prepared_scans_may_be_there_before(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "scans.csv").write_text("x")
    _begin(tmp_path)
    assert (tmp_path / "store" / "scans.csv").read_text() == "x"


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        (closed_policy("south", ("ab" * 32,), ("brain", "liver")), "site"),
        (closed_policy("north", ("cd" * 32,), ("brain", "liver")), "coordinator_keys"),
        (closed_policy("north", ("ab" * 32,), ("brain",)), "organs"),
    ],
)
def test_another_sites_folder_is_refused(tmp_path: Path, policy: Policy, name: str) -> None:
    _begin(tmp_path)
    before = _content(tmp_path)
    with pytest.raises(ConfigError, match=f"has another {name}"):
        _begin(tmp_path, policy)
    assert _content(tmp_path) == before


def test_what_was_interrupted_is_completed(tmp_path: Path) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin_site(tmp_path / "site", POLICY, NOW, interrupted)
    assert not (tmp_path / "site").exists()
    assert _begin(tmp_path / "site").made == ("policy.yaml", "keys/signing.key", "state/audit.log", *NODE_AND_CARD)


def test_failed_key_leaves_no_log_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(onboarding, "write_identity", full)
        with pytest.raises(ConfigError, match="No space left on device"):
            _begin(tmp_path)
    assert set(_content(tmp_path)) == {"policy.yaml"}
    assert _begin(tmp_path).made == ("keys/signing.key", "state/audit.log", *NODE_AND_CARD)


def test_lost_log_is_not_begun_anew_under_the_same_key(tmp_path: Path) -> None:
    _begin(tmp_path)
    for name in ("audit.log", "audit.anchor"):
        (tmp_path / "state" / name).unlink()
    with pytest.raises(AuditError, match=r"no audit log; restore state/audit\.log .* move keys/ elsewhere"):
        _begin(tmp_path)
    (tmp_path / "keys").rename(tmp_path / "old-keys")
    assert _begin(tmp_path).made == ("keys/signing.key", "state/audit.log", *NODE_AND_CARD)


def test_lost_key_does_not_take_over_a_log(tmp_path: Path) -> None:
    _begin(tmp_path)
    (tmp_path / "keys").rename(tmp_path / "lost")
    before = _content(tmp_path)
    with pytest.raises(AuditError, match="whose key is gone; restore keys/"):
        _begin(tmp_path)
    assert _content(tmp_path) == before


def test_short_passphrase_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 12"):
        begin_identity(tmp_path, "north", "short")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        _begin(tmp_path / "file" / "site")


def test_second_identity_is_refused(tmp_path: Path) -> None:
    first = begin_identity(tmp_path, "north")
    with pytest.raises(ConfigError, match="has an identity already"):
        begin_identity(tmp_path, "north")
    with pytest.raises(ConfigError, match="exists already"):
        write_identity(tmp_path, first, None)
    assert has_identity(tmp_path)
    assert AuditLog.open(tmp_path, first.signing_key).head().length == 1


def test_card_says_what_the_folder_holds(tmp_path: Path) -> None:
    begun = _begin(tmp_path)
    card = read_card((tmp_path / "site_card.json").read_bytes())
    assert (card.site, card.organs, card.signing_key) == ("north", ("brain", "liver"), begun.public_key)
    assert card.node_key == (tmp_path / "keys" / "node.pub").read_text().strip()
    assert public_key_pem(card.tls_request.encode()) == public_key_pem((tmp_path / "keys" / "tls.key").read_bytes())
    assert (card.panfm_version, card.made_at) == (panfm.__version__, "2026-11-22T12:00:00+00:00")
    for name in ("signing.key", "node.key", "tls.key"):
        assert (tmp_path / "keys" / name).stat().st_mode & 0o777 == 0o600


def test_site_of_an_earlier_release_gets_what_it_lacks(tmp_path: Path) -> None:
    first = _begin(tmp_path)
    kept = (tmp_path / "keys" / "signing.key").read_bytes()
    for name in ("keys/node.key", "keys/node.pub", "keys/tls.key", "site_card.json"):
        (tmp_path / name).unlink()
    again = _begin(tmp_path)
    assert (again.public_key, again.made) == (first.public_key, NODE_AND_CARD)
    assert (tmp_path / "keys" / "signing.key").read_bytes() == kept


@pytest.mark.parametrize("lost", ["keys/node.key", "keys/tls.key"])
def test_new_key_makes_a_new_card(tmp_path: Path, lost: str) -> None:
    _begin(tmp_path)
    before = read_card((tmp_path / "site_card.json").read_bytes())
    (tmp_path / lost).unlink()
    assert _begin(tmp_path, now=NOW + timedelta(days=1)).made == (lost, "site_card.json")
    after = read_card((tmp_path / "site_card.json").read_bytes())
    assert (after.node_key != before.node_key, after.tls_request != before.tls_request) == (
        lost == "keys/node.key",
        True,  # its signature holds a random number, so a request is never made twice alike
    )
    assert after.made_at > before.made_at
    assert (tmp_path / "keys" / "node.pub").read_text().strip() == after.node_key


def test_other_organs_or_a_damaged_card_make_a_new_one(tmp_path: Path) -> None:
    _begin(tmp_path)
    path = tmp_path / "policy.yaml"
    path.write_text(path.read_text().replace("organs: [brain, liver]", "organs: [brain]"))
    assert _begin(tmp_path, replace(POLICY, organs=("brain",))).made == ("site_card.json",)
    card = (tmp_path / "site_card.json").read_bytes()
    assert read_card(card).organs == ("brain",)
    (tmp_path / "site_card.json").write_bytes(card.replace(b"brain", b"heart"))
    assert _begin(tmp_path, replace(POLICY, organs=("brain",))).made == ("site_card.json",)
    assert read_card((tmp_path / "site_card.json").read_bytes()).organs == ("brain",)


def test_new_card_asks_for_the_passphrase_of_the_key_that_signs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_module, "_COST", 2**8)
    monkeypatch.delenv("PANFM_PASSPHRASE_FILE", raising=False)
    secret = "correct horse battery"
    begin_site(tmp_path, POLICY, NOW, lambda: secret)
    (tmp_path / "site_card.json").unlink()
    with pytest.raises(ConfigError, match="under a passphrase"):
        begin_site(tmp_path, POLICY, NOW, _no_passphrase)
    assert begin_site(tmp_path, POLICY, NOW, _no_passphrase, lambda: secret).made == ("site_card.json",)
