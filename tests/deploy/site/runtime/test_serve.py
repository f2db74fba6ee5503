"""What a site's runtime starts: programs that listen on loopback alone, over TLS, and hand out nothing without the secret."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deploy.site.runtime.serve import SHORTEST_PAUSE_S, programs
from panfm.site.joining import StudyLink

FOLDER = Path("/srv/north's site")


def _link(*, mutual_tls: bool) -> StudyLink:
    return StudyLink(
        study="trial",
        site="north",
        address="study.example.org:8443",
        mutual_tls=mutual_tls,
        bundle_sha256="0" * 64,
        coordinator="",
        panfm_version="",
        flower_version="",
        protocol_version=1,
        runtime_port=9094,
        health_port=9098,
        forward_port=9443,
    )


def _options(command: tuple[str, ...]) -> dict[str, str]:
    return {word: command[number + 1] for number, word in enumerate(command[:-1]) if word.startswith("--")}


@pytest.mark.parametrize(
    ("mutual_tls", "dials", "trusts"),
    [(False, "study.example.org:8443", "ca.pem"), (True, "127.0.0.1:9443", "local-ca.pem")],
)
def test_site_dials_the_coordinator_or_its_own_forward(mutual_tls: bool, dials: str, trusts: str) -> None:
    supernode, superexec = programs(FOLDER, _link(mutual_tls=mutual_tls))
    said = _options(tuple(supernode.command))
    assert said["--superlink"] == dials
    assert said["--root-certificates"] == str(FOLDER / "study" / trusts)
    assert said["--auth-supernode-private-key"] == str(FOLDER / "keys" / "node.key")
    assert tomllib.loads(said["--node-config"]) == {"site-folder": str(FOLDER)}
    assert (said["--host"], said["--port"], said["--isolation"]) == ("127.0.0.1", "9094", "process")
    assert supernode.shortest_pause_s == SHORTEST_PAUSE_S >= 15

    tasks = _options(tuple(superexec.command))
    assert tasks["--runtime-api-address"] == "127.0.0.1:9094"
    assert tasks["--root-certificates"] == said["--ssl-ca-certfile"] == str(FOLDER / "study" / "local-ca.pem")
    assert tasks["--superexec-auth-secret-file"] == said["--superexec-auth-secret-file"]


def test_programs_are_ours_isolated_and_never_without_tls() -> None:
    for program in programs(FOLDER, _link(mutual_tls=True)):
        _, *isolated, path = program.command[:4]
        assert isolated == ["-I", "-B"]
        assert Path(path).is_file()
        assert not {"--insecure", "--allow-runtime-dependency-installation"} & set(program.command)


ROOT = Path(__file__).resolve().parents[4]
_LIGHT = "import sys; sys.path.append(sys.argv[1]); import {}; print('torch' in sys.modules)"


@pytest.mark.parametrize(
    "module",
    [
        "deploy.site.runtime.serve",
        "deploy.site.runtime.superexec",
        "deploy.site.runtime.supernode",
        "deploy.coordinator.runtime.serve",
        "deploy.coordinator.runtime.superexec",
        "panfm.site.joining",  # what `panfm health` reads a folder with, every 30 s
    ],
)
def test_what_only_looks_after_others_does_without_torch(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", _LIGHT.format(module), ROOT], capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n", done.stderr
