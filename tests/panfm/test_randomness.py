"""Random streams: the same labels, the same draws, and no two purposes that share a stream."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.randomness import stream

labels = st.lists(
    st.one_of(st.integers(), st.text(st.characters(codec="utf-8", exclude_characters="\x1f"))), max_size=4
)


def _draw(seed: int, *labels: str | int) -> tuple[int, ...]:
    return tuple(stream(seed, *labels).integers(2**62, size=4).tolist())


def test_stream_by_hand() -> None:
    """numpy's Philox keyed by blake2b of the spelled-out labels."""
    key = hashlib.blake2b(b"3\x1fstr:site-a\x1fint:7", digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    assert _draw(3, "site-a", 7) == tuple(generator.integers(2**62, size=4).tolist())


@given(seed=st.integers(0, 2**63), one=labels, other=labels)
def test_streams_are_equal_exactly_when_their_labels_are(
    seed: int, one: list[str | int], other: list[str | int]
) -> None:
    assert _draw(seed, *one) == _draw(seed, *one)
    assert (_draw(seed, *one) == _draw(seed, *other)) == (one == other)


def test_what_tells_streams_apart() -> None:
    streams = [
        _draw(0),
        _draw(1),
        _draw(0, 1),
        _draw(0, "1"),
        _draw(0, "a", "b"),
        _draw(0, "b", "a"),
        _draw(0, "ab"),
        _draw(0, "a", ""),
        _draw(0, -1),
        _draw(0, "int:1"),
    ]
    assert len(set(streams)) == len(streams)


def test_a_number_from_numpy_is_the_number() -> None:
    assert _draw(0, int(np.int64(5))) == _draw(0, np.int64(5).item()) == _draw(int(np.uint32(0)), 5)
    five: list[int] = list(np.array([5]))
    assert _draw(0, *five) == _draw(0, 5)


def test_a_label_cannot_hold_the_divider() -> None:
    with pytest.raises(ValueError, match=r"U\+001F"):
        stream(0, "a\x1fstr:b")


def test_drawing_leaves_global_generators_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002 - the legacy state is what is watched
    stream(0, "x").normal(size=10)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # noqa: NPY002
