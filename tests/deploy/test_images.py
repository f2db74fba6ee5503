"""What images, compose files and systemd units promise, read from the files; containers themselves run in `tests/containers/`."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SIDES = ["coordinator", "site"]
HADOLINT = Path(sys.executable).with_name("hadolint")
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
UNITS = sorted(DEPLOY.glob("*/systemd/*.service"))


# ---- images -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HADOLINT.is_file(), reason="hadolint is not installed; it comes with panfm[dev]")
@pytest.mark.parametrize("side", SIDES)
def test_hadolint_has_nothing_to_say(side: str) -> None:
    done = subprocess.run([HADOLINT, DEPLOY / side / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def _instructions(side: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, a line each."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / side / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


@pytest.mark.parametrize("side", SIDES)
def test_image_is_built_from_what_lies_there_and_runs_without_rights(side: str) -> None:
    instructions = _instructions(side)
    second = [number for number, (word, _) in enumerate(instructions) if word == "FROM"][1]
    last = instructions[second:]
    assert [rest for word, rest in last if word == "USER"] == ["10001:10001"]
    assert [rest for word, rest in last if word == "VOLUME"] == [f'["/{side}"]']
    assert [rest for word, rest in last if word == "COPY"] == ["--from=built /opt/panfm /opt/panfm"]
    assert {rest for word, rest in instructions if word == "FROM"} == {"${BASE_IMAGE} AS built", "${BASE_IMAGE}"}
    installs = [rest for word, rest in instructions if word == "RUN" and " install " in rest and "/pip " in rest]
    assert len(installs) == 2
    assert all("--no-index" in one and "--require-hashes" in one and "--no-deps" in one for one in installs)
    assert not {"ADD", "EXPOSE", "ONBUILD", "SHELL"} & {word for word, _ in instructions}
    assert not re.search(r"curl|wget|apt|https?:", " ".join(rest for word, rest in instructions if word == "RUN"))
    labels = " ".join(rest for word, rest in last if word == "LABEL")
    for label in ("title", "description", "licenses", "version", "revision", "created"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert [rest.split(" CMD ")[1] for word, rest in last if word == "HEALTHCHECK"] == [
        f'["panfm", "health", "--folder", "/{side}"]'
    ]
    (serve,) = [yaml.safe_load(rest) for word, rest in last if word == "CMD"]
    assert serve == ["python", "-I", f"/opt/panfm/deploy/{side}/runtime/serve.py", "--folder", f"/{side}"]
    assert (DEPLOY / side / "runtime" / "serve.py").is_file()


def test_only_named_folders_reach_the_engine() -> None:
    lines = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert let_in == {
        *("build/wheelhouse", "build/release", "client", "deploy", "server"),
        *("pyproject.toml", ".gitignore", "LICENSE"),
    }


# ---- compose ------------------------------------------------------------------------------------------------------------


def _services(side: str) -> Mapping[str, Any]:
    services: Mapping[str, Any] = yaml.safe_load((DEPLOY / side / "compose.yaml").read_text())["services"]
    return services


@pytest.mark.parametrize(("side", "service"), [(side, name) for side in SIDES for name in _services(side)])
def test_every_service_runs_without_rights(side: str, service: str) -> None:
    said = _services(side)[service]
    assert said["user"] == "10001:10001"
    assert said["read_only"] is True
    assert said["init"] is True
    assert said["cap_drop"] == ["ALL"]
    assert said["security_opt"] == ["no-new-privileges:true"]
    assert said["restart"] == "unless-stopped"
    assert [one.split(":")[0] for one in said["tmpfs"]] == ["/tmp"]
    assert not {"cap_add", "privileged", "environment", "devices"} & said.keys()


def test_one_port_is_open_and_it_is_nginx_s() -> None:
    coordinator, site = _services("coordinator"), _services("site")
    ports = [port for services in (coordinator, site) for one in services.values() for port in one.get("ports", [])]
    assert ports == ["${PANFM_PORT:-8443}:8443"]
    assert coordinator["proxy"]["network_mode"] == "service:coordinator"
    assert site["forward"]["network_mode"] == "service:site"


def test_nginx_reads_what_it_needs_and_no_key_of_an_authority() -> None:
    """The folders' other keys are listed here, so that a new one is thought of."""
    from panfm.coordinator import settings
    from panfm.site import joining

    mounted = [volume.split("}")[-1] for volume in _services("coordinator")["proxy"]["volumes"]]
    assert sorted(mounted) == ["/proxy:/coordinator/proxy:ro", "/tls:/coordinator/tls:ro"]
    seen = (settings.PROXY, settings.SERVER, settings.SERVER_KEY, settings.CLIENT_CA, settings.REVOKED)
    assert all(name.split("/")[0] in {"proxy", "tls"} for name in seen)
    unseen = (settings.SERVER_CA_KEY, settings.CLIENT_CA_KEY, settings.LOOPBACK_KEY, settings.SECRET, settings.TASK_KEY)
    assert not {name.split("/")[0] for name in unseen} & {"proxy", "tls"}

    mounted = [volume.split("}")[-1] for volume in _services("site")["forward"]["volumes"]]
    assert sorted(mounted) == ["/keys/tls.key:/site/keys/tls.key:ro", "/study:/site/study:ro"]
    assert joining.NODE_KEY.startswith("keys/")


# ---- systemd ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd is not installed on this machine")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_understood_and_little_exposed(unit: Path) -> None:
    """By systemd's own measure, of 10 at most; a unit without hardening has 9.2."""
    assert SYSTEMD_ANALYZE is not None
    done = subprocess.run(
        [SYSTEMD_ANALYZE, "security", "--offline=yes", "--threshold=20", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:]
    done = subprocess.run([SYSTEMD_ANALYZE, "verify", unit], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if unit.name in line and "is not executable" not in line]
    assert complaints == []


@pytest.mark.parametrize("side", SIDES)
def test_unit_and_image_start_the_same_program(side: str) -> None:
    unit = (DEPLOY / side / "systemd" / f"panfm-{side}.service").read_text()
    assert f"serve.py --folder /var/lib/panfm/{side}\n" in unit
    assert "Restart=always" in unit
    assert "KillMode=mixed" in unit, "the runtime ends its programs itself"
