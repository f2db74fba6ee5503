"""What a coordinator's runtime starts, in which order, and that Flower's open interfaces stay on loopback."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

from deploy.chores import Chore
from deploy.coordinator.runtime.serve import answers, programs
from panfm.coordinator.settings import CoordinatorSettings

FOLDER = Path("/srv/study")
SETTINGS = CoordinatorSettings(study="trial", address="study.example.org:8443", superlink_port=19091)


def test_superlink_listens_on_loopback_with_all_that_keeps_strangers_out() -> None:
    superlink, superexec = programs(FOLDER, SETTINGS, Chore("registration", 1.0, list))
    words = " ".join(superlink.command)
    for option in (
        "--host 127.0.0.1 --port 19091",
        "--enable-supernode-auth",
        "--isolation process",
        f"--superexec-auth-secret-file {FOLDER}/secrets/superexec.secret",
        "--disable-runtime-dependency-installation",
        f"--database {FOLDER}/flower/state.db",
        f"--ssl-keyfile {FOLDER}/secrets/loopback.key",
    ):
        assert option in words
    assert "--insecure" not in [*superlink.command, *superexec.command]
    assert "--runtime-api-address 127.0.0.1:19091" in " ".join(superexec.command)
    for program in (superlink, superexec):
        assert Path(program.command[3]).is_file()


def test_no_task_is_started_before_sites_were_let_in_or_out() -> None:
    registration = Chore("registration", 1.0, list)
    superlink, superexec = programs(FOLDER, SETTINGS, registration)
    assert (superlink.may_start(), superexec.may_start()) == (True, False)
    registration.turn()
    assert superexec.may_start()


def test_superlink_that_is_not_there_does_not_answer(tmp_path: Path) -> None:
    assert not answers(tmp_path, SETTINGS)  # not even a certificate
