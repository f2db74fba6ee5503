"""The record of a run: one JSON object a line, append-only, the one truth about what happened.

Every line has `schema`, `event`, `time` (UTC, ISO 8601) and the fields of its event class below; `RECORD.md` beside this file is
the page for readers, and a test holds the two together. The coordinator writes it (`server/run_record.py`), the reports read
it. Readers skip events they do not know and refuse a newer schema.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from panfm.errors import DataError

SCHEMA = 1
BUDGET_SPENT = "budget_spent"
"""Code of a site's refusal when the round would pass the privacy budget of its policy; `SiteAnswered.reason` begins with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """First line of a run."""

    run: str
    recipe: str
    """The whole recipe as YAML."""
    seed: int
    rounds: int
    panfm_version: str
    torch_version: str
    flower_version: str
    group_parameters: dict[str, int]
    """Number of parameters of each group (trunk, heads, each organ)."""
    init_from: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed:
    """Another process goes on with a run that was killed, stopped or fell short; its sites join anew."""

    run: str
    rounds_done: int
    """From where: the round whose checkpoint was taken over. What the record says of later rounds but the next is void; of the
    next one, the answers that were judged stand."""
    panfm_version: str
    torch_version: str
    flower_version: str
    note: str = ""
    """What the reader should know: a checkpoint that was damaged, a torch that differs from the first process's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteJoined:
    """A site said who it is."""

    site: str
    organs: list[str]
    panfm_version: str
    num_subjects: dict[str, int] = field(default_factory=dict)
    """Subjects per organ, where the site tells; else empty."""
    torch_version: str = ""
    device: str = ""
    """What it trains on: cpu, cuda or another kind that torch knows."""
    spacing: dict[str, str] = field(default_factory=dict)
    """Organ -> the commonest class of voxel spacing among its scans (`panfm.protocol.SPACINGS`), where the site tells."""
    returned: bool = False
    """It had joined this run before: it comes back, or the coordinator does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLeft:
    """A site that took part is no longer connected; it takes its old place when it comes back."""

    site: str
    round: int
    """Round before which it was found to be gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRejected:
    """A site that may not take part, and why."""

    site: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStarted:
    """Tasks went out."""

    round: int
    sites: list[str]
    """Sites that were asked."""
    passed_over: list[str] = field(default_factory=list)
    """Sites that were there and not asked in this round."""
    deadline_s: float | None = None
    """How long the round waits for answers (seconds)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAnswered:
    """What became of one site's task in one round."""

    round: int
    site: str
    outcome: str
    """What became of it.

    accepted | left_out (failed a check) | refused (by the site's policy) | failed (an error at the site) | late (no
    answer in time) | overdue (it came when its round was over, and is kept out).
    """
    reason: str = ""
    """Empty when accepted; else one line for people."""
    seconds: float = 0.0
    """From the sending of the tasks to this answer."""
    bytes_down: int = 0
    bytes_up: int = 0
    num_subjects: int = 0
    organ_subjects: dict[str, int] = field(default_factory=dict)
    num_steps: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    """`panfm.protocol.TrainMetrics` as a dict; empty unless accepted."""
    audit_head: str = ""
    """Head of the site's audit log when it answered, as DIGEST:LENGTH: the witness for `panfm site audit verify`."""
    collapsed: bool = False
    """It was left out because its own training collapsed or diverged."""
    update_digest: str = ""
    """SHA-256 of the update as it came, which the coordinator keeps on disk until the round is done; empty unless accepted."""
    epsilon: float | None = None
    """With privacy: what a subject of the site has lost with this answer in all runs, as its own ledger says; null where it keeps
    no budget. It is spent also where the answer did not count."""
    epsilon_delta: float | None = None
    """The delta at which epsilon and epsilon_budget hold."""
    epsilon_budget: float | None = None
    """The epsilon above which the site's policy refuses."""
    ledger_head: str = ""
    """Head of the site's privacy ledger with this answer in it, as DIGEST:LENGTH: sent back to the site in later tasks, so that a
    ledger that was put back to an older copy is found."""

    @property
    def is_budget_spent(self) -> bool:
        """The site refused because the round would have passed its privacy budget."""
        return self.outcome == "refused" and self.reason.partition(":")[0] == BUDGET_SPENT


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersAccepted:
    """The answers that a round's average stands on, written before the first of them counts: a process that goes on with the
    run averages these and no others."""

    round: int
    updates: dict[str, str]
    """Site -> `update_digest` of its answer. Empty: too few were accepted, and the model stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFinished:
    """The average of a round, and what it stood on."""

    round: int
    seconds: float
    weights: dict[str, dict[str, float]]
    """group -> site -> weight; each group's weights sum to 1. Only groups that changed."""
    unchanged_groups: dict[str, str]
    """group -> why nobody's training of it counted."""
    delta_norm: dict[str, float]
    """group -> L2 norm of the averaged delta."""
    model_digest: str
    """SHA-256 over student and teacher after the round."""
    means: dict[str, str] = field(default_factory=dict)
    """group -> mean, median or trimmed_mean: what its number of voters allowed. Only groups that changed."""
    shortened: dict[str, dict[str, float]] = field(default_factory=dict)
    """group -> site -> what its delta was multiplied with, below 1; only where a norm bound did something."""
    coverage: dict[str, int] = field(default_factory=dict)
    """Organ -> sites whose training of it counted in the window of rounds that ends here (the recipe's
    federation.participation.window; all rounds so far where that is 0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteEvaluated:
    """What became of one site's part in the evaluation of the model after a round."""

    round: int
    site: str
    outcome: str
    """accepted | left_out | refused | failed | late; as in SiteAnswered."""
    reason: str = ""
    """Empty when accepted; else one line for people."""
    seconds: float = 0.0
    """From the sending of the tasks to this answer."""
    bytes_down: int = 0
    bytes_up: int = 0
    num_subjects: int = 0
    """Held-out subjects; a nominal number where the site's policy does not make counts public."""
    organ_subjects: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    """`panfm.protocol.EvaluationMetrics` as a dict; empty unless accepted."""
    audit_head: str = ""
    """As in SiteAnswered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEvaluated:
    """What all sites together said of the model after a round, and which round is the best so far."""

    round: int
    sites: list[str]
    """Sites whose reports counted."""
    metrics: dict[str, Any]
    """Means over those sites, weighted by held-out subjects: loss, loss_patch, loss_organ, collapse_loss, relative_loss,
    share_entropy (each null where nobody told it); by organ, weighted by those who have it: share, lift; and probes, by label."""
    score: float | None
    """What the recipe's federation.evaluation.best_by names, over these sites; null where nobody told it."""
    best_round: int | None
    """The best round so far, by the rule in `panfm/reporting/RECORD.md`; null while there is none."""
    model_digest: str
    """SHA-256 over student and teacher after the round, as in RoundFinished."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTable:
    """What frozen embeddings of held-out subjects say, beside the controls."""

    title: str
    num_train: int
    num_test: int
    rows: list[dict[str, Any]]
    """Each: embedding (trained model, untrained model, ...), target, metric (R2, MAE, AUC), value, low, high (95 % bootstrap
    interval over test subjects), and gain, gain_low, gain_high: the trained model's value minus this one, paired."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEvaluated:
    """What `panfm evaluate` found of a frozen model; the rows are those of `panfm.evaluation.evaluate.Evaluation`."""

    title: str
    model_digest: str
    """SHA-256 of the teacher."""
    settings: dict[str, Any]
    """Splits, resamples and seed of the evaluation."""
    organs: list[str]
    num_fit: int
    """Subjects on whom the probes were fitted."""
    num_test: int
    """Subjects on whom they were tested."""
    num_swept: int
    """Test subjects with all organs, whom the sweep saw through every organ set."""
    scores: list[dict[str, Any]] = field(default_factory=list)
    """One a probe, target and metric: probe, target, metric, value, low, high, chance, positives, known."""
    sweep: list[dict[str, Any]] = field(default_factory=list)
    """One a number of missing organs: probe, target, missing, sets, mean, low, high, worst, worst_low, worst_high, worst_set."""
    robustness: list[dict[str, Any]] = field(default_factory=list)
    """The sweep in a few numbers: probe, target, quantity, value, low, high, set."""
    contributions: list[dict[str, Any]] = field(default_factory=list)
    """One an organ, then the evenness: probe, target, organ, shapley, low, high, alone, lost_without."""
    attention: list[dict[str, Any]] = field(default_factory=list)
    """One an organ, then the evenness of shares: organ, share, lift, noise_share, drop, low, high, fell."""
    sites: list[dict[str, Any]] = field(default_factory=list)
    """One a site, then the gap: target, labels, site, subjects, value, low, high."""
    organ_sets: list[dict[str, Any]] = field(default_factory=list)
    """One an organ set: probe, target, organs, missing, value, low, high."""
    notes: list[str] = field(default_factory=list)
    """What could not be asked, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerAudited:
    """What a run with made-up subjects shows of the private trainer, beside what is claimed. Nobody's budget pays for it."""

    mode: str
    """dp_adapters or dp_full, as the recipe has it."""
    canaries: int
    """Made-up subjects with a gradient of their own, of whom a coin put half in."""
    noise_multiplier: float
    """Of the audit's steps; the study has its own."""
    sampling_rate: float
    """Of the audit's steps."""
    steps: int
    """Of the audit."""
    delta: float
    """Of both epsilons."""
    claimed: float
    """Epsilon of these steps, by the accountant that reports."""
    at_least: float
    """Epsilon that the trainer is shown to have at least."""
    doubt: float
    """Chance that this bound is wrong."""
    signal: float
    """By how much canaries that were in stand out, over what the recipe says; 1 is right."""
    signal_band: float
    """Standard deviation of `signal` for a right trainer."""
    noise: float
    """Standard deviation of the noise, over what is charged; 1 is right."""
    noise_band: float
    """Standard deviation of `noise` for a right trainer."""
    found: list[str] = field(default_factory=list)
    """What does not fit the claim, in words; none: nothing was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultsPlanned:
    """What a rehearsal had go wrong on purpose; written after the run, beside what the coordinator made of it."""

    seed: int
    """Of the plan of faults."""
    faults: list[dict[str, Any]]
    """Each: round, site, kind (`panfm.config.FaultKind`); of sites that were asked in that round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """Last line of a run."""

    status: str
    """complete | incomplete (fell below its coverage, or nobody trained) | stopped (by a person)."""
    reason: str
    rounds_done: int
    seconds: float
    model: str = ""
    """Folder of the exported model, relative to the run."""
    coverage: list[dict[str, Any]] = field(default_factory=list)
    """One an organ: organ, offered_by (sites that ever offered it), needed (sites in every window), fewest (sites in the
    poorest window), sites (whose training of it counted in the run), rounds (in which any counted), window (rounds; 0: all)."""


