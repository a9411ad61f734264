"""The proxy as a real nginx: what partners' nodes ask passes, and nothing else, however it is spelled."""

from __future__ import annotations

import dataclasses
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.supercore.routers.runtime.responses import router as responses_router
from flwr.supercore.routers.runtime.router import router as runtime_router
from flwr.superlink.routers.control.router import router as control_router
from flwr.superlink.routers.fleet.router import router as fleet_router
from starlette.routing import Route

from server import certificates, proxy
from server.home import Home
from server.renewal import renew
from server.settings import ProxySettings, ServerSettings

from .nginx import Upstream, ask, free_port, installed, proxy_of, trusting

FLEET = {route.path for route in fleet_router.routes if isinstance(route, Route)}
CONTROL = sorted(route.path for route in control_router.routes if isinstance(route, Route))
RUNTIME = sorted(route.path for one in (runtime_router, responses_router) for route in one.routes if isinstance(route, Route))


def new_home(root: Path, **limits: int) -> Home:
    settings = ServerSettings(
        hosts="localhost",
        listen="127.0.0.1",
        port=free_port(),
        superlink_port=free_port(),
        proxy=dataclasses.replace(ProxySettings(requests_per_s=10_000, burst=10_000), **limits),
    )
    return Home.create(root, settings).home


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Upstream]]:
    """One proxy for the tests that leave it as it is; the home's path is one that careless quoting breaks."""
    program = installed()
    home = new_home(tmp_path_factory.mktemp("a folder; $x"))
    with Upstream(home.settings.superlink_port).running(home.certificate, home.certificate_key) as upstream, proxy_of(home, program):
        yield home, upstream


@pytest.fixture
def home_and_upstream(running: tuple[Home, Upstream]) -> tuple[Home, Upstream]:
    running[1].requests.clear()
    return running


def test_every_request_that_flowers_fleet_interface_knows_is_either_passed_or_stopped_on_purpose() -> None:
    """A new version of Flower with other paths turns this red, and not a run."""
    named = {f"/v1/fleet/{name}" for name in (*proxy.PASSED, *proxy.STOPPED)}
    assert named == FLEET
    assert not set(proxy.PASSED) & set(proxy.STOPPED)
    assert (len(CONTROL) > 20, len(RUNTIME) > 15) == (True, True)


@pytest.mark.parametrize("name", proxy.PASSED)
def test_what_a_node_asks_passes_unchanged(home_and_upstream: tuple[Home, Upstream], name: str) -> None:
    home, upstream = home_and_upstream
    sent = {"flwr-public-key": "a2V5", "flwr-signature": "c2ln", "flwr-timestamp": "now", "content-type": "application/x-protobuf"}
    assert ask(home, f"/v1/fleet/{name}", b"\x00body\xff", headers=sent) == (200, b"6")
    ((method, path, headers, body),) = upstream.requests
    assert (method, path, body) == ("POST", f"/v1/fleet/{name}", b"\x00body\xff")
    assert sent.items() <= headers.items()


def test_everything_that_flower_serves_beside_it_is_not_there(home_and_upstream: tuple[Home, Upstream]) -> None:
    home, upstream = home_and_upstream
    others = [*CONTROL, *RUNTIME, *(f"/v1/fleet/{name}" for name in proxy.STOPPED)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda path: ask(home, path)[0], [*others, "/", "/health", "/docs", "/openapi.json", "/v1/fleet/", "/metrics"])
        )
    assert set(answers) == {404}
    assert upstream.requests == []


