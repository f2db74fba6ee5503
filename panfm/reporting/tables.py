"""The tables of the run report, and how its numbers are written: a figure shows the shape, a table gives the number."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import median

from panfm.groups import SHARED_GROUPS
from panfm.reporting.history import (
    ACCEPTED,
    RunHistory,
    Series,
    Trouble,
    best_round,
    finite,
    held_subjects,
    in_ranges,
    organ_mean,
    relative_loss,
    site_series,
)
from panfm.reporting.probes import ProbeRow, best, by_question, probe_rows
from panfm.reporting.record import ProbeTable, RoundEvaluated, SiteAnswered, SiteJoined

DASH = "–"
"""Absent: the site does not hold it, or the record does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str
    shade: float | None = None
    """0 to 1: how dark the cell is; None for none."""
    strong: bool = False
    href: str = ""
    """Address relative to the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row: its header and its cells."""

    header: Cell
    cells: tuple[Cell, ...]
    total: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with row and column headers; a page draws it, a test reads it."""

    caption: str
    head: tuple[str, ...]
    """The first names the row headers."""
    rows: tuple[Row, ...]
    words: bool = False
    """True where cells hold words and not numbers: they then stand on the left."""


def number(value: object, digits: int = 3) -> str:
    """Three significant digits, without an exponent where it can be helped; a dash when there is no number."""
    known = finite(value)
    if known is None:
        return DASH
    if known == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(known)))
    if not -4 <= magnitude < 7:
        return f"{known:.{digits - 1}e}"
    return f"{known:,.{max(0, digits - 1 - magnitude)}f}"


def count(value: object) -> str:
    """A whole number with separators; a dash when there is none."""
    known = finite(value)
    return DASH if known is None else f"{round(known):,}"


def size(num_bytes: object) -> str:
    """Bytes in decimal units."""
    known = finite(num_bytes)
    if known is None:
        return DASH
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if known >= factor:
            return f"{known / factor:.1f} {unit}"
    return f"{known:.0f} B"


def duration(seconds: object) -> str:
    """Seconds in words of at most two units."""
    known = finite(seconds)
    if known is None:
        return DASH
    if known < 60:
        return f"{number(known, 2 if known < 10 else 3)} s"
    minutes, rest = divmod(round(known), 60)
    hours, minutes_rest = divmod(minutes, 60)
    return f"{hours} h {minutes_rest} min" if hours else f"{minutes} min {rest} s"


def moment(stamp: str) -> str:
    """A time of the record as people write it, UTC; as it stands when it is no time."""
    try:
        return f"{datetime.fromisoformat(stamp):%d %B %Y, %H:%M} UTC".lstrip("0")
    except ValueError:
        return stamp


def organ_matrix(history: RunHistory, links: dict[str, str]) -> Table:
    """Which site holds which organs, with subjects where it tells; `links`: site -> address of its own report."""
    rows = [
        Row(
            header=Cell(text=site, href=links.get(site, "")),
            cells=tuple(_held(held_subjects(history, site, organ)) for organ in history.organs),
        )
        for site in history.sites
    ]
    totals = Row(header=Cell(text="all sites"), cells=tuple(_total(history, o) for o in history.organs), total=True)
    return Table(
        caption="Subjects of each site with each organ.",
        head=("site", *history.organs),
        rows=(*rows, totals) if rows else (),
    )


def site_table(history: RunHistory) -> Table:
    """What each site said of itself when it last joined, organs and counts excepted."""
    return Table(
        caption="What each site trains with, and the commonest kind of spacing among its scans of each organ.",
        head=("site", "device", "torch", "panfm", "spacing"),
        rows=tuple(
            Row(
                header=Cell(text=site),
                cells=tuple(Cell(text=text or DASH) for text in _told_of_itself(told)),
            )
            for site, told in sorted(history.joined.items())
        ),
        words=True,
    )


def _told_of_itself(told: SiteJoined) -> tuple[str, ...]:
    kinds: dict[str, list[str]] = {}
    for organ, kind in told.spacing.items():
        kinds.setdefault(kind.replace("_", " "), []).append(organ)
    spacing = "; ".join(f"{kind}: {', '.join(organs)}" for kind, organs in kinds.items())
    return told.device, told.torch_version, told.panfm_version, spacing


def coverage_table(history: RunHistory) -> Table:
    """What each organ got of a run that has ended, beside what it needed."""
    rows = history.finish.coverage if history.finish is not None else []
    window = finite(rows[0].get("window")) if rows else None
    where = f"every {window:.0f} rounds in a row" if window else "the run"
    names = ("offered_by", "needed", "fewest", "sites", "rounds")
    return Table(
        caption=f"Sites whose training of an organ counted; needed in {where}. In bold: fewer than needed.",
        head=("organ", "offered by", "needed", "fewest in a window" if window else "reached", "in the run", "rounds"),
        rows=tuple(
            Row(
                header=Cell(text=str(row.get("organ", DASH))),
                cells=tuple(Cell(text=count(row.get(name)), strong=name == "fewest" and _poor(row)) for name in names),
            )
            for row in rows
        ),
    )


def _poor(row: Mapping[str, object]) -> bool:
    return (finite(row.get("fewest")) or 0) < (finite(row.get("needed")) or 0)


def trouble_table(troubles: Sequence[Trouble], who: str) -> Table:
    """Who, what, when and why."""
    return Table(
        caption="What did not count, and why." if who == "site" else "Groups that stayed bit for bit as they were.",
        head=(who, "what", "rounds", "reason"),
        rows=tuple(
            Row(
                header=Cell(text=trouble.who),
                cells=(
                    Cell(text=trouble.what.replace("_", " ")),
                    Cell(text=in_ranges(trouble.rounds) or "at the start"),
                    Cell(text=trouble.reason or "no reason in the record"),
                ),
            )
            for trouble in troubles
        ),
        words=True,
    )


def unreported_table(troubles: Sequence[Trouble]) -> Table:
    """Who did not report on a model, what came instead, when and why."""
    return replace(trouble_table(troubles, "site"), caption="Reports that did not count, and why.")


def loss_table(history: RunHistory) -> Table:
    """First and last loss of each site, and the last as a share of the collapse loss."""
    return Table(
        caption="Loss of each site in the first and the last round in which its answer counted.",
        head=("site", "rounds", "loss, first", "loss, last", "patches, last", "organs, last", "constant", "ratio"),
        rows=tuple(
            Row(header=Cell(text=site), cells=_losses(history, site)) for site in history.sites if _seen(history, site)
        ),
    )


def organ_table(history: RunHistory) -> Table:
    """Every organ's figures in the last round that told them: mean over sites, weighted by subjects."""
    metrics = ("share", "lift", "masked_rate", "spread", "effective_rank")
    return Table(
        caption="Each organ in the last round that told the figure: mean over its sites, weighted by subjects.",
        head=("organ", "share of attention", "lift", "masked rate", "spread", "effective rank"),
        rows=tuple(
            Row(
                header=Cell(text=organ),
                cells=tuple(Cell(text=number(_last(organ_mean(history, metric, organ)))) for metric in metrics),
            )
            for organ in history.organs
        ),
    )