Event = (
    RunStarted
    | RunResumed
    | SiteJoined
    | SiteLeft
    | SiteRejected
    | RoundStarted
    | SiteAnswered
    | AnswersAccepted
    | RoundFinished
    | SiteEvaluated
    | RoundEvaluated
    | ProbeTable
    | ModelEvaluated
    | TrainerAudited
    | FaultsPlanned
    | RunFinished
)
_EVENTS: dict[str, type[Event]] = {
    "run_started": RunStarted,
    "run_resumed": RunResumed,
    "site_joined": SiteJoined,
    "site_left": SiteLeft,
    "site_rejected": SiteRejected,
    "round_started": RoundStarted,
    "site_answered": SiteAnswered,
    "answers_accepted": AnswersAccepted,
    "round_finished": RoundFinished,
    "site_evaluated": SiteEvaluated,
    "round_evaluated": RoundEvaluated,
    "probe_table": ProbeTable,
    "model_evaluated": ModelEvaluated,
    "trainer_audited": TrainerAudited,
    "faults_planned": FaultsPlanned,
    "run_finished": RunFinished,
}
E_co = TypeVar("E_co", bound=Event)


def to_line(event: Event, time: datetime | None = None) -> str:
    """The event as one line of JSON, without the newline."""
    name = next(name for name, cls in _EVENTS.items() if type(event) is cls)
    stamp = (time or datetime.now(UTC)).isoformat(timespec="milliseconds")
    return json.dumps({"schema": SCHEMA, "event": name, "time": stamp, **asdict(event)})


