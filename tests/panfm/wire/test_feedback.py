"""Error feedback: nothing that was rounded away is lost, over any number of rounds."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panfm.config import Encoding
from panfm.wire.encoding import decode
from panfm.wire.feedback import encode_with_feedback
from tests.client.small_study import same_bits

ROUNDING = [Encoding.bf16, Encoding.int8]


def _deltas(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(700, generator=draw) * 1e-3 for name in ("trunk.a", "trunk.b")}


@pytest.mark.parametrize("encoding", ROUNDING)
@given(seed=st.integers(0, 2**32), rounds=st.integers(1, 12))
def test_what_was_sent_and_what_is_kept_add_up(encoding: Encoding, seed: int, rounds: int) -> None:
    """The sum of all deltas = the sum of all that was sent, plus the last residual; so the error does not grow with rounds."""
    residual: dict[str, Tensor] = {}
    meant = dict.fromkeys(("trunk.a", "trunk.b"), torch.zeros(700, dtype=torch.float64))
    sent = dict(meant)
    for number in range(rounds):
        deltas = _deltas(seed + number)
        raw, residual = encode_with_feedback(deltas, residual, encoding)
        meant = {name: meant[name] + deltas[name].double() for name in meant}
        sent = {name: sent[name] + tensor.double() for name, tensor in decode(raw).items()}
    for name in meant:
        torch.testing.assert_close(sent[name] + residual[name].double(), meant[name], rtol=0, atol=1e-9)
        assert residual[name].abs().max() < 5e-5, "less than a step of the coarser of the two"


@pytest.mark.parametrize("encoding", ROUNDING)
def test_a_residual_not_used_gives_what_the_first_round_gives(encoding: Encoding) -> None:
    first, _ = encode_with_feedback(_deltas(0), {}, encoding)
    again, _ = encode_with_feedback(_deltas(0), {"organs.brain.x": torch.ones(3)}, encoding)
    assert same_bits(decode(again), decode(first))


def test_fp32_keeps_nothing_and_changes_nothing() -> None:
    raw, residual = encode_with_feedback(_deltas(0), {}, Encoding.fp32)
    assert residual == {}
    assert same_bits(raw, _deltas(0))


def test_without_feedback_small_deltas_would_be_lost() -> None:
    """The control: beside a large number, a small one rounds to nothing round after round; with feedback it arrives."""
    delta = {"x": torch.tensor([1.0, 1e-3])}
    residual: dict[str, Tensor] = {}
    arrived, lost = torch.zeros(2), torch.zeros(2)
    for _ in range(100):
        raw, residual = encode_with_feedback(delta, residual, Encoding.int8)
        arrived += decode(raw)["x"]
        lost += decode(encode_with_feedback(delta, {}, Encoding.int8)[0])["x"]
    assert lost[1] == 0
    assert arrived[1].item() == pytest.approx(0.1, abs=1 / 127)
