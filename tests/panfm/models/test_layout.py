"""Packing loses no token, and each subject's sequence lies together, its subject token first."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panfm.models.layout import Layout, pack, permute

PATCHES = {"brain": 8, "heart": 5, "liver": 2, "spleen": 5}
presences = st.lists(st.sets(st.sampled_from(sorted(PATCHES))), min_size=1, max_size=8)


def _pack(presence: list[set[str]]) -> Layout:
    rows = {o: [row for row, organs in enumerate(presence) if o in organs] for o in PATCHES}
    return pack(len(presence), {o: torch.tensor(r) for o, r in rows.items() if r}, PATCHES)


def _tokens_one_by_one(presence: list[set[str]]) -> list[tuple[int, str, int]]:
    """(subject, organ, number of the token in its scan) of each packed token, in packed order."""
    tokens = [(row, "", 0) for row in range(len(presence))]
    for organ, patches in PATCHES.items():
        tokens += [
            (row, organ, t) for row, organs in enumerate(presence) if organ in organs for t in range(1 + patches)
        ]
    return tokens


@given(presence=presences)
def test_each_sequence_holds_its_subjects_tokens_and_no_other(presence: list[set[str]]) -> None:
    layout, tokens = _pack(presence), _tokens_one_by_one(presence)
    assert layout.num_tokens == len(tokens)
    assert layout.subject_of.tolist() == [row for row, _, _ in tokens]
    sequences = {}
    for bucket in layout.buckets:
        for number in range(bucket.num_subjects):
            start = bucket.start + number * bucket.length
            sequence = [tokens[place] for place in layout.order[start : start + bucket.length].tolist()]
            sequences[sequence[0][0]] = sequence
    assert sequences == {row: [t for t in tokens if t[0] == row] for row in range(len(presence))}
    assert all(sequence[0][1] == "" for sequence in sequences.values())


@given(presence=presences)
def test_order_is_a_permutation_cut_into_buckets_of_rising_length(presence: list[set[str]]) -> None:
    layout = _pack(presence)
    everything = torch.arange(layout.num_tokens)
    assert torch.equal(layout.order.sort().values, everything)
    assert torch.equal(layout.order[layout.inverse], everything)
    lengths = [bucket.length for bucket in layout.buckets]
    assert lengths == sorted(set(lengths))
    stops = [bucket.start + bucket.num_subjects * bucket.length for bucket in layout.buckets]
    assert [0, *stops] == [*(bucket.start for bucket in layout.buckets), layout.num_tokens]
    assert sum(bucket.num_subjects for bucket in layout.buckets) == len(presence)


@given(presence=presences)
def test_spans_are_the_organs_blocks(presence: list[set[str]]) -> None:
    layout, tokens = _pack(presence), _tokens_one_by_one(presence)
    for organ, span in layout.spans.items():
        assert {name for _, name, _ in tokens[span]} == {organ}
        assert span.stop - span.start == layout.rows[organ].numel() * layout.tokens_per_scan[organ]
    assert sum(span.stop - span.start for span in layout.spans.values()) == layout.num_tokens - len(presence)


def test_a_batch_of_two_by_hand() -> None:
    """Subject 0 has a liver (2 patches), subject 1 a liver and a heart (5 patches)."""
    layout = _pack([{"liver"}, {"liver", "heart"}])
    assert layout.spans == {"heart": slice(2, 8), "liver": slice(8, 14)}
    assert layout.order.tolist() == [0, 8, 9, 10, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13]
    assert [(b.start, b.num_subjects, b.length) for b in layout.buckets] == [(0, 1, 4), (4, 1, 10)]


@pytest.mark.parametrize("trailing", [(), (3,), (2, 2)])
def test_permute_is_indexing_and_its_gradient_is_exact(trailing: tuple[int, ...]) -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    inverse = torch.argsort(order)
    rows = torch.arange(5.0 * torch.Size(trailing).numel(), dtype=torch.float64).reshape(5, *trailing)
    rows.requires_grad_()
    assert torch.equal(permute(rows, order, inverse), rows[order])

    def permuted(values: Tensor) -> Tensor:
        return permute(values, order, inverse)

    assert torch.autograd.gradcheck(permuted, rows)


@given(presence=presences)
def test_starts_are_the_bounds_of_the_sequences(presence: list[set[str]]) -> None:
    layout = _pack(presence)
    owners = layout.subject_of[layout.order].tolist()
    bounds = [0, *(place for place in range(1, len(owners)) if owners[place] != owners[place - 1]), len(owners)]
    assert layout.starts.tolist() == bounds
    assert layout.starts.dtype == torch.int32
