"""The optimiser's moments over rounds: carried, they give the uninterrupted optimiser; what does not fit starts afresh."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import nn

from panfm.pretrain.moments import Moments, load_moments, moments_of


def _model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def _optimiser(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def _steps(model: nn.Module, optimiser: torch.optim.AdamW, first: int, last: int) -> None:
    for number in range(first, last):
        draw = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimiser.step()


def _moved(moments: Moments | None) -> tuple[nn.Module, Moments]:
    """Three steps from the start, then three more by a new optimiser, with these moments or, if None, with those of the first."""
    model = _model()
    optimiser = _optimiser(model)
    _steps(model, optimiser, 0, 3)
    names = [name for name, _ in model.named_parameters()]
    found = moments_of(optimiser, model, names)
    optimiser = _optimiser(model)
    load_moments(optimiser, model, found if moments is None else moments)
    _steps(model, optimiser, 3, 6)
    return model, found


def _same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


def test_carried_moments_give_the_uninterrupted_run_to_the_bit() -> None:
    whole = _model()
    _steps(whole, _optimiser(whole), 0, 6)
    carried, moments = _moved(None)
    assert _same(carried, whole)
    assert not _same(_moved({})[0], whole), "the comparison can fail"
    assert {len(named) for named in moments.values()} == {4}


def test_moments_are_copies() -> None:
    model = _model()
    optimiser = _optimiser(model)
    _steps(model, optimiser, 0, 1)
    moments = moments_of(optimiser, model, ["0.weight"])
    before = moments["exp_avg"]["0.weight"].clone()
    again = _optimiser(model)
    load_moments(again, model, moments)
    _steps(model, optimiser, 1, 2)
    _steps(model, again, 1, 2)
    assert torch.equal(moments["exp_avg"]["0.weight"], before)
    assert moments["step"].keys() == {"0.weight"}


def test_what_does_not_fit_starts_afresh() -> None:
    _, moments = _moved(None)
    misfits = [
        {**moments, "exp_avg": {name: torch.zeros(9) for name in moments["exp_avg"]}},
        {moment: named for moment, named in moments.items() if moment != "step"},
        {"momentum_buffer": moments["exp_avg"]},
    ]
    afresh = _moved({})[0]
    assert all(_same(_moved(misfit)[0], afresh) for misfit in misfits)


def test_a_parameter_that_took_no_step_has_no_moments() -> None:
    model = _model()
    optimiser = _optimiser(model)
    next(model.parameters()).grad = torch.ones(4, 3)
    optimiser.step()
    names = [name for name, _ in model.named_parameters()]
    assert {moment: list(named) for moment, named in moments_of(optimiser, model, names).items()} == {
        "exp_avg": ["0.weight"],
        "exp_avg_sq": ["0.weight"],
        "step": ["0.weight"],
    }