def evaluation_table(history: RunHistory) -> Table:
    """Every evaluation: who reported, the losses and the probes, over all sites; the best round in bold."""
    labels = sorted({label for told in history.evaluations.values() for label in told.metrics.get("probes", {})})
    best = best_round(history)
    return Table(
        caption="Held-out subjects of all sites that reported, after each evaluated round; the best round in bold.",
        head=("round", "sites", "loss", "patches", "organs", "constant", "ratio", *labels),
        rows=tuple(
            Row(
                header=Cell(text=f"{number}, the best" if number == best else str(number), strong=number == best),
                cells=tuple(Cell(text=text, strong=number == best) for text in _evaluation(told, labels)),
            )
            for number, told in sorted(history.evaluations.items())
        ),
    )


def _evaluation(told: RoundEvaluated, labels: Sequence[str]) -> list[str]:
    losses = [number(told.metrics.get(name)) for name in ("loss", "loss_patch", "loss_organ", "collapse_loss")]
    probes = [number(told.metrics.get("probes", {}).get(label)) for label in labels]
    return [str(len(told.sites)), *losses, number(relative_loss(told.metrics)), *probes]


def weights_table(history: RunHistory) -> Table:
    """Sites by groups in the last averaged round, in percent."""
    if not history.averages:
        return Table(caption="", head=(), rows=())
    last = max(history.averages)
    weights = history.averages[last].weights
    groups = [group for group in history.groups if group in weights]
    return Table(
        caption=f"Weight of each site in each group in round {last}, in percent; each column sums to 100.",
        head=("site", *groups),
        rows=tuple(
            Row(header=Cell(text=site), cells=tuple(_weight(weights[group].get(site)) for group in groups))
            for site in history.sites
        ),
    )


