"""The audit log's chain: whatever is changed, taken out, put in, moved or cut off is found, and the first wrong line is named."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from panfm.errors import ConfigError
from panfm.signing import public_hex
from panfm.site.audit_chain import (
    EMPTY,
    MAX_LINE_BYTES,
    MAX_WORD,
    Anchor,
    Fault,
    Head,
    Inspection,
    after,
    anchor_bytes,
    head_from,
    inspect_log,
    make_line,
    may_be_torn,
    read_anchor,
    read_line,
)

KEY, OTHER_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PUBLIC = public_hex(KEY)
START = Anchor(head=EMPTY, size_bytes=0)
WRITTEN = 6


def _time(number: int) -> str:
    return f"2026-03-04T05:06:{number:02d}.789Z"


def _written(
    numbers: Sequence[int], anchor: Anchor = START, key: Ed25519PrivateKey = KEY
) -> tuple[list[bytes], Anchor]:
    """Lines that follow an anchor, one about each number."""
    lines = []
    for number in numbers:
        lines.append(
            make_line(key, anchor.head, _time(number % 60), "answer_sent", {"run": "study-1", "round": number})
        )
        anchor = after(anchor, lines[-1])
    return lines, anchor


LINES, ANCHOR = _written(range(WRITTEN))
CONTENT, ANCHORED = b"".join(LINES), anchor_bytes(KEY, ANCHOR)
NEXT = _written([99], ANCHOR)[0][0]


def _look(content: bytes, anchored: bytes | None = ANCHORED, *witnesses: Head) -> Inspection:
    return inspect_log(content, anchored, PUBLIC, witnesses)


def _fault(content: bytes, anchored: bytes | None = ANCHORED, *witnesses: Head) -> tuple[int, str] | None:
    fault: Fault | None = _look(content, anchored, *witnesses).fault
    return None if fault is None else (fault.line, fault.kind)


# ---- the form of a line, the slow way -------------------------------------------------------------------------------


def test_chain_and_signatures_hold_by_hand() -> None:
    previous = "0" * 64
    for number, line in enumerate(LINES, start=1):
        values = json.loads(line)
        assert list(values) == ["line", "previous", "time", "event", "about", "signature"]
        assert (values["line"], values["previous"]) == (number, previous)
        body, _, _ = line.decode().rpartition(',"signature":')
        signed = hashlib.sha256(f"panfm audit line 1\n{body}}}".encode()).digest()
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(PUBLIC)).verify(bytes.fromhex(values["signature"]), signed)
        previous = hashlib.sha256(line.rstrip(b"\n")).hexdigest()
    assert json.loads(ANCHORED) | {"signature": ""} == {
        "length": WRITTEN,
        "digest": previous,
        "size_bytes": len(CONTENT),
        "signature": "",
    }


def test_signature_of_a_line_passes_for_nothing_else() -> None:
    """The key signs approvals, too: what it signs begins with what it is."""
    values = json.loads(LINES[0])
    body = LINES[0].decode().rpartition(',"signature":')[0] + "}"
    with pytest.raises(InvalidSignature):
        KEY.public_key().verify(bytes.fromhex(values["signature"]), hashlib.sha256(body.encode()).digest())


def test_untouched_log_is_sound() -> None:
    found = _look(CONTENT)
    assert (found.fault, found.unfinished_bytes, found.head) == (None, 0, ANCHOR.head)
    assert [entry.about["round"] for entry in found.entries] == list(range(WRITTEN))
    assert [entry.time for entry in found.entries] == [_time(number) for number in range(WRITTEN)]
    assert _look(b"", anchor_bytes(KEY, START)).fault is None


# ---- tampering ------------------------------------------------------------------------------------------------------


@given(place=st.integers(0, len(CONTENT) - 1), value=st.integers(0, 255))
def test_any_changed_byte_is_found_in_its_line(place: int, value: int) -> None:
    changed = CONTENT[:place] + bytes([value]) + CONTENT[place + 1 :]
    expected = None if changed == CONTENT else CONTENT[:place].count(b"\n") + 1
    fault = _look(changed).fault
    assert (fault.line if fault else None) == expected
    assert fault is None or fault.kind in ("edited", "cut")


@given(place=st.integers(0, len(CONTENT)), added=st.binary(min_size=1, max_size=5))
def test_any_byte_put_in_is_found(place: int, added: bytes) -> None:
    changed = CONTENT[:place] + added + CONTENT[place:]
    fault = _look(changed).fault
    if place == len(CONTENT) and may_be_torn(added, ANCHOR.head):
        assert fault is None
    else:
        assert fault is not None
        # at the end of a line, what is put in may belong to the next
        assert fault.line in {CONTENT[:place].count(b"\n") + 1, CONTENT[:place].count(b"\n") + 2}


@given(gone=st.sets(st.integers(1, WRITTEN), min_size=1))
def test_any_lines_taken_out_are_found_at_the_first(gone: set[int]) -> None:
    left = [line for number, line in enumerate(LINES, start=1) if number not in gone]
    at_the_end = gone == set(range(min(gone), WRITTEN + 1))
    assert _fault(b"".join(left)) == (min(gone), "cut" if at_the_end else "removed")


@given(order=st.permutations(range(WRITTEN)))
def test_any_other_order_is_found_at_the_first_line_out_of_place(order: list[int]) -> None:
    wrong = [place for place, number in enumerate(order) if place != number]
    expected = (wrong[0] + 1, "reordered") if wrong else None
    assert _fault(b"".join(LINES[number] for number in order)) == expected


@given(copied=st.integers(0, WRITTEN - 1), place=st.integers(0, WRITTEN))
def test_any_line_put_in_twice_is_found(copied: int, place: int) -> None:
    numbers = [*range(place), copied, *range(place, WRITTEN)]
    first = next(at for at, number in enumerate(numbers) if number != at)
    fault = _look(b"".join(LINES[number] for number in numbers)).fault
    assert fault is not None
    assert fault.line == first + 1


@given(place=st.integers(0, WRITTEN), junk=st.binary(max_size=40).map(lambda junk: junk.replace(b"\n", b"")))
def test_any_foreign_line_is_found_where_it_was_put_in(place: int, junk: bytes) -> None:
    before = ANCHOR.head if place == WRITTEN else Head(place, "0" * 64)
    forged = make_line(OTHER_KEY, before, _time(0), "answer_sent", {})
    for foreign in (junk + b"\n", forged):
        assert _fault(b"".join([*LINES[:place], foreign, *LINES[place:]])) == (place + 1, "inserted")


@given(size=st.integers(0, len(CONTENT) - 1))
def test_any_cut_end_is_found_at_the_first_line_that_is_not_whole(size: int) -> None:
    assert _fault(CONTENT[:size]) == (CONTENT[:size].count(b"\n") + 1, "cut")


@pytest.mark.parametrize("from_line", range(1, WRITTEN + 1))
def test_line_of_another_history_is_found(from_line: int) -> None:
    """Written with the site's own key, such as after an old copy was put back."""
    before = Anchor(head=Head(from_line - 1, _digest(from_line - 1)), size_bytes=0)
    other, _ = _written([50], before)
    mixed = b"".join([*LINES[: from_line - 1], *other, *LINES[from_line:]])
    assert _fault(mixed) == (min(from_line + 1, WRITTEN), "rewritten")


