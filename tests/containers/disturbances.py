"""How each fault is done: something is killed, cut, filled, exchanged or hung, and put right again where a person would.

Programs are killed by their ids on this machine, and only those inside the test's own containers.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from panfm.reporting.record import AnswersAccepted, RunFinished, SiteRejected
from tests.containers.certificates import write_node_key, write_wrong
from tests.containers.deployment import kill, rounds_of
from tests.containers.engine import INSTALLED, SITE_IMAGE, podman
from tests.containers.scene import ROUNDS, VICTIM, Outcome, Scene, answering, outcome_of, round_begun, training, wait

NOT_MADE = "not made"
"""Said where this machine cannot do a fault."""

# ---- kills ---------------------------------------------------------------------------------------------------------------

Moment = Callable[[Scene, str], None]


def site_app(scene: Scene) -> list[int]:
    """The process in which the victim answers now."""
    deadline = time.monotonic() + 60
    while not (found := scene.deployment.workers(VICTIM)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def supernode(scene: Scene) -> list[int]:
    """The victim's SuperNode."""
    return scene.deployment.processes(VICTIM, "supernode.py")


def superexec(scene: Scene) -> list[int]:
    """The victim's SuperExec; what it started ends with it or by itself."""
    return scene.deployment.processes(VICTIM, "runtime/superexec.py")


def server_app(scene: Scene) -> list[int]:
    """The coordinator's ServerApp."""
    return scene.deployment.workers("coordinator", "server_app.py")


def superlink(scene: Scene) -> list[int]:
    """The coordinator's SuperLink."""
    return scene.deployment.processes("coordinator", "superlink.py")


def killed(find: Callable[[Scene], list[int]], moment: Moment) -> Callable[[Scene], Outcome]:
    """Kill a program at a moment, and let everything else see to it."""

    def play(scene: Scene) -> Outcome:
        name = scene.begin()
        moment(scene, name)
        found = find(scene)
        kill(found)
        at = time.monotonic()
        if not found:
            return Outcome(happened="there was no such process at that moment", measured="", wrong="not done")
        return outcome_of(scene, name, at)

    return play


def restarted(number: int) -> Callable[[Scene], Outcome]:
    """Coordinator and proxy are stopped and started again while a round is under way."""

    def play(scene: Scene) -> Outcome:
        name = scene.begin()
        round_begun(scene, name, number)
        at = time.monotonic()
        for what in ("proxy", "coordinator"):
            podman("stop", "--time", "15", scene.deployment.container(what))
        scene.deployment.start_coordinator()
        scene.told.append(f"containers were down for {time.monotonic() - at:.0f} s")
        return outcome_of(scene, name, at)

    return play


# ---- network -------------------------------------------------------------------------------------------------------------


def paused(scene: Scene) -> Outcome:
    """A site's machine hangs for longer than the round waits."""
    name = scene.begin("federation.round_deadline_s=40")
    training(scene, name)
    at = time.monotonic()
    with _undone(podman("pause", scene.deployment.container(VICTIM)), "unpause", scene.deployment.container(VICTIM)):
        wait(scene, lambda: 2 in rounds_of(scene.deployment.events(name)), name)
    return outcome_of(scene, name, at, absent=(VICTIM,))


def cut_and_healed(scene: Scene) -> Outcome:
    """A site's network goes as its answer leaves, and comes back."""
    name = scene.begin()
    answering(scene, name)
    at = time.monotonic()
    net, container = scene.deployment.engine.name, scene.deployment.container(VICTIM)
    podman("network", "disconnect", "--force", net, container)
    time.sleep(20)
    podman("network", "connect", net, container)
    scene.told.append("cut for 20 s")
    return outcome_of(scene, name, at)


def slow_and_lossy(lost: float, rate: str = "") -> Callable[[Scene], Outcome]:
    """A site behind a bad line for the whole run: what it sends is slowed down where it leaves, and dropped where it arrives.

    Args:
        lost: share of packets.
        rate: in the words of tc; none: as fast as it is.
    """

    def play(scene: Scene) -> Outcome:
        deployment = scene.deployment
        address = _told(
            deployment.container(VICTIM),
            f'{{{{(index .NetworkSettings.Networks "{deployment.engine.name}").IPAddress}}}}',
        )
        drops = ("-s", address, "-m", "statistic", "--mode", "random", "--probability", str(lost), "-j", "DROP")
        there = (
            "nsenter",
            "--target",
            _told(deployment.container("coordinator"), "{{.State.Pid}}"),
            "--net",
            "iptables",
        )
        here = ("nsenter", "--target", _told(deployment.container(VICTIM), "{{.State.Pid}}"), "--net", "tc", "qdisc")
        slows = ("dev", "eth0", "root", "tbf", "rate", rate, "burst", "32kb", "latency", "400ms")
        try:
            refused = _command(*there, "-A", "INPUT", *drops) or (rate and _command(*here, "add", *slows))
            if refused:
                return Outcome(happened=f"this machine cannot do it: {refused}", measured="", wrong=NOT_MADE)
            at = time.monotonic()
            return outcome_of(scene, scene.begin(), at)
        finally:
            _command(*there, "-D", "INPUT", *drops)
            _command(*here, "del", "dev", "eth0", "root")

    return play


