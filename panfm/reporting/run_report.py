"""The report of a run: one page that says what happened, to the coordinator and to every hospital that took part.

It is made from the run's `record.jsonl` alone, so it tells what was recorded and cannot tell more: it shows no scan,
and a run that was killed has a report too, which says what is missing. Equal records give equal bytes.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from panfm.reporting import figures, tables
from panfm.reporting.evaluation_figures import FIGURES, evaluation_figures
from panfm.reporting.evaluation_tables import evaluation_tables
from panfm.reporting.history import (
    ACCEPTED,
    RunHistory,
    accepted,
    best_round,
    evaluation_troubles,
    finite,
    held_subjects,
    outcome,
    read_history,
    site_troubles,
    unchanged_groups,
)
from panfm.reporting.page import write_page
from panfm.reporting.probes import probe_rows
from panfm.reporting.record import ModelEvaluated
from panfm.reporting.spending import privacy_facts, spending_by_round, spending_figure, spending_table
from panfm.reporting.svg import house_style, inline_svg
from panfm.reporting.trainer_audit import audit_sentence, audit_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How the run stands, in plain words."""

    word: str
    tone: str
    """good | warning | open: how the page colours it."""
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One probe table with its figure."""

    title: str
    note: str
    table: tables.Table
    figure: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEvaluation:
    """One evaluation of a frozen model, with its tables and figures."""

    event: ModelEvaluated
    tables: tuple[tables.Table, ...]
    figures: dict[str, Markup]


def write_run_report(run_folder: Path) -> Path:
    """Write `report.html` into the folder of a run, from its `record.jsonl`, and return where it lies.

    Raises: DataError when the folder holds no record, or a damaged one.
    """
    history = read_history(run_folder)
    links = site_report_links(run_folder, history.sites)
    with house_style():
        return write_page(run_folder / "report.html", "run_report.html", page_values(history, links))


def page_values(history: RunHistory, links: dict[str, str]) -> dict[str, object]:
    """Everything that the page shows; to be called within `house_style`."""
    start = history.start
    return {
        "name": history.name,
        "start": start,
        "recipe_name": str(history.settings.get("recipe", "")),
        "finish": history.finish,
        "history": history,
        "status": status_of(history),
        "tiles": tiles(history),
        "facts": facts(history),
        "links": links,
        "digest": history.averages[max(history.averages)].model_digest if history.averages else "",
        "troubles": tables.trouble_table(site_troubles(history), "site"),
        "unreported": tables.unreported_table(evaluation_troubles(history)),
        "unchanged": tables.trouble_table(unchanged_groups(history), "group"),
        "privacy_facts": privacy_facts(history),
        "audit_sentence": audit_sentence(history),
        "probes": probes(history),
        "model_evaluations": model_evaluations(history),
        "tables": report_tables(history, links),
        "figures": report_figures(history),
    }


def status_of(history: RunHistory) -> Status:
    """Complete, incomplete, stopped, or without an end; and what that means."""
    planned = history.start.rounds if history.start else None
    done = history.finish.rounds_done if history.finish else len(history.averages)
    counted = planned if planned is not None else done
    words = "round" if counted == 1 else "rounds"
    progress = f"{done} {words}" if planned is None else f"{done} of {planned} {words}"
    finish = history.finish
    if finish is None:
        return Status(word="not finished", tone="open", sentence=_unfinished(history, progress))
    reason = f" {finish.reason.rstrip('.')}." if finish.reason else ""
    if finish.status == "complete":
        lost = _lost(history)
        return Status(word="complete", tone="good", sentence=f"The run did what was asked: {progress}.{reason}{lost}")
    if finish.status == "stopped":
        return Status(word="stopped", tone="warning", sentence=f"A person stopped the run after {progress}.{reason}")
    explained = reason or " The record gives no reason."
    return Status(word=finish.status, tone="warning", sentence=f"The run ended after {progress}.{explained}")


def tiles(history: RunHistory) -> list[tuple[str, str]]:
    """The few numbers at the top: (number, what it counts)."""
    answers = list(history.answers.values())
    counted = sum(answer.outcome == ACCEPTED for answer in answers)
    tasks = max(sum(len(sites) for sites in history.asked.values()), len(answers))
    subjects = {answer.site: finite(answer.num_subjects) or 0 for answer in accepted(history)}
    held = sum(any(held_subjects(history, site, organ) != 0 for site in history.sites) for organ in history.organs)
    moved = sum((finite(a.bytes_down) or 0) + (finite(a.bytes_up) or 0) for a in answers)
    rounds = f"{len(history.averages)}" + (f" of {history.start.rounds}" if history.start else "")
    return [
        (str(len(history.sites)), "site" if len(history.sites) == 1 else "sites"),
        (str(held) if held == len(history.organs) else f"{held} of {len(history.organs)}", "organs held"),
        (tables.count(sum(subjects.values())) if subjects else tables.DASH, "training subjects"),
        (rounds, "rounds averaged"),
        (f"{counted} of {tasks}", "answers counted"),
        (tables.size(moved), "sent in all"),
        (tables.duration(elapsed(history)), "from start to end" if history.finish else "so far"),
    ]


def facts(history: RunHistory) -> list[tuple[str, str]]:
    """What a reader needs to repeat the run."""
    start = history.start
    known = [("started", tables.moment(history.first_time)), ("last written", tables.moment(history.last_time))]
    if start is not None:
        known += [
            ("recipe", str(history.settings.get("recipe", "not named"))),
            ("seed", str(start.seed)),
            ("panfm", start.panfm_version),
            ("torch", start.torch_version),
            ("Flower", start.flower_version),
            ("started from", start.init_from or "a seeded initialisation"),
        ]
    if times := len(history.resumes):
        known.append(("taken up again", "once" if times == 1 else f"{times} times"))
    if history.finish is not None and history.finish.model:
        known.append(("exported model", history.finish.model))
    if (best := best_round(history)) is not None:
        known.append(("best round", f"{best}, kept as best/round-{best:04d}"))
    return [(name, value) for name, value in known if value]


def elapsed(history: RunHistory) -> float | None:
    """Seconds that the run took, or has taken so far."""
    if history.finish is not None:
        return finite(history.finish.seconds)
    try:
        first, last = datetime.fromisoformat(history.first_time), datetime.fromisoformat(history.last_time)
        return (last - first).total_seconds()
    except (ValueError, TypeError):
        return None


def probes(history: RunHistory) -> list[Probe]:
    """Every probe of the record, with its figure."""
    return [
        Probe(
            title=table.title,
            note=table.note,
            table=tables.probe_table(table),
            figure=figures.probe_figure(probe_rows(table), f"probe-{place}"),
        )
        for place, table in enumerate(history.probes)
    ]


def model_evaluations(history: RunHistory) -> list[ModelEvaluation]:
    """Every evaluation of a frozen model, in the order in which they were made."""
    return [
        ModelEvaluation(
            event=event,
            tables=evaluation_tables(event),
            figures=dict.fromkeys(FIGURES, Markup(""))
            | {
                name: inline_svg(figure, f"evaluation-{place}-{name}", words)
                for name, (figure, words) in evaluation_figures(event).items()
            },
        )
        for place, event in enumerate(history.model_evaluations)
    ]


def report_tables(history: RunHistory, links: dict[str, str]) -> dict[str, object]:
    """The page's tables, by name."""
    return {
        "organs_held": tables.organ_matrix(history, links),
        "sites": tables.site_table(history),
        "coverage": tables.coverage_table(history),
        "loss": tables.loss_table(history),
        "evaluations": tables.evaluation_table(history),
        "organs": tables.organ_table(history),
        "weights": tables.weights_table(history),
        "cost": tables.cost_table(history),
        "rounds": tables.round_matrices(history),
        "parameters": tables.parameter_table(history),
        "spending": spending_table(history),
        "spending_by_round": spending_by_round(history),
        "audit": audit_table(history),
    }