def _digest(number: int) -> str:
    return hashlib.sha256(LINES[number - 1][:-1]).hexdigest() if number else "0" * 64


# ---- the anchor and the witnesses -----------------------------------------------------------------------------------


@given(place=st.integers(0, len(ANCHORED) - 1), value=st.integers(0, 255))
def test_any_changed_byte_of_the_anchor_is_found(place: int, value: int) -> None:
    changed = ANCHORED[:place] + bytes([value]) + ANCHORED[place + 1 :]
    assert _fault(CONTENT, changed) == (None if changed == ANCHORED else (WRITTEN, "anchor_edited"))


def test_missing_old_and_foreign_anchors_are_found() -> None:
    assert _fault(CONTENT, None) == (WRITTEN, "anchor_missing")
    assert _fault(CONTENT, anchor_bytes(OTHER_KEY, ANCHOR)) == (WRITTEN, "anchor_edited")
    old = anchor_bytes(KEY, _written(range(WRITTEN - 2))[1])
    assert _fault(CONTENT, old) == (WRITTEN - 1, "anchor_old")


@given(length=st.integers(0, WRITTEN))
def test_log_cut_together_with_its_anchor_is_found_by_a_witness(length: int) -> None:
    """Which needs an old copy of the anchor, or the key: the site alone cannot tell."""
    lines, anchor = _written(range(length))
    content, anchored = b"".join(lines), anchor_bytes(KEY, anchor)
    assert _fault(content, anchored) is None
    assert _fault(content, anchored, ANCHOR.head) == (None if length == WRITTEN else (length + 1, "cut"))


