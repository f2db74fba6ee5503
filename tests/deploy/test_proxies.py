"""The two nginx configurations that are shipped, in a real nginx before a small server that stands for the SuperLink."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import http.client
import inspect
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from flwr.supernode.fleet_http_client import FleetHttpClient

from panfm.coordinator.admitted import revoke
from panfm.coordinator.settings import LOOPBACK, LOOPBACK_CA, LOOPBACK_KEY, PROXY, SERVER_CA
from panfm.site.joining import CLIENT, FORWARD, LOCAL_CA, TLS_KEY, read_link
from tests.deploy.enrolled import Enrolled, enrol

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed on this machine")

PASSING = [
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "pull-object",
    "push-object",
    "confirm-message-received",
]


class _SuperLink(BaseHTTPRequestHandler):
    """Answers every call with what came, and notes it; the path `get-fab` answers as an overloaded SuperLink does."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server: Any = self.server
        server.seen.append(self.path)
        self.send_response(503 if self.path.endswith("get-fab") else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass
class Door:
    """Where one knocks, and what got through."""

    port: int
    authority: Path
    enrolled: Enrolled
    seen: list[str]
    certificate: tuple[Path, Path] | None = None
    tls: dict[str, Any] = field(default_factory=dict)

    def ask(self, path: str, body: bytes = b"", method: str = "POST") -> tuple[int, bytes]:
        """Status and body, with the path sent as it stands."""
        context = ssl.create_default_context(cafile=self.authority)
        for name, value in self.tls.items():
            setattr(context, name, value)
        if self.certificate:
            context.load_cert_chain(*self.certificate)
        connection = http.client.HTTPSConnection("localhost", self.port, context=context, timeout=30)
        try:
            connection.putrequest(method, path)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextmanager
def superlink_of(enrolled: Enrolled) -> Iterator[list[str]]:
    """The server that stands for the SuperLink; gives the paths that it was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", enrolled.settings.superlink_port), _SuperLink)
    server.seen = []  # type: ignore[attr-defined]  # the handler's
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(enrolled.coordinator / LOOPBACK, enrolled.coordinator / LOOPBACK_KEY)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.seen  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def nginx(configuration: Path, port: int, own: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real nginx with a configuration as it is shipped, but for its process file, which two on one machine cannot share."""
    assert NGINX is not None
    own.mkdir()
    text, names = re.subn(r"/tmp/panfm-(proxy|forward)", str(own / "nginx"), configuration.read_text())
    assert names == 6, "all that nginx writes lies below /tmp"
    configuration.write_text(text)
    process = subprocess.Popen([NGINX, "-e", "stderr", "-c", str(configuration)], stderr=subprocess.PIPE)
    try:
        _wait_for(port, process)
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None:
                pytest.fail(f"nginx ended: {process.communicate()[1].decode()}")
            assert time.monotonic() < deadline
            time.sleep(0.02)


@contextmanager
def door(folder: Path, *, mutual_tls: bool) -> Iterator[Door]:
    """An enrolled site, a SuperLink and the coordinator's nginx between them."""
    enrolled = enrol(folder, mutual_tls=mutual_tls)
    port = enrolled.settings.public_port
    with superlink_of(enrolled) as seen, nginx(enrolled.coordinator / PROXY, port, folder / "nginx"):
        yield Door(port=port, authority=enrolled.coordinator / SERVER_CA, enrolled=enrolled, seen=seen)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Without client certificates."""
    with door(tmp_path_factory.mktemp("open"), mutual_tls=False) as made:
        yield made


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """With client certificates."""
    with door(tmp_path_factory.mktemp("closed"), mutual_tls=True) as made:
        yield made


# ---- which paths ---------------------------------------------------------------------------------------------------------


def test_what_passes_is_what_a_supernode_calls_but_for_letting_itself_in() -> None:
    """Against Flower's own list of the Fleet interface: a release that calls more is noticed here."""
    called = set(re.findall(r'path="/v1/fleet/([a-z-]+)"', inspect.getsource(FleetHttpClient)))
    assert called == {*PASSING, "register-node", "unregister-node"}


@pytest.mark.parametrize("call", PASSING)
def test_each_call_of_a_supernode_passes(opened: Door, call: str) -> None:
    status, body = opened.ask(f"/v1/fleet/{call}", b"\x0a\x00protobuf")
    assert status == (503 if call == "get-fab" else 200), "answers of the SuperLink pass as they are"
    assert body == b"\x0a\x00protobuf"
    assert opened.seen[-1] == f"/v1/fleet/{call}"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/docs",
        "/openapi.json",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet",
        "/v1/fleetx/pull-messages",
        "/V1/FLEET/pull-messages",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet%2f..%2fcontrol/start-run",
        "/v1/fleet/./register-node",
        "//v1//fleet//register-node",
        "/v1/fleet/%72egister-node",
        "/v1/fleet/register-node?x=1",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_nothing_else_passes(opened: Door, path: str, method: str) -> None:
    before = len(opened.seen)
    assert opened.ask(path, method=method)[0] == 403
    assert len(opened.seen) == before


@pytest.mark.parametrize(
    "path", ["/v1/fleet/", "/v1/fleet/new-call", "/v1/fleet/register-node/", "/v1/fleet/pull-messages/x"]
)
def test_fleet_paths_that_nobody_calls_are_not_found_rather_than_forbidden(opened: Door, path: str) -> None:
    """403 would tell a SuperNode that its run is over."""
    before = len(opened.seen)
    assert opened.ask(path)[0] == 404
    assert len(opened.seen) == before


@pytest.mark.parametrize("path", ["/v1/control/%2e%2e/fleet/pull-messages", "/x/../v1/fleet/pull-messages"])
def test_detours_are_not_straightened_for_the_superlink(opened: Door, path: str) -> None:
    """nginx sees where such a path leads; what it hands on is what was asked, which the SuperLink has no answer to."""
    opened.ask(path)
    assert opened.seen[-1] == path


# ---- size, TLS, the other side away --------------------------------------------------------------------------------------


def test_objects_pass_whole_and_what_no_supernode_sends_does_not(opened: Door) -> None:
    largest = bytes(range(256)) * (12 * 2**20 // 256)
    assert opened.ask("/v1/fleet/push-object", largest) == (200, largest)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):  # turned away while it sends
        assert opened.ask("/v1/fleet/push-object", bytes(17 * 2**20))[0] == 413
    assert opened.ask("/v1/fleet/pull-messages")[0] == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_of_today_is_spoken(opened: Door, version: ssl.TLSVersion) -> None:
    opened.tls = {"maximum_version": version, "minimum_version": version}
    assert opened.ask("/v1/fleet/pull-messages")[0] == 200
    opened.tls = {}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_tls_of_yesterday_is_not(opened: Door) -> None:
    yesterday = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{opened.port}", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Cipher is (NONE)" in yesterday.stdout
    assert "protocol version" in yesterday.stderr + yesterday.stdout


def test_coordinator_that_is_away_is_worth_another_try(tmp_path: Path) -> None:
    """502 and 504 are what Flower tries again; 403 would end the run at the site."""
    enrolled = enrol(tmp_path)
    port = enrolled.settings.public_port
    with nginx(enrolled.coordinator / PROXY, port, tmp_path / "nginx"):
        away = Door(port=port, authority=enrolled.coordinator / SERVER_CA, enrolled=enrolled, seen=[])
        assert away.ask("/v1/fleet/pull-messages")[0] == 502
        with superlink_of(enrolled):
            assert away.ask("/v1/fleet/pull-messages")[0] == 200, "and it passes when it is back"


def test_superlink_with_a_foreign_certificate_gets_nothing(tmp_path: Path) -> None:
    enrolled, foreign = enrol(tmp_path / "ours"), enrol(tmp_path / "theirs")
    shutil.copy(foreign.coordinator / LOOPBACK_CA, enrolled.coordinator / LOOPBACK_CA)
    port = enrolled.settings.public_port
    with superlink_of(enrolled) as seen, nginx(enrolled.coordinator / PROXY, port, tmp_path / "nginx"):
        there = Door(port=port, authority=enrolled.coordinator / SERVER_CA, enrolled=enrolled, seen=seen)
        assert there.ask("/v1/fleet/pull-messages")[0] == 502
        assert seen == []


# ---- mutual TLS ----------------------------------------------------------------------------------------------------------


def test_with_mutual_tls_nobody_passes_without_a_certificate_of_this_study(closed: Door, tmp_path: Path) -> None:
    site = closed.enrolled.sites[0]
    closed.certificate = None
    assert closed.ask("/v1/fleet/pull-messages")[0] == 400
    assert closed.ask("/v1/control/start-run")[0] == 400
    foreign = enrol(tmp_path, mutual_tls=True).sites[0]
    closed.certificate = (foreign / CLIENT, foreign / TLS_KEY)
    assert closed.ask("/v1/fleet/pull-messages")[0] == 400
    assert closed.seen == []
    closed.certificate = (site / CLIENT, site / TLS_KEY)
    assert closed.ask("/v1/fleet/pull-messages")[0] == 200
    assert closed.ask("/v1/control/start-run")[0] == 403


def test_site_s_forward_shows_its_certificate_and_checks_the_coordinator_s(tmp_path: Path) -> None:
    with door(tmp_path, mutual_tls=True) as made:
        site = made.enrolled.sites[0]
        link = read_link(site)
        with nginx(site / FORWARD, link.forward_port, tmp_path / "forward"):
            forward = Door(port=link.forward_port, authority=site / LOCAL_CA, enrolled=made.enrolled, seen=made.seen)
            largest = bytes(12 * 2**20)
            assert forward.ask("/v1/fleet/push-object", largest) == (200, largest)
            assert made.seen == ["/v1/fleet/push-object"]
            assert forward.ask("/v1/control/start-run")[0] == 403


def test_forward_gives_nothing_to_a_coordinator_that_it_does_not_know(tmp_path: Path) -> None:
    foreign = enrol(tmp_path / "theirs", mutual_tls=True)
    with door(tmp_path / "ours", mutual_tls=True) as made:
        site = made.enrolled.sites[0]
        shutil.copy(foreign.coordinator / SERVER_CA, site / "study" / "ca.pem")
        link = read_link(site)
        with nginx(site / FORWARD, link.forward_port, tmp_path / "forward"):
            forward = Door(port=link.forward_port, authority=site / LOCAL_CA, enrolled=made.enrolled, seen=made.seen)
            assert forward.ask("/v1/fleet/pull-messages")[0] == 502
            assert made.seen == []


def test_revoked_certificate_is_turned_away_once_the_proxy_has_read_the_list_again(tmp_path: Path) -> None:
    enrolled = enrol(tmp_path, mutual_tls=True)
    site, port = enrolled.sites[0], enrolled.settings.public_port
    with superlink_of(enrolled) as seen, nginx(enrolled.coordinator / PROXY, port, tmp_path / "nginx") as process:
        pair = (site / CLIENT, site / TLS_KEY)
        made = Door(
            port=port, authority=enrolled.coordinator / SERVER_CA, enrolled=enrolled, seen=seen, certificate=pair
        )
        assert made.ask("/v1/fleet/pull-messages")[0] == 200
        revoke(enrolled.coordinator, "north", reason="left the study", at=datetime.now(UTC))
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while made.ask("/v1/fleet/pull-messages")[0] != 400:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_begun_before_is_not_taken_up_past_the_revocation_list(closed: Door, version: ssl.TLSVersion) -> None:
    site = closed.enrolled.sites[0]
    context = ssl.create_default_context(cafile=closed.authority)
    context.load_cert_chain(site / CLIENT, site / TLS_KEY)
    context.minimum_version = context.maximum_version = version
    session = None
    for _ in range(2):
        with (
            socket.create_connection(("localhost", closed.port), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as shaken,
        ):
            shaken.sendall(b"POST /v1/fleet/pull-messages HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
            assert b" 200 " in shaken.recv(4096), "TLS 1.3 hands its session out with the first answer"
            session, taken_up = shaken.session, shaken.session_reused
    assert not taken_up, "only a whole handshake looks at certificates"
