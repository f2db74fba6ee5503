"""Do models of 350 MB and of 1.4 GB go round through a deployment, with how much memory; and what costs a round its time?

Run `PYTHONPATH=. OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/large_rounds.py [CASE ...] [--quick]` on a machine
that does nothing else (half an hour, 15 GB of memory, 20 GB of disk); a case is measured once and kept below runs/large_rounds,
and the page `benchmarks/large_rounds.md` is made of what is there. With --quick the models are tiny, and nothing is kept.

Each case is a study as it is deployed (`benchmarks.deployed`), on tiny scans and with one optimiser step a round: what is carried
is measured, not what is learned. Parameters travel as fp32.

- *memory*: the peak of every process, by the kernel's count, while the study ran.
- *message*: the largest parcel of tensors that lay at a site or at the coordinator, as it travels.
- *a round's time*, of the site that answered last: from the round's beginning to the task's arrival at the site's code (by its
  audit log), its work there, of which training (as it tells), the way back until the answer is judged, and to the end of the
  round. The *overhead* is the round without training.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.deployed import Deployed, deployed, wait_for
from benchmarks.machine import provenance
from benchmarks.processes import Watch, watching
from panfm.errors import RunError
from panfm.reporting.follow import Entry, RecordTail
from panfm.reporting.record import Event, RoundFinished, RoundStarted, RunStarted, SiteAnswered, end_of, events_of
from panfm.site.audit_entries import ANSWER_SENT, TASK_RECEIVED
from panfm.site.audit_log import LOG, STATE

ROOT = Path(__file__).resolve().parents[1]
TABLE, KEPT = Path(__file__).with_suffix(".md"), ROOT / "runs" / "large_rounds"
QUICK = "--quick" in sys.argv
RUN = "round"
END_S = 7200.0
MOST_MESSAGE_MB, MOST_OVERHEAD_S = 64.0, 15.0
SMALL = ("recipe=smoke", "pretrain.steps_per_round=1", "federation.join_timeout_s=300")
SIZES = {
    "tiny": (),
    "base": ("model=base", "model.width=768", "model.depth=12", "model.adapter_width=96", "model.predictor_width=1536"),
    "large": (
        "model=large",
        "model.width=1024",
        "model.depth=24",
        "model.adapter_width=128",
        "model.predictor_width=2048",
    ),
}
"""The recipe says a width and a depth of its own, so those of the model are said again."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model, how many sites it goes to, and how many rounds."""

    model: str
    sites: int
    rounds: int


