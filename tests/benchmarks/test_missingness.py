"""The benchmark of missingness from people to table, in small; what was measured is not measured again."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import missingness
from benchmarks.missingness import YARDSTICK, Size, main, measured
from panfm.pretrain.local_round import train_round

SMALL = Size(train=8, probe=24, test=24, voxels=16, steps=1, seeds=(0, 1), resamples=10)
MODEL = ("width=12", "depth=1", "heads=2", "adapter_width=2", "predictor_width=12")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(missingness, "FOLDER", tmp_path)
    monkeypatch.setattr(missingness, "SETTINGS", (*missingness.SETTINGS, *(f"model.{setting}" for setting in MODEL)))
    return tmp_path


@pytest.mark.slow
def test_every_way_is_measured_once_and_the_yardstick_lacks_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scans: list[int] = []

    def counted(*arguments: object, **named: object) -> object:
        scans.append(sum(arguments[2].num_subjects.values()))  # type: ignore[attr-defined]
        return train_round(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("benchmarks.missingness.train_round", counted)
    main([], SMALL)
    assert len(scans) == len(SMALL.seeds) * len(missingness.WAYS)
    complete, *thinned = scans[: len(missingness.WAYS)]
    assert complete == 7 * SMALL.train > max(thinned)
    first = capsys.readouterr().out
    assert sum(line.startswith(f"| {way} |") for line in first.splitlines() for way in missingness.WAYS) == 4
    main([], SMALL)
    assert len(scans) == len(SMALL.seeds) * len(missingness.WAYS), "nothing is measured again"
    assert capsys.readouterr().out == first
    found = measured(SMALL, 0, YARDSTICK)
    assert (found["presence"] == 0.5).all(), "who has everything tells nothing by it"
    assert (found["fitted_complete"] == found["fitted_missing"]).all()
    assert not list(folder.rglob("scans"))