def cost_table(history: RunHistory) -> Table:
    """Time and traffic of each site over the run."""
    by_site = {site: [a for (_, who), a in history.answers.items() if who == site] for site in history.sites}
    everything = [answer for answers in by_site.values() for answer in answers]
    rows = [Row(header=Cell(text=site), cells=_costs(answers)) for site, answers in by_site.items() if answers]
    total = Row(header=Cell(text="all sites"), cells=_costs(everything), total=True)
    return Table(
        caption="Time and traffic of each site. Seconds run from the sending of a task to its answer.",
        head=("site", "tasks", "accepted", "seconds, median", "seconds, most", "steps", "down", "up"),
        rows=(*rows, total) if rows else (),
    )


def round_matrices(history: RunHistory) -> tuple[Table, ...]:
    """Rounds by sites, one table each: loss, seconds, bytes down, bytes up."""
    wanted: tuple[tuple[str, Callable[[SiteAnswered], str]], ...] = (
        ("Loss (weighted sum of the terms) per round and site.", lambda a: number(a.metrics.get("loss"))),
        ("Seconds to the answer per round and site.", lambda a: number(a.seconds)),
        ("Sent down to the site per round.", lambda a: size(a.bytes_down)),
        ("Sent up by the site per round.", lambda a: size(a.bytes_up)),
    )
    return tuple(
        Table(
            caption=caption,
            head=("round", *history.sites),
            rows=tuple(
                Row(
                    header=Cell(text=str(round_)),
                    cells=tuple(Cell(text=_told(history, round_, site, tell)) for site in history.sites),
                )
                for round_ in history.rounds
            ),
        )
        for caption, tell in wanted
    )


def probe_table(table: ProbeTable) -> Table:
    """Targets by embeddings: value and interval as they stand in the record; the best of a row in bold."""
    rows = probe_rows(table)
    embeddings = list(dict.fromkeys(row.embedding for row in rows))
    return Table(
        caption=(
            f"{table.title}: {count(table.num_train)} subjects to fit the probe, {count(table.num_test)} to test it. "
            "In brackets the 95 % interval; the best of a row is bold."
        ),
        head=("target", "metric", *embeddings),
        rows=tuple(
            Row(
                header=Cell(text=target),
                cells=(Cell(text=metric), *(_answer(answers, embedding) for embedding in embeddings)),
            )
            for (target, metric), answers in by_question(rows).items()
        ),
    )


def parameter_table(history: RunHistory) -> Table:
    """Parameters of each group, and which sites are sent it."""
    parameters = history.start.group_parameters if history.start else {}
    total = sum(finite(value) or 0.0 for value in parameters.values())
    rows = [
        Row(
            header=Cell(text=group),
            cells=(
                Cell(text=count(parameters[group])),
                Cell(text=f"{100 * (finite(parameters[group]) or 0) / total:.1f} %" if total else DASH),
                Cell(text=_holders(history, group)),
            ),
        )
        for group in parameters
    ]
    everything = (Cell(text=count(total)), Cell(text="100 %"), Cell(text=""))
    return Table(
        caption="Parameters of each group. A site is sent trunk, heads and the groups of its own organs.",
        head=("group", "parameters", "of the model", "sites that hold it"),
        rows=(*rows, Row(header=Cell(text="all groups"), cells=everything, total=True)) if rows else (),
    )


