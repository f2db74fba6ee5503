"""The algebra on named tensors, against numpy and against what a digest must tell apart."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panfm.update import add, clone, digest, norm, subtract

Values = dict[str, list[float]]
values = st.dictionaries(st.text(max_size=5), st.lists(st.floats(-100, 100), min_size=1, max_size=4))


def _tensors(numbers: Values, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: torch.tensor(row, dtype=dtype) for name, row in numbers.items()}


@given(numbers=values)
def test_add_undoes_subtract(numbers: Values) -> None:
    left = _tensors(numbers)
    right = {name: tensor * 0.5 for name, tensor in left.items()}  # halves, so that no rounding stands between
    restored = add(right, subtract(left, right))
    assert restored.keys() == left.keys()
    assert all(torch.equal(restored[name], left[name]) for name in left)
    assert list(subtract(left, right)) == sorted(left)


@given(numbers=values)
def test_norm_is_numpys(numbers: Values) -> None:
    expected = np.linalg.norm([value for row in numbers.values() for value in row])
    assert norm(_tensors(numbers)) == pytest.approx(expected, rel=1e-12)


def test_norm_does_not_overflow_in_half_precision() -> None:
    assert norm({"w": torch.full((4,), 6e4, dtype=torch.float16)}) == pytest.approx(2 * 6e4, rel=1e-3)
    assert norm({}) == 0.0


def test_names_must_agree() -> None:
    one, two = {"a": torch.ones(1)}, {"b": torch.ones(1)}
    with pytest.raises(ValueError, match="names differ"):
        subtract(one, two)
    with pytest.raises(ValueError, match="nothing to add"):
        add(one, two)


def test_add_copies_what_it_leaves_alone() -> None:
    left = {"a": torch.ones(2), "b": torch.ones(2)}
    result = add(left, {"a": torch.ones(2)})
    result["b"].zero_()
    assert torch.equal(left["b"], torch.ones(2))
    assert torch.equal(result["a"], torch.full((2,), 2.0))


def test_clone_shares_nothing_and_tracks_nothing() -> None:
    original = torch.arange(6.0).reshape(2, 3).t().requires_grad_()
    copy = clone({"w": original})["w"]
    assert torch.equal(copy, original)
    assert copy.is_contiguous()
    assert not copy.requires_grad
    copy.zero_()
    assert original.abs().sum() > 0


def test_digest_of_one_tensor_by_hand() -> None:
    by_hand = hashlib.sha256(b'["w", "torch.float32", [2, 1]]' + np.array([1.0, -2.0], dtype="<f4").tobytes())
    assert digest({"w": torch.tensor([[1.0], [-2.0]])}) == by_hand.hexdigest()
    assert digest({}) == hashlib.sha256().hexdigest()


@given(numbers=values, dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
def test_digest_ignores_order_and_layout_only(numbers: Values, dtype: torch.dtype) -> None:
    tensors = _tensors(numbers, dtype)
    strided = {name: torch.stack([tensor, tensor], dim=-1)[:, 0] for name, tensor in reversed(tensors.items())}
    assert digest(strided) == digest(tensors)


def test_digest_tells_apart_what_differs() -> None:
    ones = torch.ones(4)
    different: list[dict[str, Tensor]] = [
        {},
        {"w": ones},
        {"v": ones},
        {"w": ones.double()},
        {"w": ones.reshape(2, 2)},
        {"w": ones[:2], "w2": ones[2:]},
        {"w": torch.tensor(1.0)},
        {"w": torch.tensor([1.0])},
        {"w": torch.zeros(4)},
        {"w": -torch.zeros(4)},
        {"w": torch.zeros(0)},
    ]
    assert len({digest(tensors) for tensors in different}) == len(different)


def test_no_name_can_pass_for_another_tensor() -> None:
    """A name that spells out the head and the bytes of a first tensor, followed by a second one."""
    zeros = torch.zeros(1)
    two = {"a": zeros, "b": zeros}
    for divider in ("|", '"', ", "):
        spelled = f"a{divider}torch.float32{divider}(1,){divider}\0\0\0\0b"
        assert digest({spelled: zeros}) != digest(two)
