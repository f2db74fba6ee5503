"""A model's evaluation as tables, figures, files and a section of the run's report: the same numbers everywhere."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.patches import Rectangle

from panfm.errors import DataError
from panfm.reporting.evaluation_figures import evaluation_figures
from panfm.reporting.evaluation_files import write_evaluation
from panfm.reporting.evaluation_tables import KINDS, evaluation_tables, to_csv, to_markdown
from panfm.reporting.record import Event, ModelEvaluated, RunResumed, append_after_end, event_of, read_record, to_line
from panfm.reporting.run_report import write_run_report
from panfm.reporting.svg import house_style

ORGANS = ["brain", "heart", "liver"]
ASKED = {"probe": "fitted once", "target": "13 disease categories"}
INTERVAL = {"low": 0.51, "high": 0.73}


def _event() -> ModelEvaluated:
    worst = {"worst": 0.55, "worst_low": 0.5, "worst_high": 0.6}
    return ModelEvaluated(
        title="Model trial, round 5",
        model_digest="ab" * 32,
        settings={"seed": 0},
        organs=ORGANS,
        num_fit=1200,
        num_test=500,
        num_swept=480,
        scores=[
            {
                "probe": p,
                "target": t,
                "metric": m,
                "value": 0.6123,
                **INTERVAL,
                "chance": 0.5,
                "positives": c,
                "known": 500,
            }
            for p in ("linear probe", "k-NN")
            for t, c in (("13 disease categories", None), ("cat_a", 77))
            for m in ("AUROC", "AUPRC")
        ]
        + [{"probe": "linear probe", "target": "age", "metric": "R2", "value": None, "low": None, "high": None}],
        sweep=[
            {**ASKED, "missing": k, "sets": n, "mean": 0.65 - k / 50, **INTERVAL, **worst, "worst_set": "brain"}
            for k, n in enumerate((1, 3, 3))
        ],
        robustness=[{**ASKED, "quantity": "complete", "value": 0.6123, **INTERVAL, "set": ""}],
        contributions=[
            {**ASKED, "organ": organ, "shapley": value, **INTERVAL, "alone": 0.5, "lost_without": 0.1}
            for organ, value in (("brain", 0.09), ("heart", -0.02), ("liver", 0.03), ("evenness", 0.7))
        ],
        attention=[
            {
                "organ": organ,
                "share": share,
                "lift": 1.0,
                "noise_share": 0.2,
                "drop": share - 0.2,
                **INTERVAL,
                "fell": 1.0,
            }
            for organ, share in (("brain", 0.5), ("heart", 0.3), ("liver", 0.2), ("evenness of shares", 0.94))
        ],
        sites=[
            {"target": "13 disease categories", "labels": 13, "site": site, "subjects": n, "value": 0.6, **INTERVAL}
            for site, n in (("north | <b>", 250), ("south", 250), ("mean minus south", None))
        ],
        organ_sets=[{**ASKED, "organs": "brain", "missing": 2, "value": 0.5, **INTERVAL}],
        notes=["dx_rare was not asked"],
    )


EMPTY = ModelEvaluated(
    title="m", model_digest="", settings={}, organs=ORGANS, num_fit=1, num_test=1, num_swept=0, notes=["nothing asked"]
)


def test_the_event_survives_the_record() -> None:
    assert event_of(json.loads(to_line(_event()))) == _event()


def test_markdown_holds_the_numbers_and_no_broken_table() -> None:
    text = to_markdown(_event())
    assert "| complete | 0.612 (0.510 to 0.730) |" in text
    assert "| cat_a | 77 | 0.612 (0.510 to 0.730) |" in text
    assert "| brain | 0.500 | 1.000 | 0.200 | 0.300 (0.510 to 0.730) | 0.090 (0.510 to 0.730) |" in text
    assert "north \\| <b>" in text
    assert "- dx_rare was not asked" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_csv_holds_every_row_with_every_column() -> None:
    for kind in KINDS:
        rows: list[dict[str, Any]] = getattr(_event(), kind)
        read = list(csv.DictReader(io.StringIO(to_csv(rows))))
        assert len(read) == len(rows)
        for row, told in zip(rows, read, strict=True):
            assert {name: told[name] for name in row} == {n: "" if v is None else str(v) for n, v in row.items()}


def test_an_evaluation_without_rows_has_no_tables_and_no_figures() -> None:
    assert evaluation_tables(EMPTY) == ()
    with house_style():
        assert evaluation_figures(EMPTY) == {}
    assert "nothing asked" in to_markdown(EMPTY)


def test_an_undefined_value_is_a_gap_and_not_a_failure() -> None:
    event = _event()
    for rows in (event.sweep, event.attention, event.sites, event.contributions):
        rows[0].update(dict.fromkeys(("mean", "share", "value", "shapley", "low", "high"), math.nan))
    with house_style():
        assert set(evaluation_figures(event)) == {"sweep", "organs", "noise", "labels", "sites"}
    assert "–" in to_markdown(event)


def test_bars_show_what_helps_as_shares() -> None:
    with house_style():
        figure, _ = evaluation_figures(_event())["organs"]
    widths = [round(bar.get_bbox().width, 6) for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    assert widths == [0.5, 0.75, 0.3, 0.0, 0.2, 0.25], "attention, then Shapley, organ by organ"


def test_files_are_written_and_can_be_read(tmp_path: Path) -> None:
    written = write_evaluation(tmp_path / "out", _event())
    names = {path.name for path in written}
    assert names == {path.name for path in (tmp_path / "out").iterdir()}
    assert {"evaluation.json", "evaluation.md", "organ_sets.csv", "sweep.png", "sites.png"} <= names
    assert event_of(json.loads((tmp_path / "out" / "evaluation.json").read_text())) == _event()
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    again = write_evaluation(tmp_path / "again", _event())
    for first, second in zip(written, again, strict=True):
        assert first.name == "evaluation.json" or first.read_bytes() == second.read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="choose another"):
        write_evaluation(tmp_path / "file", _event())


def test_the_runs_report_shows_it(tmp_path: Path, pretend_run: Callable[..., list[Event]]) -> None:
    record = tmp_path / "record.jsonl"
    record.write_text("".join(to_line(event) + "\n" for event in pretend_run(2, 2)))
    assert "what the model leans on" not in write_run_report(tmp_path).read_text()
    append_after_end(record, _event())
    assert list(read_record(record))[-1] == _event()
    page = write_run_report(tmp_path).read_text()
    for words in ("what the model leans on", "Attention to noise", "0.612 (0.510 to 0.730)", "dx_rare was not asked"):
        assert words in page
    assert "<b>north" not in page
    assert "north | &lt;b&gt;" in page
    assert page.count('id="evaluation"') == 1


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path, pretend_run: Callable[..., list[Event]]) -> None:
    record = tmp_path / "record.jsonl"
    going = "".join(to_line(event) + "\n" for event in pretend_run(2, 2)[:-1])
    record.write_text(going)
    with pytest.raises(DataError, match="not over"):
        append_after_end(record, _event())
    record.write_text(going + to_line(pretend_run(2, 2)[-1]))
    with pytest.raises(DataError, match="not over"):
        append_after_end(record, _event())
    resumed = RunResumed(run="r", rounds_done=1, panfm_version="0", torch_version="0", flower_version="0")
    record.write_text("".join(to_line(event) + "\n" for event in (*pretend_run(2, 2), resumed)))
    with pytest.raises(DataError, match="not over"):
        append_after_end(record, _event())
    assert "model_evaluated" not in record.read_text()
