"""Is the server the one we expect, and does it show what partners need and no more? Asked from the partner's place in the network.

Only the coordinator's own authority is trusted. Nothing of this domain is sent: a few requests without content, which a SuperLink answers
with a refusal because they are not signed.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from shared.addresses import split_address

from .check_line import Line

PATIENCE_S = 10.0
MOST_SKEW_S = 300.0
SOON_DAYS = 30
FLEET = "/v1/fleet/pull-messages"
CLOSED = ("/v1/control/list-runs", "/v1/runtime/get-nodes")
"""Requests that only read, of the two interfaces that nobody but the coordinator may reach."""
_GONE = frozenset({403, 404})
_EXPIRED, _NOT_YET, _OTHER_NAME, _OTHER_IP = 10, 9, 62, 64
_JOIN = "isthmus-client join FOLDER JOIN.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """What a server answered: the status, and how far its clock is ahead of ours in seconds, where it says."""

    status: int
    ahead_s: float | None


def check_server(address: str, ca: Path) -> Iterator[Line]:
    """A line for each: the connection, the certificate, the interface for nodes, the closed interfaces, the clock.

    Args:
        address: ``HOST:PORT``; empty where the domain has not joined yet.
        ca: certificate of the coordinator's authority, PEM.
    """
    if not address:
        yield Line.red("server", "partner.toml names no server yet", f"Take the coordinator's card: {_JOIN}")
        return
    host, port = split_address(address)
    try:
        context = _context(ca)
    except (OSError, ssl.SSLError) as error:
        what = f"the authority's certificate {ca.name} cannot be used: {_words(error)}"
        yield Line.red("server", what, f"Move it away if it is there, and take the coordinator's card anew: {_JOIN}")
        return
    reached = _reached(host, port)
    yield reached
    if not reached.ok:
        return
    trusted = _certificate(host, port, context)
    yield trusted
    if not trusted.ok:
        yield from _doubtful_clock(host, port)
        return
    yield from _paths(host, port, context)


def _context(ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=str(ca))
    return context


def _reached(host: str, port: int) -> Line:
    do = "Check the address, the network, and whether a firewall lets this machine out to it. Is the server up? Ask the coordinator."
    try:
        with socket.create_connection((host, port), timeout=PATIENCE_S):
            return Line.green("server", f"{host} port {port} takes connections")
    except socket.gaierror:
        return Line.red("server", f"the name {host} is not known here", "Check server.address and this machine's name service.")
    except TimeoutError:
        return Line.red("server", f"{host} port {port} does not answer within {PATIENCE_S:g} s", do)
    except OSError as error:
        return Line.red("server", f"{host} port {port} cannot be reached: {_words(error)}", do)


def _certificate(host: str, port: int, context: ssl.SSLContext) -> Line:
    name = "certificate"
    try:
        with (
            socket.create_connection((host, port), timeout=PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            shown = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return Line.red(name, *_why_not(error, host))
    except (ssl.SSLError, OSError) as error:
        do = "Check server.address: is it the port that partners use, and is nothing between that opens TLS?"
        return Line.red(name, f"no TLS with {host} port {port}: {_words(error)}", do)
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
    days = (ends - datetime.now(UTC)).days
    soon = "; tell the coordinator that it ends soon" if days < SOON_DAYS else ""
    return Line.green(name, f"by the coordinator's authority, for {host}, until {ends:%Y-%m-%d} ({days} days{soon})")


def _why_not(error: ssl.SSLCertVerificationError, host: str) -> tuple[str, str]:
    if error.verify_code == _EXPIRED:
        return (
            "the server's certificate has ended",
            "Tell the coordinator, who renews it with isthmus-server renew. Is this machine's clock right?",
        )
    if error.verify_code == _NOT_YET:
        return "the server's certificate is not valid yet", "Check this machine's clock."
    if error.verify_code in (_OTHER_NAME, _OTHER_IP):
        return f"the server's certificate is not for {host}", "Use the name that the coordinator gave: server.address in partner.toml."
    do = (
        "Do not go on: this may be somebody else's server. Ask the coordinator whether its authority has changed; if so, move the old "
        f"certificate away and take the new card: {_JOIN}"
    )
    return f"the server's certificate is not by the coordinator's authority ({error.verify_message})", do


def _paths(host: str, port: int, context: ssl.SSLContext) -> Iterator[Line]:
    ahead: float | None = None
    try:
        reply = _ask(host, port, context, FLEET)
        ahead = reply.ahead_s
        yield _fleet(reply.status)
    except (OSError, http.client.HTTPException) as error:
        yield Line.red("node interface", f"no answer: {_words(error)}", "Ask the coordinator whether the SuperLink is up.")
    open_paths = []
    for path in CLOSED:
        with contextlib.suppress(OSError, http.client.HTTPException):
            reply = _ask(host, port, context, path)
            ahead = reply.ahead_s if ahead is None else ahead
            if reply.status not in _GONE and reply.status < 500:
                open_paths.append(path)
    if open_paths:
        do = "Tell the coordinator: whoever reaches these can start runs. Partners must be let through the reverse proxy only."
        yield Line.red("closed interfaces", f"the server answers at {' and '.join(open_paths)}", do)
    else:
        yield Line.green("closed interfaces", "control and runtime are not to be reached from here")
    yield _clock(ahead)


def _fleet(status: int) -> Line:
    name = "node interface"
    if status in _GONE:
        return Line.red(name, "the server does not know the requests of a node", "Check server.address: is it the coordinator's proxy?")
    if status >= 500:
        return Line.red(name, f"the proxy answers {status}", "The SuperLink behind it seems to be down: tell the coordinator.")
    return Line.green(name, f"answers (status {status} to a request without a key, as it should)" if status >= 400 else "answers")


def _clock(ahead: float | None) -> Line:
    if ahead is None:
        return Line.red(
            "clock", "the server does not say what time it is", "Compare this machine's clock yourself, then tell the coordinator."
        )
    apart = f"{abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} the server's" if abs(ahead) >= 1 else "as the server's"
    if abs(ahead) > MOST_SKEW_S:
        return Line.red(
            "clock", f"this machine's clock is {apart}", "Set it, and let it be kept by NTP: messages of another time are refused."
        )
    return Line.green("clock", f"this machine's clock is {apart}")


def _doubtful_clock(host: str, port: int) -> Iterator[Line]:
    """The clock of a server that nobody vouches for: said only where ours may be the reason for the doubt."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(OSError, http.client.HTTPException):
        ahead = _ask(host, port, context, "/").ahead_s
        if ahead is not None and abs(ahead) > MOST_SKEW_S:
            yield _clock(ahead)


def _ask(host: str, port: int, context: ssl.SSLContext, path: str) -> _Reply:
    connection = http.client.HTTPSConnection(host, port, timeout=PATIENCE_S, context=context)
    try:
        before = time.time()
        connection.request("POST", path, body=b"")
        response = connection.getresponse()
        now = (before + time.time()) / 2
        said = response.getheader("Date")
        return _Reply(status=response.status, ahead_s=None if said is None else _ahead(said, now))
    finally:
        connection.close()


def _ahead(date: str, now: float) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return None


def _words(error: BaseException) -> str:
    """An error of the system in words; what a server could have put into it stays out."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS failed").replace("_", " ").lower()
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return type(error).__name__
