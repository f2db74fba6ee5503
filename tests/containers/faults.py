"""The fault matrix: each fault done to real containers in a study of three rounds, and what became of it, into deploy/FAULTS.md.

python -m tests.containers.faults                  every row that was not made yet, then the table
python -m tests.containers.faults --rows kill,pause    rows whose name begins so, in this order; --again makes them anew
python -m tests.containers.faults --table          only the table, from the rows that were made

A row is a file below runs/faults/, so the matrix can be made in parts. Each row's run must end as its promise says; a row that
does not is written down as it came, with the ends of the logs beside it.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.containers import disturbances as do
from tests.containers.cohort import HOSPITALS
from tests.containers.deployment import Deployment
from tests.containers.engine import EngineError, why_not
from tests.containers.scene import ROUNDS, Fault, Outcome, Scene, answering, round_begun, training

ROOT = Path(__file__).resolve().parents[2]
ROWS, TABLE = ROOT / "runs" / "faults", ROOT / "deploy" / "FAULTS.md"
SITES = HOSPITALS[:3]
DISK_MB = 300
HELD, FAILED, NOT_MADE = "held", "failed", do.NOT_MADE


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the matrix."""

    name: str
    fault: str
    promise: str
    happened: str
    measured: str
    verdict: str
    at: str = ""


KEPT_OUT = "it is not let in, the others go on, and the message names the cause"
GOES_ON = "nothing lost, nothing counted twice, the run goes on"
SEEN = "no site talks to it; preflight names it"


def faults() -> list[Fault]:
    """All rows, the most important first; the last changes the deployment for good."""
    return [*_kills(), *_restarts(), *_certificates(), *_identities(), *_network(), *_machine(), *_last()]


def _kills() -> Iterator[Fault]:
    promise = "no answer lost or counted twice; started again by itself; the same model"
    moments = {"as a round begins": round_begun, "while the site trains": training, "as its answer leaves": answering}
    programs = {
        "site-app": ("a site's app", do.site_app),
        "supernode": ("a site's SuperNode", do.supernode),
        "superexec": ("a site's SuperExec", do.superexec),
        "serverapp": ("the ServerApp", do.server_app),
        "superlink": ("the SuperLink", do.superlink),
    }
    for key, (program, find) in programs.items():
        for place, (when, moment) in enumerate(moments.items(), start=1):
            yield Fault(f"kill-{key}-{place}", f"kill -9 of {program} {when}", promise, do.killed(find, moment))


def _restarts() -> Iterator[Fault]:
    for number in range(1, ROUNDS + 1):
        words = f"the coordinator's containers restart in round {number} of {ROUNDS}"
        yield Fault(f"restart-{number}", words, GOES_ON, do.restarted(number))


def _certificates() -> Iterator[Fault]:
    shown = {
        "foreign": "of an authority that the study does not know",
        "self-signed": "signed by itself",
        "expired": "that has expired",
        "wrong-name": "for another host",
    }
    for kind, words in shown.items():
        yield Fault(f"certificate-{kind}", f"the proxy shows a certificate {words}", SEEN, do.wrong_certificate(kind))


def _identities() -> Iterator[Fault]:
    refused = ("2004", "Failed to activate")
    unknown, copied = do.stranger(do.with_key_of_its_own, refused), do.stranger(do.as_it_is, refused)
    yield Fault("key-unknown", "a node with a key that nobody admitted", KEPT_OUT, unknown)
    yield Fault("key-of-another", "a node with a connected site's key", KEPT_OUT, copied)
    named = do.turned_away(do.another_name, ("its node key",))
    yield Fault("name-of-another", "a site that calls itself otherwise than it was admitted", KEPT_OUT, named)
    older = do.turned_away(do.old_protocol, ("protocol",))
    yield Fault("old-version", "a site with an older protocol", KEPT_OUT, older)
    unapproved = do.turned_away(do.unapproved, ("bundle", "approved"))
    yield Fault("bundle-not-approved", "a site that did not approve the study's code", KEPT_OUT, unapproved)
    yield Fault("clock", "a site's clock is an hour ahead", KEPT_OUT, do.clock_off)


def _network() -> Iterator[Fault]:
    named = f"{GOES_ON}; its late answer is named and kept out"
    yield Fault("pause", "a site's machine hangs for longer than the deadline", named, do.paused)
    yield Fault("network-cut", "a site's network is cut for 20 s as its answer leaves", GOES_ON, do.cut_and_healed)
    lossy, slow = do.slow_and_lossy(0.05), do.slow_and_lossy(0.01, "1600kbit")
    yield Fault("network-loss", "5 % of what a site sends is lost", GOES_ON, lossy)
    yield Fault("network-slow", "a site sends 200 kB/s and 1 % is lost", GOES_ON, slow)


