"""Knocking at the coordinator's door, against servers that answer in their own ways; with nginx itself where it is installed."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.main import create_app

from panfm.coordinator.admitted import revoke
from panfm.coordinator.begin import own_authority, write_server
from panfm.coordinator.settings import SERVER, SERVER_CA, SERVER_KEY, CoordinatorSettings
from panfm.enrolment.certificates import issue_server, make_authority
from panfm.enrolment.node_key import new_node_key
from panfm.errors import ConfigError, PanfmError, RunError
from panfm.site import study_door
from panfm.site.joining import LocalPorts, StudyLink, join
from panfm.site.study_door import Answered, activation, is_registered, knock, knows_key
from tests.panfm.coordinator.made_study import MadeStudy, made_study

NOW = datetime.now(UTC)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Door(BaseHTTPRequestHandler):
    status = 405
    date: str | None = None

    def do_GET(self) -> None:
        self.send_response_only(self.status)
        if self.date is not None:
            self.send_header("Date", self.date)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def _open_door(study: MadeStudy, port: int, **answer: object) -> Iterator[None]:
    """A server with the study's certificate; it ends with the block."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(study.coordinator / SERVER, study.coordinator / SERVER_KEY)
    with HTTPServer(("127.0.0.1", port), type("Door", (_Door,), answer)) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a site that hangs up is what is tested
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    return made_study(tmp_path, CoordinatorSettings(study="pan", address=f"localhost:{_free_port()}"), NOW)


def _joined(study: MadeStudy) -> StudyLink:
    return join(study.site, study.kit_content, NOW, LocalPorts())


def _knock(study: MadeStudy, **answer: object) -> Answered:
    link = _joined(study)
    with _open_door(study, link.port, **answer):
        return knock(study.site, link)


@pytest.mark.parametrize("shift_s", [0, 7200, -30])
def test_answer_tells_certificate_and_clock(study: MadeStudy, shift_s: int) -> None:
    told = datetime.now(UTC) - timedelta(seconds=shift_s)
    answered = _knock(study, date=format_datetime(told, usegmt=True))
    assert answered.certificate.names == ("localhost",)
    assert answered.tls_version == "TLSv1.3"
    assert answered.ahead_s is not None
    assert abs(answered.ahead_s - shift_s) < 20, "a busy machine may take its time, and no more is claimed"


