"""In bf16 only matrix products are rounded; what decides by small differences is not, and fp32 is left to the bit."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from panfm.config import Precision
from panfm.errors import RunError
from panfm.models.attention import SubjectAttention
from panfm.models.layout import pack
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.models.precision import computing_in, full_precision
from panfm.models.prototypes import PrototypeHead

MakeModel = Callable[..., PanOrganModel]
MakeScans = Callable[[Sequence[Sequence[str]]], Sequence[dict[str, Tensor]]]


def _features(model: PanOrganModel, scans: Sequence[dict[str, Tensor]], precision: Precision) -> Features:
    rows = {o: torch.tensor([row for row, own in enumerate(scans) if o in own]) for o in model.organs}
    volumes = {o: torch.stack([scans[row][o] for row in present.tolist()]) for o, present in rows.items()}
    with torch.no_grad(), computing_in(precision, "cpu"):
        features: Features = model(volumes, rows, len(scans), saliency_blocks=2)
    return features


def test_products_are_rounded_and_the_stream_between_them_is_not(make_model: MakeModel, make_scans: MakeScans) -> None:
    model, scans = make_model(), make_scans([["brain", "heart", "liver"], ["heart"], ["brain", "liver"]])
    seen: dict[str, set[torch.dtype]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            kind = type(module).__name__
            module.register_forward_hook(lambda _m, _i, out, kind=kind: seen.setdefault(kind, set()).add(out.dtype))
            assert name
    half = _features(model, scans, Precision.bf16)
    assert seen == {"Linear": {torch.bfloat16}, "LayerNorm": {torch.float32}}
    assert {half.subject.dtype, *(a.dtype for a in half.attention.values())} == {torch.float32}
    seen.clear()
    full = _features(model, scans, Precision.fp32)
    assert seen == {"Linear": {torch.float32}, "LayerNorm": {torch.float32}}
    for organ, patches in full.patches.items():
        # Measured over three seeds: features, whose deviation is about 1, differ by at most 0.019, attention by 0.3 %.
        assert 1e-4 < float((patches - half.patches[organ]).abs().max()) < 0.05
        torch.testing.assert_close(half.attention[organ], full.attention[organ], rtol=0.02, atol=0.0)


def test_attention_of_the_subject_token_is_not_rounded() -> None:
    """Queries and keys are rounded, as the block's are; what is made of them is what double precision makes of them."""
    attention, generator = SubjectAttention(24, 2), torch.Generator().manual_seed(0)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    layout, tokens = pack(1, {"brain": torch.tensor([0])}, {"brain": 5}), torch.randn(7, 24, generator=generator)
    unturned = torch.ones(7, 6), torch.zeros(7, 6)
    with torch.no_grad(), computing_in(Precision.bf16, "cpu"):
        query, key, _ = attention.qkv(tokens).reshape(7, 3, 2, 12).double().unbind(1)
        _, found = attention(tokens, layout, unturned, with_saliency=True)
    exact = torch.einsum("hd,khd->hk", query[0], key).div(12**0.5).softmax(-1).mean(0)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-7)


def test_cosines_of_prototypes_are_not_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    head = PrototypeHead(24, 16, 8)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    with torch.no_grad(), computing_in(Precision.bf16, "cpu"):
        cosines = head(torch.randn(5, 24, generator=generator))
    assert cosines.dtype == torch.float32
    assert not torch.equal(cosines, cosines.to(torch.bfloat16).float())


def test_full_precision_ends_what_surrounds_it() -> None:
    values = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    with computing_in(Precision.bf16, "cpu"):
        assert (values @ values).dtype == torch.bfloat16
        with full_precision(values):
            assert torch.equal(values @ values, torch.mm(values, values))
            assert (values @ values).dtype == torch.float32
    with computing_in(Precision.fp32, "cpu"):
        assert (values @ values).dtype == torch.float32


def test_a_gpu_without_bf16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    with pytest.raises(RunError, match="bf16 needs a GPU that has bf16, and Old GPU has not"):
        computing_in(Precision.bf16, "cuda:0")
