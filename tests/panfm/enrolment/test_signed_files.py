"""Cards and kits: not a byte may differ from what was signed, and nothing odd gets through because somebody signed it himself."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from panfm.enrolment.card import SiteCard, read_card
from panfm.enrolment.certificates import issue_client, make_authority, new_tls_key, request_for
from panfm.enrolment.kit import SiteKit, read_kit
from panfm.enrolment.node_key import new_node_key, public_node_key
from panfm.enrolment.signed_file import FORMAT, MAX_BYTES, SignedFile, signed, to_bytes
from panfm.errors import ProtocolError
from panfm.signing import public_hex, sign

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SITE_KEY, COORDINATOR_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
AUTHORITY = make_authority("panfm pan", NOW)
REQUEST = request_for(new_tls_key(), "north")

CARD = signed(
    SiteCard(
        site="north",
        organs=("brain", "liver"),
        signing_key=public_hex(SITE_KEY),
        node_key=public_node_key(new_node_key()),
        tls_request=REQUEST.decode(),
        panfm_version="0.1.0",
        flower_version="1.41.0",
        protocol_version=5,
        made_at="2026-11-22T12:00:00+00:00",
    ),
    SITE_KEY,
)
KIT = signed(
    SiteKit(
        study="pan",
        site="north",
        address="panfm.example.org:8443",
        coordinator_key=public_hex(COORDINATOR_KEY),
        signing_key=CARD.signing_key,
        node_key=CARD.node_key,
        ca_pem=AUTHORITY.certificate_pem.decode(),
        client_pem=issue_client(AUTHORITY, REQUEST, "north", NOW).decode(),
        bundle_sha256="5e" * 32,
        panfm_version="0.1.0",
        flower_version="1.41.0",
        protocol_version=5,
        made_at="2026-11-22T12:00:00+00:00",
    ),
    COORDINATOR_KEY,
)
FILES: list[tuple[SignedFile, Any, Ed25519PrivateKey]] = [
    (CARD, read_card, SITE_KEY),
    (KIT, read_kit, COORDINATOR_KEY),
]
each = pytest.mark.parametrize(("file", "read", "key"), FILES, ids=["card", "kit"])


@each
def test_what_was_signed_is_read_as_it_was(file: SignedFile, read: Any, key: Ed25519PrivateKey) -> None:
    assert read(to_bytes(file)) == file
    assert len(to_bytes(file)) < MAX_BYTES / 10


@each
def test_signature_is_over_all_words_but_itself(file: SignedFile, read: Any, key: Ed25519PrivateKey) -> None:
    """The oracle: JSON and Ed25519 by hand."""
    words = json.loads(to_bytes(file))
    signature = bytes.fromhex(words.pop("signature"))
    signer = words["signing_key"] if isinstance(file, SiteCard) else words["coordinator_key"]
    said = f"panfm {file.CALLED}\n{json.dumps(words, sort_keys=True)}".encode()
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer)).verify(signature, hashlib.sha256(said).digest())


@each
@given(data=st.data())
def test_any_changed_byte_is_refused(file: SignedFile, read: Any, key: Ed25519PrivateKey, data: st.DataObject) -> None:
    content = bytearray(to_bytes(file))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ProtocolError, match="ask for the file again, unchanged"):
        read(bytes(content))


@each
def test_letters_that_change_case_are_refused_everywhere(file: SignedFile, read: Any, key: Ed25519PrivateKey) -> None:
    """Hex digits mean the same in both cases, so these are the bytes that a looser reader would let through."""
    content = to_bytes(file)
    begin = content.index(b'"signature"')
    letters = [place for place, byte in enumerate(content) if chr(byte).isalpha()]
    places = [place for place in letters if begin < place < begin + 150 or place % 5 == 0]  # all of them take 10 s
    accepted = []
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 0x20
        try:
            read(bytes(changed))
            accepted.append(place)
        except ProtocolError:
            continue
    assert accepted == []


@each
@pytest.mark.parametrize(
    "change",
    [
        lambda c: c + b"\n",
        lambda c: b" " + c,
        lambda c: c[:-1],
        lambda c: c[: len(c) // 2],
        lambda c: b"",
        lambda c: b"[]\n",
        lambda c: b"null",
        lambda c: b"\xff\xfe",
        lambda c: b"[" * 100_000,
        lambda c: b"{" + b" " * MAX_BYTES + b"}",
        lambda c: c.replace(b'"site": "north"', b'"site": "north",\n "site": "north"'),
        lambda c: json.dumps(json.loads(c)).encode(),
    ],
)
def test_another_spelling_is_refused(file: SignedFile, read: Any, key: Ed25519PrivateKey, change: Any) -> None:
    with pytest.raises(ProtocolError):
        read(change(to_bytes(file)))


@each
def test_signature_of_another_key_or_of_another_kind_of_file_does_not_count(
    file: SignedFile, read: Any, key: Ed25519PrivateKey
) -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(ProtocolError, match="signature does not hold"):
        read(to_bytes(signed(file, other)))
    words = {name: value for name, value in json.loads(to_bytes(file)).items() if name != "signature"}
    elsewhere = hashlib.sha256(f"panfm approval\n{json.dumps(words, sort_keys=True)}".encode()).hexdigest()
    with pytest.raises(ProtocolError, match="signature does not hold"):
        read(to_bytes(replace(file, signature=sign(key, elsewhere))))


@each
def test_file_of_another_form_says_so(file: SignedFile, read: Any, key: Ed25519PrivateKey) -> None:
    with pytest.raises(ProtocolError, match=f"form 2, and this panfm knows form {FORMAT}"):
        read(to_bytes(signed(replace(file, format=2), key)))


def _self_signed(file: SignedFile, key: Ed25519PrivateKey, **changes: Any) -> bytes:
    """As a person would make it who owns the key and not this program."""
    words = json.loads(to_bytes(file)) | changes
    words.pop("signature")
    said = f"panfm {file.CALLED}\n{json.dumps(words, sort_keys=True)}".encode()
    words["signature"] = sign(key, hashlib.sha256(said).hexdigest())
    return (json.dumps(words, indent=1, sort_keys=True) + "\n").encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "../../etc"},
        {"site": "north\n"},
        {"site": "no\u001b[31mrth"},
        {"site": ["north"]},
        {"organs": "brain"},
        {"organs": ["brain", "brain"]},
        {"organs": ["Brain; rm"]},
        {"organs": [1]},
        {"signing_key": "ab"},
        {"node_key": CARD.node_key + " north"},
        {"node_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL0"},
        {"node_key": CARD.node_key[:60] + "A" * 124},
        {"tls_request": "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"},
        {"tls_request": AUTHORITY.certificate_pem.decode()},
        {"panfm_version": "0.1.0\u001b[2J"},
        {"protocol_version": True},
        {"protocol_version": "5"},
        {"made_at": "yesterday"},
        {"made_at": "2026-11-22T12:00:00"},
        {"made_at": "2026-11-22T13:00:00+01:00"},
        {"more": "x"},
    ],
)
def test_card_that_its_own_key_signed_is_still_looked_at(changes: dict[str, Any]) -> None:
    assert read_card(_self_signed(CARD, SITE_KEY)) == CARD
    with pytest.raises(ProtocolError):
        read_card(_self_signed(CARD, SITE_KEY, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"study": "a b"},
        {"address": "panfm.example.org"},
        {"address": "panfm.example.org:0"},
        {"address": "panfm.example.org:65536"},
        {"address": "https://panfm.example.org:8443"},
        {"address": "panfm.example.org:8443;"},
        {"address": "a b:8443"},
        {"ca_pem": ""},
        {"ca_pem": CARD.tls_request},
        {"client_pem": "x"},
        {"bundle_sha256": ""},
        {"bundle_sha256": "5E" * 32},
        {"node_key": ""},
        {"made_at": ""},
    ],
)
def test_kit_that_its_own_key_signed_is_still_looked_at(changes: dict[str, Any]) -> None:
    assert read_kit(_self_signed(KIT, COORDINATOR_KEY)) == KIT
    with pytest.raises(ProtocolError):
        read_kit(_self_signed(KIT, COORDINATOR_KEY, **changes))


def test_card_is_no_kit_and_a_kit_no_card() -> None:
    with pytest.raises(ProtocolError, match="no site kit"):
        read_kit(to_bytes(CARD))
    with pytest.raises(ProtocolError, match="no site card"):
        read_card(to_bytes(KIT))