# ---- disk, database, memory ----------------------------------------------------------------------------------------------


def disk_full_at_site(scene: Scene) -> Outcome:
    """A site's disk fills up as it trains, and a person makes room after the round."""
    name = scene.begin()
    training(scene, name)
    at = time.monotonic()
    with _filled(scene.deployment.site_folders[VICTIM]):
        wait(scene, lambda: 2 in rounds_of(scene.deployment.events(name)), name)
    return outcome_of(scene, name, at, absent=(VICTIM,))


def disk_full_at_coordinator(scene: Scene) -> Outcome:
    """The coordinator's disk fills up in round 2; a person makes room and resumes the run."""
    name = scene.begin()
    round_begun(scene, name)
    at = time.monotonic()
    with _filled(scene.deployment.coordinator_folder):
        time.sleep(45)
    ends = [event for event in scene.deployment.events(name) if isinstance(event, RunFinished)]
    if ends:
        scene.told.append(f"the run ended: {ends[-1].reason}")
        words = ("panfm", "coordinator", "run", "--folder", "/coordinator", "--no-follow", f"resume={name}")
        scene.deployment.in_coordinator(*words)
    return outcome_of(scene, name, at)


def database_locked(scene: Scene) -> Outcome:
    """Something else holds the SuperLink's database for 10 s."""
    name = scene.begin()
    training(scene, name)
    at = time.monotonic()
    script = (
        "import sqlite3, time; c = sqlite3.connect('/coordinator/flower/state.db'); "
        "c.execute('BEGIN IMMEDIATE'); time.sleep(10)"
    )
    scene.deployment.in_coordinator("python", "-c", script)
    return outcome_of(scene, name, at)


def memory_limit(scene: Scene) -> Outcome:
    """A site's app hits the limit of its container while it trains; whoever it hits is started again."""
    name = scene.begin()
    training(scene, name)
    at = time.monotonic()
    pid = int(_told(scene.deployment.container(VICTIM), "{{.State.Pid}}"))
    before = _memory_of(pid)
    if before is None:
        return Outcome(happened="this machine has no memory group for the container", measured="", wrong=NOT_MADE)
    folder, word, used = before
    limit = _limit_memory(folder / word, used)
    time.sleep(10)
    (folder / word).write_text("max" if word == "memory.max" else "-1")
    scene.told.append(f"limited to {limit / 2**20:.0f} MB of the {used / 2**20:.0f} MB in use, for 10 s")
    return outcome_of(scene, name, at)


def _limit_memory(file: Path, used: int) -> int:
    """Set a limit that the next bytes hit; returns it. Version 1 of the kernel's groups takes none below what is in use."""
    for limit in (int(used * 0.9), used, int(used * 1.02)):
        try:
            file.write_text(str(limit))
        except OSError:
            continue
        return limit
    raise TimeoutError("the memory in use grew faster than it could be limited")