@pytest.mark.parametrize("date", [None, "tomorrow"])
def test_no_time_is_no_guess(study: MadeStudy, date: str | None) -> None:
    assert _knock(study, date=date).ahead_s is None


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (400, ConfigError, "wants a certificate, which the kit did not bring"),
        (502, RunError, "is there, and the SuperLink behind it is not"),
        (504, RunError, "is there, and the SuperLink behind it is not"),
    ],
)
def test_status_of_a_door_that_does_not_lead_on(
    study: MadeStudy, status: int, error: type[PanfmError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        _knock(study, status=status)


def test_nobody_there(study: MadeStudy) -> None:
    with pytest.raises(RunError, match="nothing listens at localhost"):
        knock(study.site, _joined(study))


def test_name_that_nobody_knows(study: MadeStudy) -> None:
    link = replace(_joined(study), address="nobody.invalid:8443")
    with pytest.raises(RunError, match=r"the name nobody\.invalid is not known here"):
        knock(study.site, link)


def test_server_that_keeps_silent(study: MadeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_door, "TIMEOUT_S", 0.2)
    link = _joined(study)
    with socket.create_server(("127.0.0.1", link.port)), pytest.raises(RunError, match="did not answer within"):
        knock(study.site, link)


def test_other_protocol_behind_the_port(study: MadeStudy) -> None:
    link = _joined(study)
    with HTTPServer(("127.0.0.1", link.port), _Door) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        with pytest.raises(ConfigError, match=r"TLS with localhost:\d+ failed"):
            knock(study.site, link)
        thread.join()


@pytest.mark.parametrize(
    ("shown", "reason"),
    [("foreign", "local issuer|signature"), ("name", "Hostname"), ("old", "expired")],
)
def test_wrong_certificate_is_not_connected_to(study: MadeStudy, shown: str, reason: str) -> None:
    link = _joined(study)
    own = (study.coordinator / SERVER_CA).read_bytes()
    authority = make_authority("panfm pan", NOW) if shown == "foreign" else own_authority(study.coordinator)
    names = ["other.example.org"] if shown == "name" else ["localhost"]
    moment = NOW - timedelta(days=500) if shown == "old" else NOW
    write_server(study.coordinator, issue_server(authority, names, moment))
    assert (study.coordinator / SERVER_CA).read_bytes() == own
    with _open_door(study, link.port), pytest.raises(ConfigError, match=f"is not the study's .*({reason})"):
        knock(study.site, link)


# ---- whether the node is registered ------------------------------------------------------------------------------------


class _Superlink:
    """Flower's own SuperLink without its network: how it answers to a call, and its list of nodes."""

    def __init__(self) -> None:
        app = create_app()
        self._transport = httpx.ASGITransport(app)
        self.state: LinkState = app.state.linkstate_factory.state()

    def register(self, node_key: bytes) -> int:
        key = _key(node_key).public_key()
        return self.state.create_node("", "", public_key_to_bytes(key), 0)

    def answer(self, node_key: bytes, now: datetime, link: StudyLink) -> bool:
        headers, body = activation(node_key, now)
        answer = asyncio.run(self._post("/v1/fleet/activate-node", dict(headers), body))
        return knows_key(answer.status_code, answer.content, link)

    async def _post(self, path: str, headers: dict[str, str], body: bytes) -> httpx.Response:
        async with httpx.AsyncClient(transport=self._transport, base_url="https://superlink") as client:
            return await client.post(path, headers=headers, content=body)


def _key(node_key: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_ssh_private_key(node_key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def test_flowers_own_superlink_tells_a_registered_key_from_others_and_activates_nobody(study: MadeStudy) -> None:
    link, superlink, key = _joined(study), _Superlink(), new_node_key()
    assert not superlink.answer(key, datetime.now(UTC), link)
    node = superlink.register(key)
    assert superlink.answer(key, datetime.now(UTC), link)
    assert not superlink.answer(new_node_key(), datetime.now(UTC), link)
    (listed,) = superlink.state.get_node_info()
    assert (listed.node_id, listed.status) == (node, "registered"), "asking is not connecting"
    superlink.state.delete_node("", node)
    assert not superlink.answer(key, datetime.now(UTC), link), "who was turned away is not known"


@pytest.mark.parametrize("wrong_s", [-310, 10])
def test_clock_that_flower_does_not_take_is_named(study: MadeStudy, wrong_s: int) -> None:
    link, superlink, key = _joined(study), _Superlink(), new_node_key()
    superlink.register(key)
    with pytest.raises(ConfigError, match="compare the clocks of both machines"):
        superlink.answer(key, datetime.now(UTC) + timedelta(seconds=wrong_s), link)


def test_question_is_the_call_of_flowers_supernode_but_for_the_interval() -> None:
    key = new_node_key()
    _, body = activation(key, NOW)
    asked = ActivateNodeRequest.FromString(body)
    assert asked.public_key == public_key_to_bytes(_key(key).public_key())
    assert asked.heartbeat_interval == 0
    assert asked.SerializeToString() == body


@pytest.mark.parametrize(
    ("status", "said", "kind", "reason"),
    [
        (400, b"<html>No required SSL certificate was sent</html>", ConfigError, "wants a certificate"),
        (502, b"<html>Bad Gateway</html>", RunError, "the SuperLink behind it is not"),
        (200, b"", RunError, "answered otherwise"),
        (500, b'{"code": "2003"}', RunError, "answered otherwise"),
        (404, b"[]", RunError, "answered otherwise"),
    ],
)
def test_other_answers_are_no_word_on_the_key(
    study: MadeStudy, status: int, said: bytes, kind: type[PanfmError], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        knows_key(status, said, _joined(study))


def test_lost_node_key_is_one_clear_line(study: MadeStudy) -> None:
    link = _joined(study)
    (study.site / "keys" / "node.key").unlink()
    with pytest.raises(ConfigError, match="run `panfm site init` again, or restore it"):
        is_registered(study.site, link)


@contextlib.contextmanager
def _nginx(coordinator: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The real proxy with the configuration that init wrote; ended by its own process id."""
    process = subprocess.Popen(
        ["nginx", "-c", coordinator / "proxy" / "nginx.conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_real_proxy_lets_in_who_shows_a_certificate_of_the_study_until_it_is_revoked(tmp_path: Path) -> None:
    port, behind = _free_port(), _free_port()
    settings = CoordinatorSettings(
        study="pan", address=f"localhost:{port}", mutual_tls=True, public_port=port, superlink_port=behind
    )
    study = made_study(tmp_path, settings, NOW)
    link = _joined(study)
    with _nginx(study.coordinator, port):
        with pytest.raises(RunError, match="the SuperLink behind it is not"):
            knock(study.site, link)  # as far as the SuperLink, which is not there
        with pytest.raises(ConfigError, match="wants a certificate"):
            knock(study.site, replace(link, mutual_tls=False))
    revoke(study.coordinator, "north", reason="left", at=NOW)
    with _nginx(study.coordinator, port), pytest.raises(ConfigError, match="does not take this site's certificate"):
        knock(study.site, link)
