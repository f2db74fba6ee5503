"""Number formats on the wire: against the definition written the slow way, and that no number becomes another kind of number."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panfm.config import Encoding
from panfm.errors import ProtocolError
from panfm.wire.encoding import BLOCK, SCALES, as_received, decode, decode_block, encode, num_scales
from tests.client.small_study import same_bits

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def _slow_int8(values: list[float]) -> list[float]:
    """Block by block and number by number, in fp32."""
    done: list[float] = []
    for start in range(0, len(values), BLOCK):
        block = np.asarray(values[start : start + BLOCK], dtype=np.float32)
        scale = np.float32(np.abs(block).max() / np.float32(127))
        for value in block:
            step = 0.0 if scale == 0 else float(np.rint(np.float32(value / scale)))
            done.append(float(np.float32(max(-127.0, min(127.0, step))) * scale))
    return done


def _slow_bf16(value: float) -> float:
    """Round to nearest, ties to even, by the bits."""
    bits = int(np.float32(value).view(np.uint32))
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return float(np.uint32(rounded).view(np.float32))


@given(values=st.lists(FLOATS, max_size=600))
def test_int8_is_the_nearest_of_255_steps_of_its_block(values: list[float]) -> None:
    came = as_received({"x": torch.tensor(values)}, Encoding.int8)["x"]
    assert came.tolist() == pytest.approx(_slow_int8(values), rel=1e-6, abs=1e-44)


@given(value=st.floats(width=32, allow_nan=False, max_value=2.0**127, min_value=-(2.0**127)))
def test_bf16_is_the_nearest_of_its_numbers(value: float) -> None:
    assert as_received({"x": torch.tensor([value])}, Encoding.bf16)["x"].item() == _slow_bf16(value)


def test_fp32_is_untouched() -> None:
    tensors = {"b": torch.tensor([1.5, -0.0, math.inf, math.nan]), "a": torch.zeros(0, 3)}
    assert same_bits(as_received(tensors, Encoding.fp32), tensors)


@given(values=st.lists(FLOATS, min_size=1, max_size=600))
def test_int8_misses_by_half_a_step_at_most(values: list[float]) -> None:
    sent = torch.tensor(values)
    came = as_received({"x": sent}, Encoding.int8)["x"]
    for start in range(0, len(values), BLOCK):
        block = slice(start, start + BLOCK)
        step = sent[block].abs().max().double() / 127
        assert (came[block].double() - sent[block].double()).abs().max() <= step * (0.5 + 1e-4) + 127 * 1.5e-45


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("shape", [(), (1,), (256,), (257,), (3, 5, 40), (0,), (0, 4)])
def test_shapes_and_names_survive(encoding: Encoding, shape: tuple[int, ...]) -> None:
    tensors = {"trunk.b": torch.randn(shape), "trunk.a": torch.ones(2)}
    came = decode(encode(tensors, encoding))
    assert list(came) == ["trunk.a", "trunk.b"]
    assert all(tensor.dtype is torch.float32 for tensor in came.values())
    assert came["trunk.b"].shape == shape


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("ill", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden(encoding: Encoding, ill: float) -> None:
    sent = torch.zeros(600)
    sent[300] = ill
    came = as_received({"x": sent}, encoding)["x"]
    assert not torch.isfinite(came[256:512]).all()
    assert torch.isfinite(came[:256]).all()
    assert torch.isfinite(came[512:]).all()


@pytest.mark.parametrize("values", [[1e-45], [1e-45, 3e-45, -1.8e-43], [0.0, -0.0], [3.4e38, 1.0]])
def test_tiny_and_huge_blocks_stay_finite(values: list[float]) -> None:
    came = as_received({"x": torch.tensor(values)}, Encoding.int8)["x"]
    assert torch.isfinite(came).all()


def test_a_part_that_begins_with_a_block_decodes_like_the_whole() -> None:
    raw = encode({"x": torch.randn(1000)}, Encoding.int8)
    values, scales = raw["x"], raw["x" + SCALES]
    part = decode_block("x", values[512:900], scales[2 : 2 + num_scales(388)])
    assert torch.equal(part, decode(raw)["x"][512:900])


def test_inputs_are_left_alone_and_int8_owns_its_memory() -> None:
    sent = torch.randn(300)
    before = sent.clone()
    raw = encode({"x": sent}, Encoding.int8)
    assert torch.equal(sent, before)
    assert raw["x"].untyped_storage().nbytes() == 300


@pytest.mark.parametrize("tensor", [torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)])
def test_only_fp32_is_encoded(tensor: Tensor) -> None:
    with pytest.raises(ValueError, match="parameters are fp32"):
        encode({"x": tensor}, Encoding.bf16)


@pytest.mark.parametrize(
    "raw",
    [
        {"x": torch.zeros(3, dtype=torch.int8)},
        {"x": torch.zeros(3), "x#scales": torch.zeros(1)},
        {"x#scales": torch.zeros(1)},
        {"x": torch.zeros(3, dtype=torch.int8), "x#scales": torch.zeros(2)},
        {"x": torch.zeros(3, dtype=torch.int8), "x#scales": torch.zeros(1, 1)},
        {"x": torch.zeros(3, dtype=torch.int8), "x#scales": torch.zeros(1, dtype=torch.float64)},
        {"x": torch.zeros(3, dtype=torch.float64)},
        {"x": torch.zeros(3, dtype=torch.float16)},
        {"x": torch.zeros(3, dtype=torch.bool)},
    ],
    ids=["no scales", "fp32 with", "only scales", "too many", "2-D", "fp64 scales", "fp64", "fp16", "bool"],
)
def test_what_cannot_be_read_is_a_protocol_error(raw: dict[str, Tensor]) -> None:
    with pytest.raises(ProtocolError):
        decode(raw)
