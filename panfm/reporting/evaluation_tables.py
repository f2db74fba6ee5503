"""The tables of a model's evaluation, for the page, as Markdown, and as CSV with every number that was computed."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from panfm.reporting.history import finite
from panfm.reporting.record import ModelEvaluated
from panfm.reporting.tables import DASH, Cell, Row, Table, count

KINDS = ("scores", "sweep", "robustness", "contributions", "attention", "sites", "organ_sets")
"""Fields of the event that are tables."""

Values = Mapping[str, Any]


def evaluation_tables(event: ModelEvaluated) -> tuple[Table, ...]:
    """The tables that people read; those that have no rows are left out. `organ_sets` is for programs."""
    made = (
        _robustness(event),
        _sweep(event),
        _organs(event),
        _scores(event, ("AUROC", "AUPRC"), "Classes"),
        _scores(event, ("R2", "MAE"), "Numbers"),
        _sites(event),
    )
    return tuple(table for table in made if table.rows)


def to_csv(rows: Sequence[Values]) -> str:
    """All rows with all their columns; an empty cell is an undefined value."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(row) for row in rows)
    return text.getvalue()


def to_markdown(event: ModelEvaluated) -> str:
    """All tables as one page of Markdown."""
    about = (
        f"{count(event.num_fit)} subjects to fit probes, {count(event.num_test)} to test, {count(event.num_swept)} of them with "
        f"all of {', '.join(event.organs)}. Brackets: 95 % of resampled test subjects. Teacher `{event.model_digest[:16]}`."
    )
    parts = [f"# {event.title}", about, *(_markdown(table) for table in evaluation_tables(event))]
    if event.notes:
        parts.append("\n".join(f"- {_plain(note)}" for note in event.notes))
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    lines = [table.head, tuple("---" for _ in table.head)]
    lines += [(row.header.text, *(cell.text for cell in row.cells)) for row in table.rows]
    return f"**{table.caption}**\n\n" + "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(text: str) -> str:
    """A site's or a label's name may hold a bar or a newline, which would break the table."""
    return " ".join(text.replace("|", "\\|").split())


def _score(row: Values | None, name: str = "value", low: str = "low", high: str = "high") -> Cell:
    """Value and interval with three decimals, as scores between 0 and 1 are read."""
    value = finite(row.get(name)) if row else None
    if row is None or value is None:
        return Cell(text=DASH)
    ends = [finite(row.get(end)) for end in (low, high)]
    known = [end for end in ends if end is not None]
    return Cell(text=f"{value:.3f}" + (f" ({known[0]:.3f} to {known[1]:.3f})" if len(known) == 2 else ""))


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> Table:
    cells = [[cell if isinstance(cell, Cell) else Cell(text=cell) for cell in row] for row in rows]
    return Table(
        caption=caption, head=tuple(head), rows=tuple(Row(header=row[0], cells=tuple(row[1:])) for row in cells)
    )


def _scores(event: ModelEvaluated, metrics: Sequence[str], what: str) -> Table:
    """One row a target: the probes beside each other, by metric."""
    own = [row for row in event.scores if row.get("metric") in metrics]
    probes = list(dict.fromkeys(str(row.get("probe")) for row in own))
    found = {(row.get("target"), row.get("probe"), row.get("metric")): row for row in own}
    columns = [(metric, probe) for metric in metrics for probe in probes]
    rows: list[tuple[Cell | str, ...]] = [
        (
            target,
            count(next((row.get("positives") for row in own if row.get("target") == target), None)),
            *(_score(found.get((target, probe, metric))) for metric, probe in columns),
        )
        for target in dict.fromkeys(str(row.get("target")) for row in own)
    ]
    return _table(
        f"{what}: what frozen embeddings say of test subjects, and what presence of organs alone says",
        ("label", "cases", *(f"{metric}, {probe}" for metric, probe in columns)),
        rows,
    )


def _asked(rows: Sequence[Values]) -> list[tuple[str, str]]:
    """(target, probe) of each sweep, in the order of the rows."""
    return list(dict.fromkeys((str(row.get("target")), str(row.get("probe"))) for row in rows))


def _robustness(event: ModelEvaluated) -> Table:
    asked = _asked(event.robustness)
    found = {(row.get("target"), row.get("probe"), row.get("quantity")): row for row in event.robustness}
    quantities = dict.fromkeys(str(row.get("quantity")) for row in event.robustness)
    rows: list[tuple[Cell | str, ...]] = [
        (name, *(_score(found.get((*pair, name))) for pair in asked)) for name in quantities
    ]
    return _table("Robustness to missing organs, area under the ROC curve", ("", *map(", ".join, asked)), rows)


def _sweep(event: ModelEvaluated) -> Table:
    rows = [
        (
            count(row.get("missing")),
            str(row.get("target")),
            str(row.get("probe")),
            count(row.get("sets")),
            _score(row, "mean"),
            _score(row, "worst", "worst_low", "worst_high"),
            str(row.get("worst_set")),
        )
        for row in event.sweep
    ]
    head = ("missing", "target", "probe", "organ sets", "mean over sets", "worst set", "which keeps")
    return _table("Missing-organ sweep: the same subjects through every set of organs", head, rows)


def _organs(event: ModelEvaluated) -> Table:
    """Attention and contribution beside each other: what is looked at, and what is used."""
    asked = _asked(event.contributions)
    found = {(row.get("target"), row.get("probe"), row.get("organ")): row for row in event.contributions}
    seen = {str(row.get("organ")): row for row in event.attention}
    rows: list[tuple[Cell | str, ...]] = [
        (
            organ,
            *(_score({"value": seen.get(organ, {}).get(name)}) for name in ("share", "lift", "noise_share")),
            _score(seen.get(organ), "drop"),
            *(_score(found.get((*pair, organ)), "shapley") for pair in asked),
        )
        for organ in event.organs
        if event.attention or event.contributions
    ]
    if rows:
        even = [_score(found.get((*pair, "evenness")), "shapley") for pair in asked]
        rows.append(("evenness (1: all alike)", _score(seen.get("evenness of shares"), "share"), *[DASH] * 3, *even))
    head = (
        "organ",
        "attention share",
        "lift",
        "share as noise",
        "fall as noise",
        *(f"Shapley, {', '.join(p)}" for p in asked),
    )
    return _table("What the model attends to, and what the probe uses", head, rows)


def _sites(event: ModelEvaluated) -> Table:
    rows = [
        (
            str(row.get("site")),
            str(row.get("target")),
            count(row.get("labels")),
            count(row.get("subjects")),
            _score(row),
        )
        for row in event.sites
    ]
    head = ("site", "target", "labels compared", "test subjects", "linear probe, AUROC")
    return _table("Sites apart, and how far the worst is below their mean", head, rows)
