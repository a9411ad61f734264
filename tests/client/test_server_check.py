"""Is the server the one we expect? Against real TLS servers with the wrong certificate, the wrong paths, and the wrong time."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from client import server_check
from client.check_line import Line
from client.server_check import CLOSED, FLEET, check_server
from tests.client.coordinator_card import Coordinator
from tests.client.https_server import Told, https

DAY_S = 86_400.0
PROXY = {FLEET: 401}


@pytest.fixture(scope="module")
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
def ca(coordinator: Coordinator, tmp_path: Path) -> Path:
    path = tmp_path / "ca.crt"
    path.write_text(coordinator.ca_pem)
    return path


def lines(port: int, ca: Path, host: str = "127.0.0.1") -> dict[str, Line]:
    found = list(check_server(f"{host}:{port}", ca))
    assert len({line.name for line in found}) == len(found)
    assert all(bool(line.do) != line.ok for line in found)
    return {line.name: line for line in found}


def red(found: dict[str, Line]) -> dict[str, str]:
    return {name: line.what for name, line in found.items() if not line.ok}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_right_server_is_green_and_is_told_nothing(coordinator: Coordinator, ca: Path, tmp_path: Path, host: str) -> None:
    told = Told(PROXY)
    with https(coordinator.write_leaf(tmp_path, ends=100), told) as port:
        found = lines(port, ca, host)

    assert list(found) == ["server", "certificate", "node interface", "closed interfaces", "clock"]
    assert red(found) == {}
    assert "(99 days)" in found["certificate"].what
    assert told.asked == [("POST", path, 0) for path in (FLEET, *CLOSED)]


def test_a_certificate_that_ends_soon_is_green_and_says_so(coordinator: Coordinator, ca: Path, tmp_path: Path) -> None:
    with https(coordinator.write_leaf(tmp_path, ends=12.5), Told(PROXY)) as port:
        found = lines(port, ca)

    assert red(found) == {}
    assert "12 days; tell the coordinator that it ends soon" in found["certificate"].what


@pytest.mark.parametrize(
    ("leaf", "what"),
    [
        ({"begins": -10, "ends": -1}, "the server's certificate has ended"),
        ({"begins": 1, "ends": 30}, "the server's certificate is not valid yet"),
        ({"names": ["elsewhere.example"]}, "the server's certificate is not for 127.0.0.1"),
        ({"names": ["localhost", "127.0.0.2"]}, "the server's certificate is not for 127.0.0.1"),
    ],
)
def test_an_expired_a_future_and_a_foreign_name_are_red_and_nothing_is_asked(
    coordinator: Coordinator, ca: Path, tmp_path: Path, leaf: dict[str, object], what: str
) -> None:
    told = Told(PROXY)
    with https(coordinator.write_leaf(tmp_path, **leaf), told) as port:  # type: ignore[arg-type]
        found = lines(port, ca)

    assert red(found) == {"certificate": what}
    assert FLEET not in told.paths


def test_another_authority_is_red_whatever_name_it_signed(ca: Path, tmp_path: Path) -> None:
    told = Told(PROXY)
    with https(Coordinator().write_leaf(tmp_path), told) as port:
        found = lines(port, ca)

    assert "not by the coordinator's authority" in red(found)["certificate"]
    assert "Do not go on" in found["certificate"].do
    assert FLEET not in told.paths


def test_the_authorities_of_this_machine_count_for_nothing(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, own = Coordinator(), tmp_path / "ca.crt"
    (tmp_path / "public.pem").write_text(public.ca_pem)
    own.write_text(coordinator.ca_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "public.pem"))

    with https(public.write_leaf(tmp_path), Told(PROXY)) as port:
        assert list(red(lines(port, own))) == ["certificate"]


@pytest.mark.parametrize(("ahead", "said"), [(DAY_S, "behind"), (-DAY_S, "ahead of")])
def test_a_clock_that_is_off_by_a_day_is_red(coordinator: Coordinator, ca: Path, tmp_path: Path, ahead: float, said: str) -> None:
    with https(coordinator.write_leaf(tmp_path), Told(PROXY, ahead_s=ahead)) as port:
        found = lines(port, ca)

    assert list(red(found)) == ["clock"]
    assert f"{said} the server's" in found["clock"].what


@pytest.mark.parametrize(("ahead", "ok"), [(280, True), (-280, True), (320, False), (-320, False)])
def test_five_minutes_are_the_limit(coordinator: Coordinator, ca: Path, tmp_path: Path, ahead: float, ok: bool) -> None:
    with https(coordinator.write_leaf(tmp_path), Told(PROXY, ahead_s=ahead)) as port:
        assert lines(port, ca)["clock"].ok is ok


def test_where_the_clock_may_be_why_a_certificate_is_doubted_it_is_said(coordinator: Coordinator, ca: Path, tmp_path: Path) -> None:
    with https(coordinator.write_leaf(tmp_path, begins=0.5), Told(PROXY, ahead_s=DAY_S)) as port:  # ours is a day behind
        found = lines(port, ca)

    assert list(red(found)) == ["certificate", "clock"]


def test_a_server_without_a_time_is_red(coordinator: Coordinator, ca: Path, tmp_path: Path) -> None:
    with https(coordinator.write_leaf(tmp_path), Told(PROXY, says_time=False)) as port:
        assert list(red(lines(port, ca))) == ["clock"]


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("status", [200, 400, 401, 405, 415])
def test_an_interface_that_answers_partners_is_red(coordinator: Coordinator, ca: Path, tmp_path: Path, path: str, status: int) -> None:
    with https(coordinator.write_leaf(tmp_path), Told({**PROXY, path: status})) as port:
        found = lines(port, ca)

    assert red(found) == {"closed interfaces": f"the server answers at {path}"}


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (404, "does not know the requests of a node"),
        (403, "does not know the requests of a node"),
        (502, "answers 502"),
        (503, "answers 503"),
    ],
)
def test_a_server_that_does_not_answer_nodes_is_red(coordinator: Coordinator, ca: Path, tmp_path: Path, status: int, what: str) -> None:
    with https(coordinator.write_leaf(tmp_path), Told({FLEET: status})) as port:
        found = lines(port, ca)

    assert list(red(found)) == ["node interface"]
    assert what in found["node interface"].what


def test_a_server_without_tls_is_red(ca: Path) -> None:
    with https(None, Told(PROXY)) as port:
        found = lines(port, ca)

    assert list(red(found)) == ["certificate"]
    assert found["certificate"].what.startswith("no TLS with 127.0.0.1")


def test_nobody_there_an_unknown_name_and_no_answer_are_red(ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_check, "PATIENCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "Connection refused" in red(lines(port, ca))["server"]
    assert "is not known here" in red(lines(port, ca, "nobody.invalid"))["server"]

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        found = lines(silent.getsockname()[1], ca)
        assert list(red(found)) == ["certificate"]


def test_before_joining_and_without_a_certificate_the_line_says_what_to_do(tmp_path: Path) -> None:
    (before,) = check_server("", tmp_path / "ca.crt")
    (missing,) = check_server("127.0.0.1:1", tmp_path / "ca.crt")
    (tmp_path / "ca.crt").write_text("no certificate")
    (damaged,) = check_server("127.0.0.1:1", tmp_path / "ca.crt")

    for line in (before, missing, damaged):
        assert not line.ok
        assert "isthmus-client join" in line.do