SPELLINGS = (
    "/v1/fleet/../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/..%2fcontrol/start-run",
    "/v1/fleet/%252e%252e/control/start-run",
    "/v1/fleet/get-run/../../control/start-run",
    "/v1/fleet/get-run%00/../../control/start-run",
    "/v1/fleet/get-run/",
    "/v1/fleet/get-run/x",
    "/v1/fleet/get-run;/../../control/start-run",
    "/v1/fleet\\..\\control\\start-run",
    "/v1/FLEET/get-run",
    "/v1/fleet/Get-Run",
    "/v1/fleet/get-runs",
    "/v1/fleet/get-run%0a",
    "/v1/fleet/get-run%0d%0aX-Evil:%201",
    "/v1/control/start-run?/v1/fleet/get-run",
    "/v1/control/start-run#/v1/fleet/get-run",
    "/v1/control/start-run%3f/v1/fleet/get-run",
    "/x/v1/fleet/get-run",
    "//control/start-run",
    "http://localhost/v1/control/start-run",
    "*",
)


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_leads_anywhere_else(home_and_upstream: tuple[Home, Upstream], path: str) -> None:
    home, upstream = home_and_upstream
    status, _ = ask(home, path)
    assert status in (400, 404)
    assert upstream.requests == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/../fleet/get-run",
        "//v1//fleet/get-run",
        "/v1/fleet/%67et-run",
        "/v1/fleet/get-run?a=/v1/control",
        "/v1/./fleet/get-run",
    ],
)
def test_another_spelling_of_what_passes_arrives_under_its_plain_name(home_and_upstream: tuple[Home, Upstream], path: str) -> None:
    """What stands behind the proxy never has to understand a spelling."""
    home, upstream = home_and_upstream
    assert ask(home, path)[0] == 200
    assert [request[1] for request in upstream.requests] == ["/v1/fleet/get-run"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "BREW"])
def test_only_posts_pass(home_and_upstream: tuple[Home, Upstream], method: str) -> None:
    home, upstream = home_and_upstream
    assert ask(home, "/v1/fleet/get-run", method=method)[0] in (400, 404, 405)
    assert upstream.requests == []


def test_two_requests_in_one_are_one_or_none(home_and_upstream: tuple[Home, Upstream]) -> None:
    """Smuggling: a length and pieces, or two lengths."""
    home, upstream = home_and_upstream
    inner = b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    for lengths in (
        b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: %d\r\nContent-Length: 0\r\n\r\n" % len(inner),
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Content-Length : 0\r\n\r\n",
    ):
        with trusting(home).wrap_socket(socket.create_connection(("localhost", home.settings.port)), server_hostname="localhost") as one:
            one.settimeout(5)
            one.sendall(b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + lengths + inner)
            while one.recv(4096):
                pass
    assert all(request[1] == "/v1/fleet/get-run" for request in upstream.requests)


