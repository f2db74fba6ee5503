"""Every parameter is in exactly one group, and starts from (seed, its own name) whatever else is in the model."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from panfm.config import ModelConfig, OrganGrid
from panfm.errors import CheckpointError
from panfm.groups import SHARED_GROUPS, group_of, split_by_group
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.pan_organ import PanOrganModel
from panfm.organs import SEVEN_ORGANS

MakeModel = Callable[..., PanOrganModel]
Grids = dict[str, OrganGrid]


def test_every_parameter_is_in_exactly_one_group(config: ModelConfig) -> None:
    """Read from the modules that hold the parameters, not from their names alone."""
    model = build_model(config, {organ: OrganGrid(shape=[8, 8, 8]) for organ in SEVEN_ORGANS})
    homes = {"trunk": model.trunk, "heads": model.heads, **{organ: model.group(organ) for organ in SEVEN_ORGANS}}
    named = dict(model.named_parameters())
    owners = {
        name: [g for g, home in homes.items() if any(p is named[name] for p in home.parameters())] for name in named
    }
    assert owners == {name: [group_of(name)] for name in named}
    assert {group: len(members) for group, members in split_by_group(named).items()} == {
        group: len(list(home.parameters())) for group, home in homes.items()
    }
    # What is not a parameter would travel nowhere: there is no buffer, and no parameter stands outside a module.
    assert list(model.buffers()) == []
    assert len({id(parameter) for parameter in named.values()}) == len(named)


def test_an_initial_value_does_not_depend_on_the_other_organs(config: ModelConfig, grids: Grids) -> None:
    everything = initial_parameters(config, grids, 7)
    assert list(everything) == sorted(everything)
    for organs in (["brain"], ["liver"], ["liver", "brain"]):
        part = initial_parameters(config, {organ: grids[organ] for organ in organs}, 7)
        assert part.keys() == {name for name in everything if group_of(name) in (*SHARED_GROUPS, *organs)}
        assert all(torch.equal(part[name], everything[name]) for name in part)
    other_seed = initial_parameters(config, grids, 8)
    drawn = [name for name, value in everything.items() if float(value.std()) > 0]
    assert drawn
    assert not any(torch.equal(everything[name], other_seed[name]) for name in drawn)
    assert len({everything[name].sum().item() for name in drawn}) == len(drawn)  # no two share a stream


def test_initial_values_follow_their_laws(config: ModelConfig, grids: Grids) -> None:
    wide = replace(config, width=96, predictor_width=192)
    for name, value in initial_parameters(wide, grids, 0).items():
        assert (value.dtype, value.device.type) == (torch.float32, "cpu")
        starts_at_zero = ("adapters" in name and ".up." in name) or "_predictor.out." in name
        if name.endswith(".bias") or starts_at_zero:
            assert not value.any(), name
        elif name.endswith(".weight") and value.ndim == 1:
            assert bool((value == 1).all()), name
        elif name.endswith(".weight"):
            fan = value.shape[0] + value[0].numel()
            assert float(value.abs().max()) <= (6 / fan) ** 0.5, name
            assert float(value.std()) == pytest.approx((2 / fan) ** 0.5, rel=0.1), name
        else:
            assert name.rsplit(".", 1)[-1] in ("subject_token", "mask_token", "token", "embedding", "query")
            assert float(value.std()) == pytest.approx(0.02, rel=0.35), name


@pytest.mark.parametrize("organ", ["up", "out", "heads"])
def test_an_organ_may_be_called_like_a_map_that_starts_at_zero(config: ModelConfig, organ: str) -> None:
    """Only the last maps of adapters and predictors start at zero, not what has a name that looks like theirs."""
    start = initial_parameters(config, {organ: OrganGrid(shape=[8, 8, 8])}, 0)
    zero = {name for name, value in start.items() if not value.any() and not name.endswith("bias")}
    adapters = {f"organs.{organ}.adapters.{block}.up.weight" for block in range(config.depth)}
    assert zero == adapters | {"heads.patch_predictor.out.weight", "heads.organ_predictor.out.weight"}


def test_building_touches_no_global_stream(config: ModelConfig, grids: Grids) -> None:
    before = torch.get_rng_state()
    load_parameters(build_model(config, grids), initial_parameters(config, grids, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_copies_every_value(config: ModelConfig, grids: Grids) -> None:
    model, start = build_model(config, grids), initial_parameters(config, grids, 0)
    load_parameters(model, start)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name])
        assert parameter.data_ptr() != start[name].data_ptr()


def test_what_does_not_fit_is_refused_by_name(make_model: MakeModel, config: ModelConfig, grids: Grids) -> None:
    model, start = make_model(("brain",)), initial_parameters(config, {"brain": grids["brain"]}, 0)
    with pytest.raises(CheckpointError, match=r"organs\.heart\.adapters"):
        load_parameters(model, initial_parameters(config, grids, 0))
    with pytest.raises(CheckpointError, match=r"trunk\.subject_token is on one side only"):
        load_parameters(model, {name: value for name, value in start.items() if name != "trunk.subject_token"})
    with pytest.raises(CheckpointError, match=r"trunk\.subject_token should have shape \(24,\), got \(48,\)"):
        load_parameters(model, {**start, "trunk.subject_token": torch.zeros(48)})