def _held(subjects: int | None) -> Cell:
    if subjects is None:
        return Cell(text="held", shade=0.25)
    return Cell(text=count(subjects), shade=0.25) if subjects else Cell(text=DASH)


def _total(history: RunHistory, organ: str) -> Cell:
    """A sum of what is told; "at least" where a site holds the organ without telling how many."""
    held = [held_subjects(history, site, organ) for site in history.sites]
    told = sum(subjects for subjects in held if subjects is not None)
    if None not in held:
        return Cell(text=count(told))
    return Cell(text=f"at least {count(told)}" if told else "not told")


def _seen(history: RunHistory, site: str) -> bool:
    return any(who == site and answer.outcome == ACCEPTED for (_, who), answer in history.answers.items())


def _losses(history: RunHistory, site: str) -> tuple[Cell, ...]:
    loss, patch, constant = (site_series(history, site, name) for name in ("loss", "loss_patch", "collapse_loss"))
    last_patch, last_constant = _last(patch), _last(constant)
    ratio = last_patch / last_constant if last_patch is not None and last_constant else None
    values = (_first(loss), _last(loss), last_patch, _last(site_series(history, site, "loss_organ")), last_constant)
    answered = sum(1 for (_, who), a in history.answers.items() if who == site and a.outcome == ACCEPTED)
    return (
        Cell(text=str(answered)),
        *(Cell(text=number(value)) for value in values),
        Cell(text=number(ratio), strong=ratio is not None and ratio >= 1),
    )


def _first(series: Series) -> float | None:
    return series[min(series)] if series else None


def _last(series: Series) -> float | None:
    return series[max(series)] if series else None


def _weight(value: object) -> Cell:
    known = finite(value)
    return Cell(text=DASH) if known is None else Cell(text=f"{100 * known:.1f}", shade=min(max(known, 0.0), 1.0))


def _costs(answers: Sequence[SiteAnswered]) -> tuple[Cell, ...]:
    seconds = [value for answer in answers if (value := finite(answer.seconds)) is not None]
    return (
        Cell(text=count(len(answers))),
        Cell(text=count(sum(answer.outcome == ACCEPTED for answer in answers))),
        Cell(text=number(median(seconds)) if seconds else DASH),
        Cell(text=number(max(seconds)) if seconds else DASH),
        Cell(text=count(_sum(answer.num_steps for answer in answers))),
        Cell(text=size(_sum(answer.bytes_down for answer in answers))),
        Cell(text=size(_sum(answer.bytes_up for answer in answers))),
    )


def _sum(values: Iterable[object]) -> float:
    return sum(finite(value) or 0.0 for value in values)


def _told(history: RunHistory, number_: int, site: str, tell: Callable[[SiteAnswered], str]) -> str:
    answer = history.answers.get((number_, site))
    return DASH if answer is None else tell(answer)


def _answer(answers: Sequence[ProbeRow], embedding: str) -> Cell:
    own = [row for row in answers if row.embedding == embedding]
    strong = any(row is best(answers) for row in own)
    return Cell(text="; ".join(map(_value_and_interval, own)) or DASH, strong=strong)


def _value_and_interval(row: ProbeRow) -> str:
    interval = "" if row.low is None or row.high is None else f" ({number(row.low)} to {number(row.high)})"
    return f"{number(row.value)}{interval}"


def _holders(history: RunHistory, group: str) -> str:
    if group in SHARED_GROUPS:
        return "all"
    return count(sum(held_subjects(history, site, group) != 0 for site in history.sites))
