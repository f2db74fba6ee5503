"""What starts tasks at both sides: one program that waits, by its full path, and no token on a command line."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResultStatus

from deploy.coordinator.runtime import superexec as coordinator
from deploy.order import Order
from deploy.pinned_flower import SUPEREXEC
from deploy.site.runtime import superexec as site
from deploy.superexec import TaskExecutor, run_superexec, takes_all
from deploy.supervised import BEAT_FILE

TOKEN = "5ec2e7"


def spec(kind: TaskType, **changes: Any) -> ExecutionSpec:
    values: dict[str, Any] = {
        "task_type": kind,
        "runtime_api_address": "127.0.0.1:9094",
        "token": TOKEN,
        "insecure": True,
        "root_certificates_path": None,
        "runtime_dependency_install": True,
        "parent_pid": 4711,
        "suppress_output": True,
        "task_id": 1,
        "fab_hash": "0" * 64,
    }
    return ExecutionSpec(**{**values, **changes})


# ---- what is handed over ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TaskType)
def test_order_says_what_flower_says_of_a_task(kind: TaskType) -> None:
    order = Order.of(spec(kind, insecure=False, root_certificates_path="/etc/ca.pem"))
    assert (order.kind, order.token, order.parent_pid) == (kind.value, TOKEN, 4711)
    assert (order.runtime_api_address, order.insecure, order.root_certificates) == (
        "127.0.0.1:9094",
        False,
        "/etc/ca.pem",
    )
    assert order.to_line().count(b"\n") == 1
    assert Order.from_line(order.to_line()) == order
    assert TOKEN not in repr(order)


@pytest.mark.parametrize("command", [site.GUARD, coordinator.SERVER_APP])
def test_program_that_waits_is_isolated_and_started_without_a_token(command: tuple[str, ...]) -> None:
    python, *options, program = command
    assert (python, options) == (sys.executable, ["-I", "-B"])
    assert Path(program).is_file()


def test_site_hands_all_kinds_on_to_its_guard_and_the_coordinator_one_to_nobody_else() -> None:
    assert {takes_all(kind.value) for kind in TaskType} == {""}
    assert [kind for kind in TaskType if not coordinator.refusal(kind.value)] == [TaskType.SERVER_APP]


# ---- to whom --------------------------------------------------------------------------------------------------------------

_NOTING = """
import os, pathlib, sys, time
time.sleep({slow})
os.write(0, b"!")
for line in os.fdopen(0, "rb", buffering=0, closefd=False):
    with pathlib.Path({noted!r}).open("a") as noted:
        noted.write(f"{{os.getpid()}} {{line.decode()}}")
    if b"flwr-model" in line:
        sys.exit(3)
"""


class _Noting:
    """An executor whose program notes what is ordered under its own number, and ends when a model is."""

    def __init__(self, folder: Path, slow_s: float = 0) -> None:
        self.noted = folder / "noted"
        program = folder / "program.py"
        program.write_text(_NOTING.format(slow=slow_s, noted=str(self.noted)))
        refused = TaskType.AGENT_APP.value
        self.executor = TaskExecutor(
            (sys.executable, "-I", str(program)), lambda kind: "no agents" if kind == refused else ""
        )

    @property
    def waiting(self) -> int:
        return self.executor._waiting.pid

    def orders(self, number: int) -> list[tuple[int, Order]]:
        """The first so many, once they have come."""
        deadline = time.monotonic() + 60
        while not (self.noted.exists() and self.noted.read_text().count("\n") >= number):
            assert time.monotonic() < deadline, "the orders did not arrive"
            time.sleep(0.02)
        lines = [line.split(" ", 1) for line in self.noted.read_text().splitlines()]
        return [(int(process), Order.from_line(line.encode())) for process, line in lines]


@pytest.fixture
def noting(tmp_path: Path) -> Iterator[_Noting]:
    made = _Noting(tmp_path)
    yield made
    made.executor.close()
    made.executor._waiting.wait(60)


def test_all_kinds_are_taken_and_what_is_refused_is_said(noting: _Noting) -> None:
    assert noting.executor.get_eligible_capacity(set(TaskType)) == (set(TaskType), set())
    result = noting.executor.launch(spec(TaskType.AGENT_APP))
    assert (result.status, result.message) == (LaunchResultStatus.FAILED, "no agents")


def test_one_program_gets_all_orders_and_is_replaced_when_it_has_ended(
    noting: _Noting, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        noting.executor.reconcile()
        assert noting.executor.launch(spec(TaskType.CLIENT_APP)).status is LaunchResultStatus.ACCEPTED
    first, second = noting.orders(2)
    assert first == second == (noting.waiting, Order.of(spec(TaskType.CLIENT_APP)))

    noting.executor.launch(spec(TaskType.MODEL))
    noting.orders(3)
    noting.executor._waiting.wait(60)
    noting.executor.reconcile()
    assert caplog.messages == ["the program that waits for tasks ended with code 3; another is started"]
    noting.executor.launch(spec(TaskType.CLIENT_APP))
    *_, last = noting.orders(4)
    assert last[0] == noting.waiting != first[0]


def test_task_is_not_accepted_when_nobody_is_there_to_begin_it(noting: _Noting) -> None:
    noting.executor.reconcile()
    noting.executor._waiting.kill()
    noting.executor._waiting.wait(60)
    result = noting.executor.launch(spec(TaskType.CLIENT_APP))
    assert result.status is LaunchResultStatus.FAILED


def test_no_task_is_asked_for_before_somebody_is_ready_and_meanwhile_there_is_no_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower takes a task away that is not begun within 30 s, and hands it out again."""
    monkeypatch.setenv(BEAT_FILE, str(tmp_path / "beat"))
    slow = _Noting(tmp_path, slow_s=1.0)
    try:
        assert not slow.executor._someone_waits()
        slow.executor.reconcile()
        assert slow.executor._someone_waits()
        assert not (tmp_path / "beat").exists()
    finally:
        slow.executor.close()
    assert slow.executor._waiting.wait(60) == 0, "without orders to come it ends"


# ---- in Flower's program --------------------------------------------------------------------------------------------------


def test_whatever_executor_is_asked_for_ours_is_used(
    noting: _Noting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module: Any = importlib.import_module(SUPEREXEC)
    for name in ("get_executor", "make_simple_http_retry_invoker"):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    made: list[object] = []
    monkeypatch.setattr("flwr.supercore.cli.flower_superexec", lambda: made.append(module.get_executor("kubernetes")))
    monkeypatch.setenv(BEAT_FILE, str(tmp_path / "beat"))
    run_superexec(lambda: noting.executor)
    assert made == [noting.executor]
    assert not (tmp_path / "beat").exists()
    module.make_simple_http_retry_invoker().invoke(lambda: None)  # as it asks for a task
    assert (tmp_path / "beat").exists()


def test_superexec_does_not_start_with_another_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.pinned_flower.FLOWER_VERSION", "1.42.0")
    with pytest.raises(SystemExit, match="guards Flower"):
        run_superexec(lambda: pytest.fail("it started"))
