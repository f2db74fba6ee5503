"""Pretend records with plausible numbers: small functions, so that a test can say what is odd about its run."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from panfm.organs import SEVEN_ORGANS
from panfm.randomness import stream
from panfm.reporting import record

HOLDINGS = (
    ("brain", "heart"),
    ("brain",),
    ("heart", "adipose", "liver"),
    ("liver", "kidney", "spleen", "pancreas", "adipose"),
    ("kidney",),
    ("brain", "heart", "adipose", "liver", "kidney", "spleen", "pancreas"),
)
NAMES = ("neuro_cardiac", "brain_north", "heart_centre", "abdominal_centre", "kidney_centre", "university")
RECIPE = """recipe: demo
seed: 7
rounds: {rounds}
organs:
""" + "".join(f"  {organ}:\n    shape: [32, 32, 32]\n    spacing_mm: [4.0, 4.0, 4.0]\n" for organ in SEVEN_ORGANS)

WriteRecord = Callable[..., Path]


def run_started(rounds: int, run: str = "demo-run") -> record.RunStarted:
    groups = {"trunk": 449_000, "heads": 112_500, **dict.fromkeys(SEVEN_ORGANS, 62_300)}
    return record.RunStarted(
        run=run,
        recipe=RECIPE.format(rounds=rounds),
        seed=7,
        rounds=rounds,
        panfm_version="0.1.0",
        torch_version="2.13.0",
        flower_version="1.41.0",
        group_parameters=groups,
    )


def holdings(num_sites: int) -> dict[str, tuple[str, ...]]:
    names = [NAMES[i] if i < len(NAMES) else f"hospital_{i:02d}" for i in range(num_sites)]
    return {name: HOLDINGS[i % len(HOLDINGS)] for i, name in enumerate(names)}


def subjects(site: str, organ: str) -> int:
    return int(stream(1, site, organ).integers(12, 60))


def train_metrics(site: str, organs: Sequence[str], number: int, rounds: int) -> dict[str, Any]:
    """Figures of a run that learns: the loss falls, the rank rises, attention settles."""
    draw = stream(2, site, number)
    age = number / max(rounds, 6)
    raw = {o: (1.5 + math.sin(len(o)) * age) * math.exp(draw.normal(0, 0.05)) for o in organs}
    share = {o: value / sum(raw.values()) for o, value in raw.items()}
    several = len(organs) > 1
    patch = 0.42 * math.exp(-1.4 * age) + 0.06 + draw.normal(0, 0.006)
    return {
        "loss": patch + (0.02 if several else 0.0),
        "loss_patch": patch,
        "loss_organ": 0.2 * math.exp(-age) if several else None,
        "collapse_loss": 0.40 - 0.08 * age,
        "gradient_norm": 0.8,
        "share": share,
        "lift": {o: value * len(organs) for o, value in share.items()},
        "masked_rate": {o: (0.25 * share[o] * len(organs) if several else 0.0) for o in organs},
        "share_entropy": 0.93 - 0.1 * age if several else None,
        "effective_rank": {o: 8 + 20 * age + draw.normal(0, 0.5) for o in organs},
        "spread": {o: 0.55 + 0.3 * age + draw.normal(0, 0.01) for o in organs},
        "seconds": 4.0,
    }


def answered(
    site: str, organs: Sequence[str], number: int, rounds: int, outcome: str = "accepted", reason: str = ""
) -> record.SiteAnswered:
    counts = {organ: subjects(site, organ) for organ in organs}
    good = outcome == "accepted"
    return record.SiteAnswered(
        round=number,
        site=site,
        outcome=outcome,
        reason=reason,
        seconds=4.0 + len(organs) * 1.7 + float(stream(3, site, number).uniform(0, 1.5)),
        bytes_down=8 * (561_500 + 62_300 * len(organs)),
        bytes_up=4 * (561_500 + 62_300 * len(organs)) if good else 0,
        num_subjects=max(counts.values(), default=0),
        organ_subjects=counts if good else {},
        num_steps=20 if good else 0,
        metrics=train_metrics(site, organs, number, rounds) if good else {},
    )


def round_finished(number: int, answers: Sequence[record.SiteAnswered], rounds: int) -> record.RoundFinished:
    good = [answer for answer in answers if answer.outcome == "accepted"]
    votes: dict[str, dict[str, float]] = {g: {a.site: float(a.num_subjects) for a in good} for g in ("trunk", "heads")}
    for organ in SEVEN_ORGANS:
        votes[organ] = {a.site: float(a.organ_subjects[organ]) for a in good if organ in a.organ_subjects}
    weights = {group: {site: vote / sum(of.values()) for site, vote in of.items()} for group, of in votes.items() if of}
    return record.RoundFinished(
        round=number,
        seconds=max((answer.seconds for answer in answers), default=0.0),
        weights=weights,
        unchanged_groups={g: "no site that trained it was accepted" for g, of in votes.items() if not of},
        delta_norm={group: 2.0 * math.exp(-number / max(rounds, 4)) for group in weights},
        model_digest=f"{number:064x}",
    )


def coverage(organ: str, sites: int) -> dict[str, Any]:
    """A row of `RunFinished.coverage`."""
    return {"organ": organ, "offered_by": sites, "needed": 1, "fewest": sites, "sites": sites, "rounds": 5, "window": 3}


def probe_tables() -> list[record.ProbeTable]:
    values = {"trained": 0.71, "untrained": 0.55, "PCA + linear on raw crops": 0.66, "trivial: mean age": 0.5}
    targets = ("mean of 13 categories", "metabolic", "cardiac", "renal", "neurological", "hepatic")
    rows = [
        {"embedding": e, "target": t, "metric": "AUC", "value": v - i * 0.01, "low": v - 0.06, "high": v + 0.04}
        for i, t in enumerate(targets)
        for e, v in values.items()
    ]
    rows += [
        {"embedding": e, "target": "age", "metric": "MAE", "value": 14 - 9 * v, "low": 13 - 9 * v, "high": 15.5 - 9 * v}
        for e, v in values.items()
    ]
    note = "Ridge on frozen subject embeddings; the penalty was chosen on the probe-training subjects."
    return [record.ProbeTable(title="Synthetic test subjects", num_train=200, num_test=200, rows=rows, note=note)]


def run_events(num_sites: int = 6, rounds: int = 5, troubled: bool = True) -> list[record.Event]:
    """A whole run; with trouble, some sites fail, refuse, come late, and the pancreas goes untrained once."""
    held = holdings(num_sites)
    events: list[record.Event] = [run_started(rounds)]
    for place, (site, organs) in enumerate(held.items()):
        told = {} if place == 4 else {organ: subjects(site, organ) for organ in organs}
        events.append(
            record.SiteJoined(
                site=site,
                organs=list(organs),
                panfm_version="0.1.0",
                num_subjects=told,
                torch_version="2.13.0",
                device="cuda" if place == 1 else "cpu",
                spacing={organ: "resampled" if organ == "brain" else "thick_4" for organ in organs if told},
            )
        )
    if troubled:
        events.append(record.SiteRejected(site="old_clinic", reason="speaks protocol 0, needs 1; update panfm"))
    for number in range(1, rounds + 1):
        events.append(record.RoundStarted(round=number, sites=list(held)))
        answers = [answered(site, organs, number, rounds) for site, organs in held.items()]
        if troubled:
            answers = [_trouble(answer, held, number, rounds) for answer in answers]
        events += [*answers, round_finished(number, answers, rounds)]
    finished = record.RunFinished(
        status="complete",
        reason="",
        rounds_done=rounds,
        seconds=38.4 * rounds,
        model="model",
        coverage=[coverage(organ, sum(organ in organs for organs in held.values())) for organ in SEVEN_ORGANS],
    )
    return [*events, *probe_tables(), finished]


def _trouble(
    answer: record.SiteAnswered, held: dict[str, tuple[str, ...]], number: int, rounds: int
) -> record.SiteAnswered:
    odd = {
        ("heart_centre", 2): ("late", "no answer within 60 s"),
        ("kidney_centre", 3): ("refused", "the policy allows 2 rounds a day and both were answered"),
        ("brain_south", 4): ("left_out", "the delta of group trunk has norm 2.1e4, the recipe allows 1000"),
        ("heart_centre", 4): ("failed", "DataError: the prepared store is missing; run panfm data prepare"),
        ("university", 4): ("failed", "the site's disk is full: free 2 GB below its folder"),
    }
    if (answer.site, number) not in odd:
        return answer
    outcome, reason = odd[(answer.site, number)]
    return answered(answer.site, held[answer.site], number, rounds, outcome, reason)


@pytest.fixture
def write_record(tmp_path: Path) -> WriteRecord:
    """Writes events as the coordinator would, one second apart, and returns the folder of the run."""

    def write(events: Sequence[record.Event], folder: str = "demo-run") -> Path:
        return save_record(tmp_path / folder, events)

    return write


def save_record(run_folder: Path, events: Sequence[record.Event]) -> Path:
    run_folder.mkdir(parents=True, exist_ok=True)
    began = datetime(2026, 3, 4, 9, 30, tzinfo=UTC)
    lines = [record.to_line(event, began + timedelta(seconds=i)) for i, event in enumerate(events)]
    (run_folder / "record.jsonl").write_text("\n".join(lines) + "\n")
    return run_folder


class Page(HTMLParser):
    """What a test asks of a page: its tables as text, its tags with their attributes, and the words outside tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words = ""
        self._caption, self._rows = "", list[list[str]]()
        self._cell: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th", "caption"):
            self._cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._rows[-1].append("".join(self._cell or []).strip())
        elif tag == "caption":
            self._caption = "".join(self._cell or []).strip()
        elif tag == "table":
            self.tables[self._caption] = self._rows
        if tag in ("td", "th", "caption"):
            self._cell = None

    def table(self, caption_start: str) -> dict[str, dict[str, str]]:
        """Row header -> column header -> text, of the one table whose caption starts so."""
        (rows,) = (rows for caption, rows in self.tables.items() if caption.startswith(caption_start))
        return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attributes[name] for found, attributes in self.tags if found == tag and name in attributes]


@pytest.fixture(scope="session")
def read_page() -> Callable[[Path], Page]:
    return lambda path: Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def save_run() -> Callable[[Path, Sequence[record.Event]], Path]:
    """`save_record`: for a run that several tests look at."""
    return save_record


@pytest.fixture(scope="session")
def pretend_run() -> Callable[..., list[record.Event]]:
    """`run_events`: a whole pretend run."""
    return run_events
