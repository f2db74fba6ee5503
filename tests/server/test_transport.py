"""How a study's tensors travel, through the real apps: in many small parcels or one, the model is the same to the bit."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from flwr.app import Message

from panfm.export.model_folder import read_model
from panfm.reporting.record import RunFinished, SiteAnswered
from tests.client.small_study import SmallStudy, same_bits

SMALL = "federation.wire.parcel_mb=0.15"


def _kinds(sent: Sequence[tuple[str, Message]]) -> Counter[str]:
    contents = [message.content.config_records for _, message in sent]
    return Counter(str(records["envelope"]["kind"]) for records in contents if "envelope" in records)


def test_small_parcels_change_no_bit_and_leave_nothing_behind(study: SmallStudy) -> None:
    whole = study.with_settings("rounds=1", name="whole")
    cut = study.with_settings("rounds=1", "federation.wire.zstd_level=1", SMALL, name="cut")
    grids = [one.conduct() for one in (whole, cut)]

    assert [end.status for one in (whole, cut) for end in one.events(RunFinished)] == ["complete"] * 2
    assert _kinds(grids[0].sent) == {"train_task": 3}
    kinds = _kinds(grids[1].sent)
    assert kinds["train_task"] == 3
    assert kinds["task_parcel"] >= 3
    assert kinds["parcel_request"] >= 2
    models = [read_model(one.folder / "model") for one in (whole, cut)]
    assert same_bits(models[0].student, models[1].student)
    assert same_bits(models[0].teacher, models[1].teacher)
    for site, folder in study.hospitals.items():
        assert not list((folder / "state" / "parcels").glob("*/*/*")), f"{site} has thrown the task's parcels away"


@pytest.mark.slow
def test_fewer_bits_are_fewer_bytes_both_ways(study: SmallStudy) -> None:
    passed: dict[str, list[int]] = {}
    for name, down, up in (("exact", "fp32", "fp32"), ("short", "bf16", "int8")):
        run = study.with_settings(
            "rounds=1", f"federation.wire.down={down}", f"federation.wire.up={up}", SMALL, name=name
        )
        run.conduct()
        answers = run.events(SiteAnswered)
        assert {answer.outcome for answer in answers} == {"accepted"}
        passed[name] = [sum(answer.bytes_down for answer in answers), sum(answer.bytes_up for answer in answers)]
    down_share, up_share = (short / exact for short, exact in zip(passed["short"], passed["exact"], strict=True))
    assert 0.45 < down_share < 0.6
    assert 0.2 < up_share < 0.35