def append_after_end(path: Path, event: Event) -> None:
    """Add an afterword to the record of a run that is over; while one goes on, its coordinator alone writes.

    Raises: DataError when the record is missing or damaged, or has no end.
    """
    check_over(path)
    with path.open("ab") as file:
        file.write((to_line(event) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def check_over(path: Path) -> None:
    """Raises: DataError when the record is missing or damaged, or its run has no end, or somebody went on with it since."""
    if end_of(list(read_record(path))) is None or not path.read_bytes().endswith(b"\n"):
        raise DataError(f"the run of {path} is not over, and its coordinator writes there; wait until it ends")


def read_record(path: Path) -> Iterator[Event]:
    """The events of a record, in order; a half-written last line (a killed run) is left out.

    Raises: DataError when there is no record, a line is damaged, or it was written by a newer schema.
    """
    if not path.is_file():
        raise DataError(f"no record at {path}; name the folder of a run, which holds record.jsonl")
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            newer = values["schema"] > SCHEMA
            event = None if newer else event_of(values)
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                return
            raise DataError(f"{path.name} line {number} is damaged; restore the file from a copy") from error
        if newer:
            raise DataError(
                f"{path.name} was written by schema {values['schema']}, this panfm reads {SCHEMA}; update panfm"
            )
        if event is not None:
            yield event


def event_of(values: dict[str, Any]) -> Event | None:
    """The event of a line's values; None for a kind that this version does not know.

    Raises: KeyError or TypeError when a field is missing.
    """
    cls = _EVENTS.get(values["event"])
    return None if cls is None else cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def events_of(kind: type[E_co], events: list[Event]) -> list[E_co]:
    """Only the events of one kind, in order."""
    return [event for event in events if isinstance(event, kind)]


def start_of(events: Iterable[Event]) -> RunStarted | None:
    """The start of the run, if it got that far."""
    return next((event for event in events if isinstance(event, RunStarted)), None)


def end_of(events: Sequence[Event]) -> RunFinished | None:
    """The end of the run, unless somebody went on with it afterwards."""
    for event in reversed(events):
        if isinstance(event, RunFinished):
            return event
        if isinstance(event, RunStarted | RunResumed):
            return None
    return None