def report_figures(history: RunHistory) -> dict[str, Markup]:
    """The page's figures, by name; empty markup where the record holds nothing to draw."""
    organ = figures.organ_figure
    return {
        "answers": figures.answers_figure(history),
        "loss": figures.loss_figure(history),
        "held_out": figures.held_out_figure(history),
        "held_out_probes": figures.held_out_probe_figure(history),
        "share": organ(history, "share", "Share of attention of each organ over rounds"),
        "lift": organ(history, "lift", "Lift of each organ over rounds", reference=1.0),
        "masked_rate": organ(history, "masked_rate", "How often each organ was masked, over rounds"),
        "entropy": figures.entropy_figure(history),
        "spread": organ(history, "spread", "Spread of each organ's patch embeddings over rounds", highest=1.05),
        "effective_rank": organ(history, "effective_rank", "Effective rank of each organ's embeddings over rounds"),
        "weights": figures.weights_figure(history),
        "movement": figures.movement_figure(history),
        "cost": figures.cost_figure(history),
        "spending": spending_figure(history),
    }


def site_report_links(run_folder: Path, sites: tuple[str, ...]) -> dict[str, str]:
    """Site -> relative address of its own report, where a rehearsal left one beside the run."""
    return {
        site: f"hospitals/{quote(site, safe='')}/site_report.html"
        for site in sites
        if _is_folder_name(site) and (run_folder / "hospitals" / site / "site_report.html").is_file()
    }


def _lost(history: RunHistory) -> str:
    lost = sum(outcome(history, n, site) not in (ACCEPTED, "") for n in history.rounds for site in history.sites)
    if not lost:
        return ""
    return f" {lost} {'answer' if lost == 1 else 'answers'} did not count; what needs attention stands below."


def _is_folder_name(site: str) -> bool:
    """A site's name comes from the site: it may not lead out of the run's folder."""
    return site not in ("", ".", "..") and not set(site) & set("/\\\0") and site.isprintable()


def _unfinished(history: RunHistory, progress: str) -> str:
    waiting = [number for number in history.rounds if number not in history.averages]
    where = f" Round {waiting[-1]} had begun." if waiting else ""
    when = f" Last line: {tables.moment(history.last_time)}." if history.last_time else ""
    return (
        f"The record has no end: the run is still going, or it was killed. It averaged {progress}.{where}{when} "
        "Make the report again to see later rounds."
    )