CASES = {
    "small": Case("tiny", 4, 8),
    "base": Case("base", 2, 1),
    "large": Case("large", 1, 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Where the time of one round went (seconds), for the site that answered last."""

    to_site: float
    work: float
    training: float
    back: float
    closing: float

    @property
    def overhead(self) -> float:
        """All but training."""
        return self.to_site + self.work + self.back + self.closing - self.training


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of a case."""

    case: str
    provenance: str
    sites: int
    model_mb: float
    down_mb: float
    up_mb: float
    largest_message_mb: float
    peaks_mb: list[tuple[str, float]]
    """Who, and its peak; of sites and nginx the largest."""
    rounds: list[Round]


# ---- measuring -----------------------------------------------------------------------------------------------------------


def measure(name: str, case: Case) -> Measured:
    """One study, brought up for it."""
    words = [*SMALL, f"sites={case.sites}", "cohort.probe_subjects=1", "cohort.test_subjects=1"]
    model = "tiny" if QUICK else case.model
    parcels = ["federation.wire.parcel_mb=0.2"] if QUICK and case.rounds == 1 else []
    asked = [*SMALL, *SIZES[model], *parcels, f"rounds={case.rounds}", f"federation.min_sites={case.sites}"]
    asked += [f"federation.participation.start_sites={case.sites}", "federation.round_deadline_s=3600"]
    with (
        tempfile.TemporaryDirectory(prefix="panfm-large-", dir="/var/tmp") as place,
        deployed(Path(place), words) as up,
    ):
        watch, largest = Watch(up.processes), _Largest(up)
        with watching(watch.look), watching(largest.look):
            up.run(RUN, *asked)
            wait_for(lambda: up.is_over(RUN), "the end of the run", END_S, Path(place))
        return _measured(name, case, up, watch, largest.size_bytes)


class _Largest:
    """The largest parcel that lay anywhere, at a site before its task or at the coordinator before its mean."""

    def __init__(self, up: Deployed) -> None:
        received, sent = f"state/**/round-*/{64 * '[0-9a-f]'}", "state/**/round-*/parcel-*"
        self._places = [(site, pattern) for site in up.sites.values() for pattern in (received, sent)]
        self._places.append((up.run_folder(RUN), "spool/*/.parcels/**/*"))  # beside it lie whole answers, joined
        self.size_bytes = 0
        self._lock = threading.Lock()

    def look(self) -> None:
        for folder, pattern in self._places:
            for path in folder.glob(pattern):
                try:
                    size = path.stat().st_size if path.is_file() else 0
                except OSError:  # it was used up meanwhile
                    continue
                self.size_bytes = max(self.size_bytes, size)
        time.sleep(0.5)  # parcels lie there for seconds


def _measured(name: str, case: Case, up: Deployed, watch: Watch, largest_bytes: int) -> Measured:
    entries = RecordTail(up.run_folder(RUN)).new_entries()
    events: list[Event] = [entry.event for entry in entries]
    end = end_of(events)
    if end is None or end.status != "complete":
        raise RunError(f"the run did not end as it should: {end}")
    answers = events_of(SiteAnswered, events)
    (begun,) = events_of(RunStarted, events)
    return Measured(
        case=name,
        provenance=provenance(),
        sites=case.sites,
        model_mb=4 * sum(begun.group_parameters.values()) / 1e6,
        down_mb=max(answer.bytes_down for answer in answers) / 1e6,
        up_mb=max(answer.bytes_up for answer in answers) / 1e6,
        largest_message_mb=largest_bytes / 1e6,
        peaks_mb=_peaks(watch),
        rounds=[round_of(entries, up, number + 1) for number in range(case.rounds)],
    )


def _peaks(watch: Watch) -> list[tuple[str, float]]:
    """By side and role, all sites taken together."""
    peaks: dict[str, float] = {}
    for (side, role), peak in watch.peak_mb.items():
        who = f"{'coordinator' if side in ('coordinator', 'proxy') else 'site'}: {role}"
        peaks[who] = max(peak, peaks.get(who, 0.0))
    return sorted(peaks.items())


def round_of(entries: Sequence[Entry], up: Deployed, number: int) -> Round:
    """Where the time of a round went, by the record and the audit log of the site that answered last."""
    begun = _moment(entries, RoundStarted, number)
    last = [e for e in entries if isinstance(e.event, SiteAnswered) and e.event.round == number][-1]
    assert isinstance(last.event, SiteAnswered)
    log = list(_logged(up.sites[last.event.site], number))
    came = max(moment for event, moment in log if event == TASK_RECEIVED)
    went = min(moment for event, moment in log if event == ANSWER_SENT and moment > came)  # further parts follow
    return Round(
        to_site=came - begun,
        work=went - came,
        training=float(last.event.metrics["seconds"]),
        back=last.seconds - went,
        closing=_moment(entries, RoundFinished, number) - last.seconds,
    )


def _moment(entries: Sequence[Entry], kind: type[RoundStarted | RoundFinished], number: int) -> float:
    return next(e.seconds for e in entries if isinstance(e.event, kind) and e.event.round == number)


def _logged(site: Path, number: int) -> Iterator[tuple[str, float]]:
    """Event and moment of what the site's audit log says of a round."""
    for line in (site / STATE / LOG).read_text().splitlines():
        entry = json.loads(line)
        if entry["about"].get("round") == number:
            yield entry["event"], datetime.fromisoformat(entry["time"]).timestamp()


# ---- the page ------------------------------------------------------------------------------------------------------------


def page(measured: Sequence[Measured]) -> str:
    """The whole page."""
    who = sorted({name for one in measured for name, _ in one.peaks_mb})
    heads = [f"{one.case}: {one.model_mb:.0f} MB, {one.sites} site{'s' * (one.sites > 1)}" for one in measured]
    lines = ["# Large models through a deployment", ""]
    lines += [f"`{one.case}`: {one.provenance}.  " for one in measured]
    lines += ["", f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(measured)}"]
    lines += [_line("down to a site", [f"{one.down_mb:.1f} MB" for one in measured])]
    lines += [_line("up from a site", [f"{one.up_mb:.1f} MB" for one in measured])]
    lines += [_line("largest message", [f"{one.largest_message_mb:.1f} MB" for one in measured])]
    for name in who:
        peaks = [dict(one.peaks_mb).get(name) for one in measured]
        lines += [_line(f"peak of {name}", ["" if peak is None else f"{peak:.0f} MB" for peak in peaks])]
    lines += [
        "",
        f"| seconds of a round (median after the first) | {' | '.join(heads)} |",
        f"|---|{'---|' * len(measured)}",
    ]
    for part, words in _PARTS.items():
        lines += [_line(words, [f"{_typical(one, part):.1f}" for one in measured])]
    lines += ["", "| held to | at most | measured | holds |", "|---|---|---|---|", *_verdicts(measured), "", _FOOT, ""]
    return "\n".join(lines)


_PARTS = {
    "to_site": "from the round's beginning until the whole task is with the site's code",
    "work": "the site's code: reading, training, packing, signing",
    "training": "of that, training",
    "back": "from the answer's leaving until it is judged, all parts of it",
    "closing": "averaging, checkpoint, end of the round",
    "overhead": "**overhead**: all but training",
}


def _typical(one: Measured, part: str) -> float:
    """The first round of several is left out: programs read their libraries in it."""
    values: list[float] = [getattr(each, part) for each in one.rounds[1:] or one.rounds]
    return statistics.median(values)


def _verdicts(measured: Sequence[Measured]) -> Iterator[str]:
    for one in measured:
        yield _verdict(f"{one.case}: largest message (MB)", MOST_MESSAGE_MB, one.largest_message_mb)
        if one.case == "small":
            yield _verdict("small: overhead of a deployed round (s)", MOST_OVERHEAD_S, _typical(one, "overhead"))


def _verdict(what: str, most: float, came: float) -> str:
    return f"| {what} | {most:g} | {came:.1f} | {'yes' if came <= most else '**NO**'} |"


def _line(head: str, cells: Sequence[str]) -> str:
    return f"| {head} | {' | '.join(cells)} |"


_FOOT = (
    "Memory that a task's process shares with the program it was forked from counts in both. Made by `PYTHONPATH=. "
    "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/large_rounds.py`, whose first paragraph says what is measured."
)


def main() -> None:
    """Measure the cases that were asked for, or are missing; then write the page."""
    asked = [word for word in sys.argv[1:] if not word.startswith("-")]
    if unknown := sorted(set(asked) - CASES.keys()):
        sys.exit(f"no case is called {unknown[0]}; there are {', '.join(CASES)}")
    KEPT.mkdir(parents=True, exist_ok=True)
    measured = []
    for name, case in CASES.items():
        kept = KEPT / f"{name}.json"
        if name in asked or (not asked and (QUICK or not kept.exists())):
            one = measure(name, case)
            if not QUICK:
                kept.write_text(json.dumps(asdict(one), indent=1) + "\n")
            measured.append(one)
        elif kept.exists() and not QUICK:
            measured.append(_read(kept))
    text = page(measured)
    print(text)
    if not QUICK:
        TABLE.write_text(text, encoding="utf-8")


def _read(path: Path) -> Measured:
    words = json.loads(path.read_text())
    rounds = [Round(**one) for one in words["rounds"]]
    return Measured(**words | {"rounds": rounds, "peaks_mb": [(who, peak) for who, peak in words["peaks_mb"]]})


if __name__ == "__main__":
    main()
