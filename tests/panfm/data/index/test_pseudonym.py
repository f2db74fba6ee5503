"""The same person, the same pseudonym; without the key nobody can tell whose; and the key does not travel."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import stat
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.data.index.pseudonym import KEY_FILE, SPLITS, PseudonymKey, check_shares, site_key
from panfm.errors import ConfigError, DataError

KEY = PseudonymKey(bytes(range(32)))


def test_pseudonym_is_the_truncated_hmac_of_its_parts() -> None:
    message = b"".join(len(part).to_bytes(4, "big") + part for part in (b"panfm", b"subject", b"Meier, Anna"))
    digest = hmac.new(bytes(range(32)), message, hashlib.sha256).digest()
    assert KEY.subject("Meier, Anna") == "s-" + base64.b32encode(digest).decode().lower()[:16]


@given(people=st.sets(st.text(min_size=1), min_size=2, max_size=50))
def test_two_people_never_share_one(people: set[str]) -> None:
    distinct = {unicodedata.normalize("NFC", person) for person in people}
    pseudonyms = {KEY.subject(person) for person in people}
    assert len(pseudonyms) == len(distinct)
    assert all(re.fullmatch(r"s-[a-z2-7]{16}", pseudonym) for pseudonym in pseudonyms)


@given(person=st.text(), other=st.text(), visit=st.text(min_size=1))
def test_visits_and_subjects_are_different_words(person: str, other: str, visit: str) -> None:
    assert KEY.visit(person, "") == ""
    assert KEY.visit(person, visit)[2:] != KEY.subject(person)[2:10]
    if person != other:
        assert KEY.visit(person + "a", visit) != KEY.visit(person, "a" + visit), "parts do not run into each other"


def test_another_key_another_pseudonym() -> None:
    other = PseudonymKey(bytes(32))
    assert other.subject("a") != KEY.subject("a")
    assert other.fingerprint != KEY.fingerprint
    assert KEY.secret.hex() not in f"{KEY!r} {KEY.fingerprint}"
    assert "secret" not in repr(KEY)


def test_shares_are_kept_and_growing_moves_nobody_out() -> None:
    people = [f"p{number}" for number in range(4000)]
    small = {person: KEY.split(person, {"pretrain": 0.6, "test": 0.4}) for person in people}
    large = {person: KEY.split(person, {"pretrain": 0.8, "test": 0.2}) for person in people}
    # 4,000 draws: one standard deviation is 0.008 of the share.
    assert abs(list(small.values()).count("pretrain") / 4000 - 0.6) < 0.03
    assert all(large[person] == "pretrain" for person, split in small.items() if split == "pretrain")
    assert {KEY.split(person, {"probe": 1.0}) for person in people} == {"probe"}


@pytest.mark.parametrize("shares", [{"pretrain": 0.5}, {"pretrain": 1.2, "test": -0.2}, {"train": 1.0}, {}])
def test_shares_that_cannot_be(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="split"):
        check_shares(shares)
    assert check_shares(dict.fromkeys(SPLITS, 0.25))


def test_the_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / KEY_FILE
    made = site_key(path, kept_out_of=(tmp_path / "tables",))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert site_key(path, kept_out_of=()) == made
    assert site_key(tmp_path / "other.key", kept_out_of=()) != made


def test_a_key_that_others_can_read_or_copy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="should lie outside"):
        site_key(tmp_path / "tables" / KEY_FILE, kept_out_of=(tmp_path / "tables",))
    assert not (tmp_path / "tables").exists()
    path = tmp_path / KEY_FILE
    site_key(path, kept_out_of=())
    path.chmod(0o640)
    with pytest.raises(DataError, match="chmod 600"):
        site_key(path, kept_out_of=())
    path.chmod(0o600)
    path.write_text("00ff")
    with pytest.raises(DataError, match="holds no key"):
        site_key(path, kept_out_of=())