def test_a_partner_cannot_claim_another_address(home_and_upstream: tuple[Home, Upstream]) -> None:
    home, upstream = home_and_upstream
    ask(home, "/v1/fleet/get-run", headers={"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "gopher", "Host": "evil.example"})
    headers = upstream.requests[0][2]
    assert (headers["x-forwarded-for"], headers["x-forwarded-proto"], headers["host"]) == ("127.0.0.1", "https", "localhost")


def test_an_array_in_flowers_pieces_passes_and_more_than_agreed_does_not(home_and_upstream: tuple[Home, Upstream]) -> None:
    home, _ = home_and_upstream
    piece = bytes(range(256)) * (6 * 4096)  # 6 MiB: 5 MiB of array and its frame
    assert ask(home, "/v1/fleet/push-object", piece) == (200, str(len(piece)).encode())
    try:
        status = ask(home, "/v1/fleet/push-object", b"\0" * (16 * 1024 * 1024 + 1))[0]
    except OSError:  # the proxy hung up while we were still sending
        status = 413
    assert status == 413


def test_only_todays_tls_and_only_tls(home_and_upstream: tuple[Home, Upstream]) -> None:
    home, upstream = home_and_upstream
    old = trusting(home)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    address = ("localhost", home.settings.port)
    with pytest.raises(ssl.SSLError), old.wrap_socket(socket.create_connection(address), server_hostname="localhost"):
        pass
    with (
        pytest.raises(ssl.SSLCertVerificationError),
        trusting(home).wrap_socket(socket.create_connection(address), server_hostname="other"),
    ):
        pass
    with socket.create_connection(address) as plain:
        plain.sendall(b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        assert b" 400 " in plain.recv(4096).split(b"\r\n")[0]
    assert upstream.requests == []


def test_only_what_went_wrong_is_written_down_and_no_query_or_key_with_it(home_and_upstream: tuple[Home, Upstream]) -> None:
    home, _ = home_and_upstream
    log = home.logs / "proxy-refused.log"
    before = log.read_text()
    ask(home, "/v1/fleet/get-run")
    ask(home, "/v1/control/start-run?token=secret", headers={"flwr-signature": "c2ln"})
    time.sleep(0.1)
    written = log.read_text().removeprefix(before)
    assert re.fullmatch(r'\S+ 127\.0\.0\.1 "POST /v1/control/start-run" 404 \d+ \d+ [\d.]+\n', written), written


def test_nginx_has_nothing_to_say_about_the_configuration(tmp_path: Path) -> None:
    program, home = installed(), new_home(tmp_path / "home")
    done = subprocess.run([*proxy.command(home.root, program), "-t"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0
    assert not re.search(r"\[(warn|error|alert|crit|emerg)\]", done.stderr), done.stderr


def test_a_superlink_that_is_down_or_false_is_not_asked(tmp_path: Path) -> None:
    """502 is what makes Flower's node try again."""
    program, home = installed(), new_home(tmp_path / "home")
    (tmp_path / "key.pem").touch(mode=0o600)
    (tmp_path / "key.pem").write_bytes(certificates.new_key())
    other = new_home(tmp_path / "other")
    with proxy_of(home, program):
        assert ask(home, "/v1/fleet/get-run")[0] == 502
        false = Upstream(home.settings.superlink_port)
        with false.running(other.certificate, other.certificate_key):  # right names, another authority
            assert ask(home, "/v1/fleet/get-run")[0] == 502
        assert false.requests == []
        with Upstream(home.settings.superlink_port).running(home.certificate, home.certificate_key):
            assert ask(home, "/v1/fleet/get-run")[0] == 200


def test_who_asks_too_often_is_asked_to_come_later(tmp_path: Path) -> None:
    """503, which Flower's node takes as a pause; 429 would end it."""
    program, home = installed(), new_home(tmp_path / "home", requests_per_s=1, burst=5)
    with Upstream(home.settings.superlink_port).running(home.certificate, home.certificate_key) as upstream, proxy_of(home, program):
        answers = [ask(home, "/v1/fleet/pull-messages")[0] for _ in range(12)]
    assert answers[:6] == [200] * 6
    assert set(answers[6:]) <= {200, 503}
    assert answers.count(503) >= 4
    assert len(upstream.requests) == answers.count(200)


def test_a_renewed_certificate_is_shown_after_a_signal_and_nobody_is_cut_off(tmp_path: Path) -> None:
    program, home = installed(), new_home(tmp_path / "home")

    def shown() -> bytes:
        with trusting(home).wrap_socket(socket.create_connection(("localhost", home.settings.port)), server_hostname="localhost") as one:
            return one.getpeercert(binary_form=True) or b""

    with Upstream(home.settings.superlink_port).running(home.certificate, home.certificate_key), proxy_of(home, program) as process:
        first = shown()
        renew(home.root)
        assert shown() == first
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while shown() == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert ask(home, "/v1/fleet/get-run")[0] == 200


def test_a_port_that_is_taken_ends_it_at_once_with_the_reason(tmp_path: Path) -> None:
    program, home = installed(), new_home(tmp_path / "home")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", home.settings.port))
        taken.listen()
        done = subprocess.run(proxy.command(home.root, program), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "Address already in use" in done.stderr


def test_several_addresses_of_both_kinds_can_be_listened_on() -> None:
    text = proxy.configuration(ServerSettings(hosts="isthmus.example", listen="0.0.0.0, ::", port=443))
    assert re.findall(r"listen (.*) ssl default_server;", text) == ["0.0.0.0:443", "[::]:443"]
