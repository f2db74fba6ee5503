"""An approval is of one exact file, by a person, under the site's signature; and nothing else lets a bundle run."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm.errors import DataError
from panfm.signing import public_hex
from panfm.site.approvals import APPROVALS, Approval, approvals, approve, approved_bundle, is_approved
from panfm.site.bundles import Bundle, read_bundle
from tests.panfm.site.made_bundles import GOOD, bundled

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def bundle() -> Bundle:
    return read_bundle(bundled(GOOD))


def test_approved_bundle_is_approved_and_no_other(tmp_path: Path, key: Ed25519PrivateKey, bundle: Bundle) -> None:
    public = public_hex(key)
    assert not is_approved(tmp_path, bundle.digest, (), public)

    given = approve(tmp_path, bundle, by="Ada", at=NOON.astimezone(timezone(timedelta(hours=5))), key=key)

    assert (given.bundle, given.by, given.at) == (bundle.digest, "Ada", "2026-03-01T12:00:00.000000+00:00")
    assert is_approved(tmp_path, bundle.digest, (), public)
    other = bundle.digest[:8] + "0" * 56
    assert not is_approved(tmp_path, other, (), public)
    assert is_approved(tmp_path, other, (other,), public)
    assert approvals(tmp_path, public) == [given]
    assert approved_bundle(tmp_path, given).content == bundle.content


def test_what_is_no_digest_is_never_approved(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    for word in ("", "../x", "A" * 64, "0" * 63):
        assert not is_approved(tmp_path, word, (word,), public_hex(key))


@pytest.mark.parametrize("field", list(asdict(Approval(bundle="", by="", at=""))))
def test_edited_approval_does_not_count(tmp_path: Path, key: Ed25519PrivateKey, bundle: Bundle, field: str) -> None:
    given = approve(tmp_path, bundle, by="Ada", at=NOON, key=key)
    value = getattr(given, field)
    changed = replace(given, **{field: value[:-1] + ("1" if value[-1] == "0" else "0")})
    (tmp_path / APPROVALS / bundle.digest / "approval.json").write_text(json.dumps(asdict(changed)))
    assert not is_approved(tmp_path, bundle.digest, (), public_hex(key))
    assert approvals(tmp_path, public_hex(key)) == []


def test_approval_of_another_key_or_of_none_does_not_count(
    tmp_path: Path, key: Ed25519PrivateKey, bundle: Bundle
) -> None:
    approve(tmp_path, bundle, by="Eve", at=NOON, key=Ed25519PrivateKey.generate())
    assert not is_approved(tmp_path, bundle.digest, (), public_hex(key))
    assert not is_approved(tmp_path, bundle.digest, (), "")


def test_approval_moved_to_another_bundle_does_not_count(
    tmp_path: Path, key: Ed25519PrivateKey, bundle: Bundle
) -> None:
    approve(tmp_path, bundle, by="Ada", at=NOON, key=key)
    other = "0" * 64
    (tmp_path / APPROVALS / bundle.digest).rename(tmp_path / APPROVALS / other)
    assert not is_approved(tmp_path, other, (), public_hex(key))


@pytest.mark.parametrize("text", ["", "[]", '{"bundle": 1, "by": 2, "at": 3, "signature": 4}', '{"more": 1}', "\x00"])
def test_damaged_record_is_an_error_and_no_approval(
    tmp_path: Path, key: Ed25519PrivateKey, bundle: Bundle, text: str
) -> None:
    approve(tmp_path, bundle, by="Ada", at=NOON, key=key)
    (tmp_path / APPROVALS / bundle.digest / "approval.json").write_text(text)
    with pytest.raises(DataError, match="is damaged; remove its folder"):
        is_approved(tmp_path, bundle.digest, (), public_hex(key))


def test_kept_bundle_that_was_changed_is_not_compared_with(
    tmp_path: Path, key: Ed25519PrivateKey, bundle: Bundle
) -> None:
    given = approve(tmp_path, bundle, by="Ada", at=NOON, key=key)
    kept = tmp_path / APPROVALS / bundle.digest / "bundle.fab"
    for content in (b"", bundled({**GOOD, "client/more.py": b""})):
        kept.write_bytes(content)
        with pytest.raises(DataError, match="is damaged"):
            approved_bundle(tmp_path, given)


def test_removing_the_folder_withdraws_and_the_last_approval_comes_last(
    tmp_path: Path, key: Ed25519PrivateKey, bundle: Bundle
) -> None:
    newer = read_bundle(bundled({**GOOD, "client/more.py": b""}))
    approve(tmp_path, newer, by="Ada", at=NOON + timedelta(days=1), key=key)
    approve(tmp_path, bundle, by="Ada", at=NOON, key=key)
    assert [given.bundle for given in approvals(tmp_path, public_hex(key))] == [bundle.digest, newer.digest]
    for path in (tmp_path / APPROVALS / newer.digest).iterdir():
        path.unlink()
    (tmp_path / APPROVALS / newer.digest).rmdir()
    assert not is_approved(tmp_path, newer.digest, (), public_hex(key))


def test_crash_while_approving_approves_nothing(
    tmp_path: Path, key: Ed25519PrivateKey, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        approve(tmp_path, bundle, by="Ada", at=NOON, key=key)
    assert not is_approved(tmp_path, bundle.digest, (), public_hex(key))