def _memory_of(pid: int) -> tuple[Path, str, int] | None:
    """The memory group of a process: its folder, the name of the limit, and what is in use."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for root, limit, usage in (
            (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
            (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
        ):
            folder = root / path.lstrip("/")
            if ("memory" in controllers or not controllers) and (folder / limit).exists():
                return folder, limit, int((folder / usage).read_text())
    return None


# ---- certificates and identity -------------------------------------------------------------------------------------------


def wrong_certificate(kind: str) -> Callable[[Scene], Outcome]:
    """The proxy shows another certificate; the site must not talk to it, and say why."""

    def play(scene: Scene) -> Outcome:
        deployment, tls = scene.deployment, scene.deployment.coordinator_folder / "tls"
        kept = {name: (tls / name).read_bytes() for name in ("server.pem", "server.key")}
        at = time.monotonic()
        try:
            write_wrong(kind, tls, deployment.coordinator_folder / "secrets")
            _reload(scene)
            deployment.start_site(VICTIM)
            said = deployment.preflight(VICTIM)
            time.sleep(45)
            let_in = VICTIM in scene.deployment.online()
            log = podman("logs", deployment.container(VICTIM), check=False)
        finally:
            for name, content in kept.items():
                (tls / name).write_bytes(content)
            _reload(scene)
        named = _line_with(said.stdout, "certificate", "tls")
        refused = _line_with(
            log.stdout + log.stderr, "certificate verify failed", "CERTIFICATE_VERIFY_FAILED", "hostname"
        )
        deployment.wait_for(lambda: VICTIM in scene.deployment.online(), "the site is back", 300)
        wrong = "the site connected" if let_in else "" if said.returncode and named else "preflight did not name it"
        happened = f"not connected; preflight: {named!r}; SuperNode: {refused!r}; connected again once it was right"
        return Outcome(happened=happened, measured=f"{time.monotonic() - at:.0f} s in all", wrong=wrong)

    return play


def stranger(prepare: Callable[[Scene, Path], None], expected: Sequence[str]) -> Callable[[Scene], Outcome]:
    """A program with a copy of the victim's folder, changed, dials in beside it; it must not be let in."""

    def play(scene: Scene) -> Outcome:
        deployment = scene.deployment
        folder = deployment.engine.limited_folder(f"stranger{scene.number}-{time.monotonic_ns() % 10**6}", 50)
        _command("cp", "--archive", f"{deployment.site_folders[VICTIM]}/.", str(folder))
        prepare(scene, folder)
        before = scene.deployment.online()
        deployment.site_folders["stranger"] = folder
        try:
            deployment.start_site("stranger")
            at = time.monotonic()
            log = ""
            while time.monotonic() - at < 90 and not _line_with(log, *expected):
                time.sleep(3)
                said = podman("logs", deployment.container("stranger"), check=False)
                log = said.stdout + said.stderr
            seconds = time.monotonic() - at
            after = scene.deployment.online()
        finally:
            podman("rm", "--force", "--ignore", "--time", "1", deployment.container("stranger"), check=False)
            del deployment.site_folders["stranger"]
        refused = _line_with(log, *expected)
        wrong = (
            ""
            if before == after and refused
            else f"online before {sorted(before)}, after {sorted(after)}; said {refused!r}"
        )
        return Outcome(happened=f"turned away: {refused!r}", measured=f"{seconds:.0f} s", wrong=wrong)

    return play


def with_key_of_its_own(scene: Scene, folder: Path) -> None:
    """A node key that nobody admitted."""
    for name in ("node.key", "node.pub"):
        (folder / "keys" / name).unlink()
    write_node_key(folder / "keys")


def as_it_is(scene: Scene, folder: Path) -> None:
    """The victim's own key, while the victim is connected."""


def turned_away(change: Callable[[Scene], Callable[[], None]], expected: Sequence[str]) -> Callable[[Scene], Outcome]:
    """The victim is changed so that it must not take part in a run; afterwards it is as before.

    Args:
        change: does it, and returns what undoes it.
        expected: one of these must stand in the reason on record.
    """

    def play(scene: Scene) -> Outcome:
        undo = change(scene)
        at = time.monotonic()
        try:
            scene.deployment.wait_for(lambda: VICTIM in scene.deployment.online(), "the site is online", 300)
            name = scene.begin()
            outcome = outcome_of(scene, name, at, absent=(VICTIM,))
            reasons = [e.reason for e in scene.deployment.events(name) if isinstance(e, SiteRejected)]
        finally:
            undo()
        counted = any(
            VICTIM in one.updates for one in scene.deployment.events(name) if isinstance(one, AnswersAccepted)
        )
        if counted or not any(word in reason for reason in reasons for word in expected):
            return Outcome(
                happened=outcome.happened, measured=outcome.measured, wrong=f"counted: {counted}; reasons {reasons}"
            )
        return outcome

    return play


def old_protocol(scene: Scene) -> Callable[[], None]:
    """The victim runs a panfm whose protocol is older."""
    deployment = scene.deployment
    installed = f"{INSTALLED}/panfm/protocol.py"
    source = podman("exec", deployment.container(VICTIM), "cat", installed).stdout
    changed = source.replace("PROTOCOL_VERSION = ", "PROTOCOL_VERSION = -1 + ", 1)
    assert changed != source
    copy = Path("/var/tmp") / f"{deployment.engine.name}-protocol.py"
    copy.write_text(changed)
    deployment.start_site(VICTIM, "--volume", f"{copy}:{installed}:ro")

    def undo() -> None:
        deployment.start_site(VICTIM)
        copy.unlink()
        deployment.wait_for(lambda: VICTIM in scene.deployment.online(), "the site is back", 300)

    return undo


