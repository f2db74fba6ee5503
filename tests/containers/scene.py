"""Where faults are done: a deployment that rows share, its run without a fault, and what every run must show after a fault.

The undisturbed run is the oracle. Training is the same bit for bit whoever is killed on the way, so a run in which every answer
counted has that run's model, or something was lost or counted twice.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from panfm.reporting.record import (
    AnswersAccepted,
    Event,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunResumed,
    SiteAnswered,
    end_of,
)
from panfm.reporting.telling import line_about
from panfm.site.audit_log import inspect_folder
from panfm.site.identity import read_public_key
from tests.containers.deployment import Deployment, rounds_of
from tests.containers.engine import podman

VICTIM = "east"
"""The site that faults are done to."""
ROUNDS = 3
SETTINGS = (
    f"rounds={ROUNDS}",
    "pretrain.steps_per_round=20",
    "federation.join_timeout_s=300",
    "federation.round_deadline_s=600",
)
_ENDED = re.compile(r"WARNING \w+ (was ended by|ended with code|gives no sign)")
END_S = 1200.0
"""Longest that a row waits for its run."""


@dataclass(slots=True)
class Scene:
    """The deployment that rows share, and its run without a fault."""

    deployment: Deployment
    calm_digest: str = ""
    calm_s: float = 0.0
    number: int = 0
    name: str = ""
    """Of the latest run."""
    told: list[str] = field(default_factory=list)
    """What else a row has to say."""

    def begin(self, *settings: str) -> str:
        """Ask for the next run; returns its name."""
        self.number += 1
        self.told = []
        self.name = f"row{self.number:02d}-{os.getpid()}"
        self.deployment.run(self.name, *SETTINGS, *settings)
        return self.name

    def clear(self) -> None:
        """End a run that a row left behind, and make everything whole for the next row."""
        self.deployment.mend()
        if self.name and end_of(self.deployment.events(self.name)) is None:
            words = ("panfm", "coordinator", "stop", self.name, "--folder", "/coordinator")
            self.deployment.in_coordinator(*words, check=False)
            self.deployment.wait_for(
                lambda: end_of(self.deployment.events(self.name)) is not None, f"run {self.name} stopped", 300
            )

    def be_calm(self) -> None:
        """The run that nobody disturbs."""
        name = self.begin()
        end = self.deployment.wait_for_end(name, END_S)
        assert end.status == "complete", end.reason
        events = self.deployment.events(name)
        self.calm_digest, self.calm_s = _digest(events), _seconds_of_rounds(events)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, what is promised, and how it is done."""

    name: str
    fault: str
    promise: str
    play: Callable[[Scene], Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a fault."""

    happened: str
    measured: str
    wrong: str = ""
    """What the promise lacks; empty when it held."""


# ---- what a run must show ------------------------------------------------------------------------------------------------


def outcome_of(scene: Scene, name: str, fault_at: float, *, absent: Sequence[str] = ()) -> Outcome:
    """Hold a run that is over against what is always promised: nothing lost, nothing twice, the right model.

    Args:
        fault_at: when the fault was done, by the monotonic clock.
        absent: sites that need not have counted in every round.
    """
    end = scene.deployment.wait_for_end(name, END_S)
    seconds = time.monotonic() - fault_at
    events = scene.deployment.events(name)
    everybody = {hospital.site for hospital in scene.deployment.hospitals}
    wrong = [*_wrong_with(events, end, everybody - set(absent)), *_wrong_logs(scene.deployment)]
    if not wrong and all(set(one.updates) == everybody for one in events if isinstance(one, AnswersAccepted)):
        if _digest(events) == scene.calm_digest:
            scene.told.append("the model is bit for bit that of the undisturbed run")
        else:
            wrong.append("every answer counted and yet the model is another")
    lines = [line.words for line in map(line_about, events) if line is not None and line.is_trouble]
    resumed = sum(isinstance(event, RunResumed) for event in events)
    told = [*scene.told, *([f"resumed {resumed} times"] if resumed else []), *dict.fromkeys(lines)]
    told += _restarts_told(scene.deployment, seconds)
    rounds = ", ".join(f"{event.seconds:.0f}" for event in events if isinstance(event, RoundFinished))
    measured = f"{seconds:.0f} s from the fault to the run's end; rounds took {rounds} s, undisturbed {scene.calm_s:.0f} s in all"
    return Outcome(happened="; ".join(told) or "nothing to see", measured=measured, wrong="; ".join(wrong))


def _restarts_told(deployment: Deployment, seconds: float) -> Iterator[str]:
    """What the runtimes said of programs that ended, since then."""
    for what in ("coordinator", VICTIM):
        said = podman("logs", "--since", f"{seconds + 2:.0f}s", deployment.container(what), check=False)
        for line in (said.stdout + said.stderr).splitlines():
            if _ENDED.search(line):
                yield f"{what}: {line.partition('WARNING ')[2]}"


def _wrong_with(events: Sequence[Event], end: RunFinished, needed: set[str]) -> Iterator[str]:
    if (end.status, end.rounds_done) != ("complete", ROUNDS):
        yield f"the run is {end.status} after {end.rounds_done} rounds: {end.reason}"
    if rounds_of(events) != list(range(1, ROUNDS + 1)):
        yield f"rounds finished: {rounds_of(events)}"
    for finished in (event for event in events if isinstance(event, RoundFinished)):
        closed = [one.updates for one in events if isinstance(one, AnswersAccepted) and one.round == finished.round]
        if len(closed) != 1:
            yield f"round {finished.round} was closed {len(closed)} times"
        elif {site for weights in finished.weights.values() for site in weights} != set(closed[0]):
            yield f"round {finished.round} averaged others than it accepted"
    for one in (event for event in events if isinstance(event, AnswersAccepted)):
        if missing := needed - set(one.updates):
            yield f"round {one.round} went on without {', '.join(sorted(missing))}"


def _wrong_logs(deployment: Deployment) -> Iterator[str]:
    for site, folder in deployment.site_folders.items():
        if fault := inspect_folder(folder, read_public_key(folder)).fault:
            yield f"the audit log of {site} does not verify: {fault}"


def _digest(events: Sequence[Event]) -> str:
    return [event.model_digest for event in events if isinstance(event, RoundFinished)][-1]


def _seconds_of_rounds(events: Sequence[Event]) -> float:
    return sum(event.seconds for event in events if isinstance(event, RoundFinished))


# ---- moments -------------------------------------------------------------------------------------------------------------


def round_begun(scene: Scene, name: str, number: int = 2) -> None:
    """The tasks of a round go out."""
    wait(
        scene,
        lambda: any(isinstance(e, RoundStarted) and e.round == number for e in scene.deployment.events(name)),
        name,
    )


def training(scene: Scene, name: str) -> None:
    """The victim trains in round 2."""
    round_begun(scene, name)
    wait(scene, lambda: bool(scene.deployment.workers(VICTIM)), name)
    time.sleep(1.0)


def answering(scene: Scene, name: str) -> None:
    """The victim's answer of round 2 is on its way: its log has the entry that goes before."""
    log = scene.deployment.site_folders[VICTIM] / "state" / "audit.log"
    round_begun(scene, name)
    sent = log.read_bytes().count(b'"answer_sent"')
    wait(scene, lambda: log.read_bytes().count(b'"answer_sent"') > sent, name)


def first_answer(scene: Scene, name: str) -> None:
    """The first answer of round 2 is judged."""
    wait(scene, lambda: any(isinstance(e, SiteAnswered) and e.round == 2 for e in scene.deployment.events(name)), name)


def wait(scene: Scene, what: Callable[[], bool], name: str, timeout_s: float = 600.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the moment did not come in run {name}\n{scene.deployment.logs()}")
        time.sleep(0.05)