@given(length=st.integers(1, WRITTEN))
def test_log_written_anew_with_the_key_is_found_by_a_witness(length: int) -> None:
    lines, anchor = _written(range(10, 10 + WRITTEN))
    content, anchored = b"".join(lines), anchor_bytes(KEY, anchor)
    assert _fault(content, anchored) is None
    assert _fault(content, anchored, EMPTY, Head(length, _digest(length))) == (length, "rewritten")


def test_true_witnesses_agree() -> None:
    assert _fault(CONTENT, ANCHORED, *(Head(number, _digest(number)) for number in range(WRITTEN + 1))) is None


def test_head_is_written_and_read_in_one_form() -> None:
    assert head_from(str(ANCHOR.head)) == ANCHOR.head
    for text in (
        "",
        "12",
        f"{'a' * 64}",
        f"{'A' * 64}:1",
        f"{'a' * 64}:-1",
        f"{'a' * 64}:01",
        f"{'a' * 63}:1",
        "x" * 999,
    ):
        with pytest.raises(ConfigError, match="DIGEST:LENGTH"):
            head_from(text)


# ---- what a crash leaves --------------------------------------------------------------------------------------------


@given(size=st.integers(1, len(NEXT) - 1), zeros=st.integers(0, 50))
def test_beginning_of_the_next_line_is_no_tampering(size: int, zeros: int) -> None:
    found = _look(CONTENT + NEXT[:size] + b"\0" * zeros)
    assert (found.fault, found.unfinished_bytes, found.head) == (None, size + zeros, ANCHOR.head)


def test_file_that_grew_before_it_was_written_is_no_tampering() -> None:
    assert _look(CONTENT + b"\0" * 300).fault is None


@given(
    rest=st.binary(min_size=1, max_size=60).filter(
        lambda rest: b"\n" not in rest and rest.strip(b"\0") not in (b"", b"{")
    )
)
def test_anything_else_at_the_end_is_tampering(rest: bytes) -> None:
    if not NEXT.startswith(rest.rstrip(b"\0")):
        assert _fault(CONTENT + rest) == (WRITTEN + 1, "foreign_tail")


def test_beginning_of_another_lines_successor_is_tampering() -> None:
    """A cut piece of an older line, left to look like a crash."""
    assert _fault(CONTENT + LINES[3][:200]) == (WRITTEN + 1, "foreign_tail")


def test_one_whole_line_behind_the_anchor_counts() -> None:
    found = _look(CONTENT + NEXT)
    assert found.fault is None
    assert found.head.length == WRITTEN + 1


# ---- what may stand in a line ---------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(), max_size=60)


@given(about=st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True), scalars | words, max_size=8))
def test_values_come_back_as_they_were_said(about: dict[str, str | int | float | bool | None]) -> None:
    line = make_line(KEY, EMPTY, _time(0), "task_received", about)
    assert line.count(b"\n") == 1
    entry = read_line(line[:-1], PUBLIC)
    assert entry is not None
    assert entry.about == about
    assert list(entry.about) == sorted(about)


def test_what_a_peer_names_is_cut_and_no_line_grows_without_end() -> None:
    line = make_line(KEY, EMPTY, _time(0), "task_received", {"run": "\U0001f480" * 10**6, "loss": math.inf})
    entry = read_line(line[:-1], PUBLIC)
    assert entry is not None
    assert entry.about == {"run": "\U0001f480" * (MAX_WORD - 1) + "…", "loss": "inf"}
    with pytest.raises(ValueError, match=f"at most {MAX_LINE_BYTES} bytes"):
        make_line(KEY, EMPTY, _time(0), "task_received", {f"v{place}": "\U0001f480" * MAX_WORD for place in range(20)})


@pytest.mark.parametrize("word", ["", "Sent", "answer sent", "sub-1/brain", "a" * 41, "ä", "_x"])
def test_events_and_names_are_plain_words(word: str) -> None:
    with pytest.raises(ValueError, match="small letters"):
        make_line(KEY, EMPTY, _time(0), word, {})
    with pytest.raises(ValueError, match="small letters"):
        make_line(KEY, EMPTY, _time(0), "answer_sent", {word: 1})


@given(line=st.binary(max_size=200))
def test_nonsense_is_no_entry_and_no_anchor(line: bytes) -> None:
    assert read_line(line, PUBLIC) is None
    assert read_anchor(line, PUBLIC) is None


@pytest.mark.parametrize("depth", [10, 10_000])
def test_deep_nesting_is_no_entry(depth: int) -> None:
    nested = b'{"line":' + b"[" * depth + b"]" * depth + b',"signature":"' + b"0" * 128 + b'"}'
    assert read_line(nested, PUBLIC) is None