def _machine() -> Iterator[Fault]:
    yield Fault("disk-site", "a site's disk is full", f"{GOES_ON}; the site says why", do.disk_full_at_site)
    resumable = "the run says why, and goes on when there is room"
    yield Fault("disk-coordinator", "the coordinator's disk is full", resumable, do.disk_full_at_coordinator)
    yield Fault("database", "the SuperLink's database is locked for 10 s", GOES_ON, do.database_locked)
    yield Fault("memory", "a site hits its memory limit while it trains", GOES_ON, do.memory_limit)


def _last() -> Iterator[Fault]:
    yield Fault("revoked", "a site is revoked while it trains", "out at its next message; the run goes on", do.revoked)


def make(scene: Scene, fault: Fault) -> Row:
    """Do one row; whatever goes wrong with it is its verdict, but where podman did not do what it was told it was not made."""
    try:
        scene.clear()
        outcome = fault.play(scene)
    except EngineError as error:
        outcome = Outcome(happened=str(error).splitlines()[0][:300], measured="", wrong=NOT_MADE)
    except Exception as error:  # the row failed, the others may not
        traceback.print_exc()
        outcome = Outcome(
            happened=f"{type(error).__name__}: {str(error).splitlines()[0]}", measured="", wrong="not as planned"
        )
    verdict = HELD if not outcome.wrong else NOT_MADE if outcome.wrong == NOT_MADE else FAILED
    if verdict == FAILED:
        (ROWS / f"{fault.name}.log").write_text(scene.deployment.logs(80))
    happened = outcome.happened if verdict != FAILED else f"{outcome.happened}. Not as promised: {outcome.wrong}"
    at = datetime.now(UTC).isoformat(timespec="seconds")
    row = Row(
        name=fault.name,
        fault=fault.fault,
        promise=fault.promise,
        happened=happened,
        measured=outcome.measured,
        verdict=verdict,
        at=at,
    )
    (ROWS / f"{fault.name}.json").write_text(json.dumps(asdict(row), indent=1) + "\n")
    return row


def is_made(fault: Fault) -> bool:
    """Whether there is a row of it that says something."""
    kept = ROWS / f"{fault.name}.json"
    return kept.exists() and json.loads(kept.read_text())["verdict"] != NOT_MADE


def write_table() -> None:
    """deploy/FAULTS.md, from the rows that were made."""
    made = {path.stem: Row(**json.loads(path.read_text())) for path in ROWS.glob("*.json")}
    rows = [made.get(fault.name) or _unmade(fault) for fault in faults()]
    lines = [_HEAD, "| fault | promise | what happened | measured | verdict |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (row.fault, row.promise, row.happened, row.measured, row.verdict)
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |")
    TABLE.write_text("\n".join(lines) + "\n")


def _unmade(fault: Fault) -> Row:
    return Row(name=fault.name, fault=fault.fault, promise=fault.promise, happened="", measured="", verdict=NOT_MADE)


_HEAD = """# What happens when something breaks

Made by `make faults`: each fault was done to real containers (coordinator, nginx and three hospitals from the shipped images,
on a network without a route out) in a study of three rounds on real scans. Undisturbed, the same settings give the same model
bit for bit, so a run in which every answer counted must give that model, too. Where a site could not count in a round, the
average must be over those that were accepted, each round must stand on record once, and every audit log must verify. Times
are of a busy machine with two cores. `held`: as promised; `failed`: not; `not made`: not measured yet.
"""


def say(line: str) -> None:
    """To whoever waits for the rows."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Make the rows that were asked for, then the table."""
    parser = argparse.ArgumentParser(description="Make the fault matrix.")
    parser.add_argument("--rows", default="", help="only rows whose name begins with one of these, comma-separated")
    parser.add_argument("--again", action="store_true", help="also rows that were made")
    parser.add_argument("--table", action="store_true", help="only write the table")
    asked = parser.parse_args()
    ROWS.mkdir(parents=True, exist_ok=True)
    named = [fault for begins in asked.rows.split(",") for fault in faults() if fault.name.startswith(begins)]
    todo = [fault for fault in dict.fromkeys(named) if asked.again or not is_made(fault)]
    if asked.table or not todo:
        write_table()
        return 0
    if reason := why_not():
        sys.exit(f"the fault matrix needs containers: {reason}")
    deployment = Deployment(
        data=Path(os.environ.get("PANFM_REAL_DATA", ROOT.parent / "shared" / "data")), disk_mb=DISK_MB, hospitals=SITES
    )
    try:
        deployment.up()
        scene = Scene(deployment)
        scene.be_calm()
        say(f"calm: {scene.calm_s:.0f} s of rounds")
        for fault in todo:
            row = make(scene, fault)
            say(f"{row.verdict:<9}{row.name}: {row.happened} [{row.measured}]")
            write_table()
    finally:
        deployment.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
