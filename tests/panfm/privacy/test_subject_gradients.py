"""Gradients by hooks are those of a loop over subjects; what would go wrong in silence is refused."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from panfm.errors import ConfigError
from panfm.privacy.subject_gradients import SubjectGradients


class Scale(nn.Module):
    """A layer with a rule of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.factor

    def subject_gradients(self, inputs: Sequence[Tensor], gradient: Tensor) -> dict[nn.Parameter, Tensor]:
        return {self.factor: (inputs[0] * gradient).sum(1)}


class Small(nn.Module):
    """[B, T, 4] to [B]; one layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.scale, self.last = nn.Linear(4, 4), nn.LayerNorm(4), Scale(4), nn.Linear(4, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.first(torch.tanh(self.scale(self.norm(self.first(tokens)))))
        out: Tensor = self.last(torch.tanh(hidden)).mean((1, 2))
        return out


def small() -> Small:
    model, draws = Small(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    return model.double()


TOKENS = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("frozen", [(), ("first",), ("first", "norm", "scale"), ("last",)])
def test_gradients_are_those_of_a_loop_over_subjects(frozen: tuple[str, ...]) -> None:
    model = small()
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    slow = [
        torch.autograd.grad(model(TOKENS[row : row + 1]).square().sum(), list(trained.values())) for row in range(5)
    ]
    gradients = SubjectGradients(model, trained)
    for _ in range(2):  # and again
        found = gradients.of(lambda: model(TOKENS).square())
        assert list(found) == list(trained)
        for place, name in enumerate(trained):
            torch.testing.assert_close(found[name], torch.stack([own[place] for own in slow]), rtol=1e-10, atol=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_pass_that_broke_off_leaves_nothing_for_the_next() -> None:
    model = small()
    gradients = SubjectGradients(model, dict(model.named_parameters()))
    expected = gradients.of(lambda: model(TOKENS))

    def breaks_off() -> Tensor:
        model(TOKENS[:2])
        raise KeyError("of this test")

    with pytest.raises(KeyError):
        gradients.of(breaks_off)
    found = gradients.of(lambda: model(TOKENS))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_model_runs_as_ever_beside_the_passes() -> None:
    """Without hooks in the way: no rows are kept, and autograd gives what it gave."""
    model, plain = small(), small()
    gradients = SubjectGradients(model, dict(model.named_parameters()))
    gradients.of(lambda: model(TOKENS))
    with torch.no_grad():
        assert torch.equal(model(TOKENS), plain(TOKENS))
    assert not any("activations" in layer.__dict__ for layer in model.modules())


class Unused(Small):
    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.last(tokens).mean((1, 2))
        return out


class Gathered(Small):
    """A layer that is called on some of the subjects."""

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([super().forward(tokens[:2]), tokens[2:].mean((1, 2))])


class Packed(Small):
    """A layer for which tokens are rows."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.reshape(1, 15, 4)).expand(5)


@pytest.mark.parametrize("kind", [Unused, Gathered, Packed])
def test_layers_not_called_on_every_subject_are_noticed(kind: Callable[[], Small]) -> None:
    model = kind().double()
    gradients = SubjectGradients(model, dict(model.named_parameters()))
    with pytest.raises(ValueError, match="one gradient from each of 5 subjects"):
        gradients.of(lambda: model(TOKENS))


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(4))


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.BatchNorm1d(4), "normalises over other subjects"),
        (nn.BatchNorm1d(4, affine=False, track_running_stats=False), "normalises over other subjects"),
        (nn.InstanceNorm1d(4, track_running_stats=True), "normalises over other subjects"),
        (Remembering(), "keeps the buffer 'centre'"),
        (Raw(), "no rule"),
        (nn.Bilinear(2, 2, 2), "no rule"),
    ],
)
def test_layers_that_cannot_be_had_are_refused_by_name(layer: nn.Module, word: str) -> None:
    model = nn.ModuleDict({"good": nn.Linear(4, 4), "bad": layer})
    with pytest.raises(ConfigError, match=f"bad .*{word}"):
        SubjectGradients(model, dict(model.named_parameters()))


def test_trained_and_not_frozen_must_be_the_same() -> None:
    model = small()
    with pytest.raises(ValueError, match="not frozen"):
        SubjectGradients(model, {"first.weight": model.first.get_parameter("weight")})