def unapproved(scene: Scene) -> Callable[[], None]:
    """The victim has approved no bundle."""
    folder = scene.deployment.site_folders[VICTIM] / "approvals"
    aside = folder.with_name("approvals.aside")
    folder.rename(aside)

    def undo() -> None:
        if folder.exists():
            _command("rm", "-r", str(folder))
        aside.rename(folder)

    return undo


def another_name(scene: Scene) -> Callable[[], None]:
    """The victim's own policy calls it by another site's name."""
    policy = scene.deployment.site_folders[VICTIM] / "policy.yaml"
    text = policy.read_text()
    policy.write_text(text.replace(f"site: {VICTIM}", "site: elsewhere", 1))

    def undo() -> None:
        policy.write_text(text)

    return undo


def clock_off(scene: Scene) -> Outcome:
    """A site's clock is an hour ahead: it is kept out, preflight says why, and it is back when the clock is right."""
    library = os.environ.get("PANFM_TEST_FAKETIME", "")
    if not library:
        return Outcome(
            happened="needs libfaketime; name libfaketime.so.1 in PANFM_TEST_FAKETIME", measured="", wrong=NOT_MADE
        )
    deployment = scene.deployment
    fake: tuple[str, ...] = (
        "--volume",
        f"{library}:/faketime.so:ro",
        "--env",
        "LD_PRELOAD=/faketime.so",
        "--env",
        "FAKETIME=+1h",
    )
    fake += ("--env", "FAKETIME_DONT_FAKE_MONOTONIC=1")
    at = time.monotonic()
    try:
        deployment.start_site(VICTIM, *fake)
        time.sleep(60)
        let_in = VICTIM in scene.deployment.online()
        log = podman("logs", deployment.container(VICTIM), check=False)
        options = ("--network", deployment.engine.name, *deployment.site_volume(VICTIM), *fake)
        said = deployment.engine.run(
            SITE_IMAGE, options, ("panfm", "site", "preflight", "--folder", "/site"), check=False
        )
    finally:
        deployment.start_site(VICTIM)
    deployment.wait_for(lambda: VICTIM in scene.deployment.online(), "the site is back", 300)
    named = _line_with(said.stdout, "clock")
    refused = _line_with(log.stdout + log.stderr, "2004", "401", "timestamp", "activate")
    wrong = "it connected" if let_in else "" if said.returncode and named else "preflight did not name it"
    happened = f"not connected; preflight: {named!r}; SuperNode: {refused!r}"
    return Outcome(happened=happened, measured=f"{time.monotonic() - at:.0f} s in all", wrong=wrong)


def revoked(scene: Scene) -> Outcome:
    """The victim is revoked while it trains; the last row, for its key never comes back."""
    name = scene.begin()
    training(scene, name)
    words = ("panfm", "coordinator", "revoke", VICTIM, "--reason", "a test", "--folder", "/coordinator")
    scene.deployment.in_coordinator(*words)
    at = time.monotonic()
    outcome = outcome_of(scene, name, at, absent=(VICTIM,))
    later = [e for e in scene.deployment.events(name) if isinstance(e, AnswersAccepted) and e.round == ROUNDS]
    wrong = outcome.wrong or ("it counted after it was revoked" if any(VICTIM in e.updates for e in later) else "")
    return Outcome(happened=outcome.happened, measured=outcome.measured, wrong=wrong)


# ---- small parts ---------------------------------------------------------------------------------------------------------


def _told(container: str, question: str) -> str:
    """What podman tells of a container."""
    return podman("inspect", "--format", question, container).stdout.strip()


def _reload(scene: Scene) -> None:
    podman("kill", "--signal", "HUP", scene.deployment.container("proxy"))


def _line_with(text: str, *words: str) -> str:
    """The last line that holds one of these words, shortened."""
    found = [line.strip() for line in text.splitlines() if any(word.lower() in line.lower() for word in words)]
    return found[-1][:240] if found else ""


def _command(*words: str) -> str:
    """Run something on this machine; returns what it said when it failed."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr or done.stdout).strip()[:200] or f"code {done.returncode}"


@contextmanager
def _undone(_done: object, *words: str) -> Iterator[None]:
    try:
        yield
    finally:
        podman(*words, check=False)


@contextmanager
def _filled(folder: Path) -> Iterator[None]:
    """Leave no byte free on a folder's disk while the block runs."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb") as file:
            while True:
                file.write(b"\0" * 65536)
                file.flush()
    except OSError:
        pass
    try:
        yield
    finally:
        ballast.unlink()
