"""Partners with nothing but keys, folders and an address each; a server for one of them, and somebody who sits on the line."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from client.key_rotation import own_keys
from client.passport_certificate import Identity, identity
from client.passport_exchange import file_name
from client.passport_service import PassportService, serve
from client.passport_wire import METHODS, OPENING_KEY, SERVICE, Opening, message
from client.passports import export_passports, write_passports
from client.public_keys import public_of
from client.settings import ClientSettings, PassportSettings

SPACE = "0123456789abcdef"
DIMENSION = 8
PATIENCE_S = 20.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def partner(root: Path, domain: str, *, address: str = "") -> ClientSettings:
    """A domain with keys; its settings are on the disk."""
    folder = root / domain
    folder.mkdir(parents=True)
    where = PassportSettings(outbox="outbox", inbox="inbox", partners="partners", address=address, listen=address)
    ClientSettings(domain=domain, passports=where).write(folder / "partner.toml")
    settings = ClientSettings.read(folder / "partner.toml")
    settings.path("partners").mkdir()
    settings.path("outbox").mkdir()
    return settings


def introduce(*all_of_them: ClientSettings) -> None:
    """Everybody gets everybody's public keys."""
    for one in all_of_them:
        text = public_of(one, own_keys(one)).to_json()
        for other in all_of_them:
            if other is not one:
                (other.path("partners") / f"{one.domain}.json").write_text(text)


def redirect(settings: ClientSettings, to: ClientSettings, *, port: int | None = None, shown: bytes | None = None) -> None:
    """As `introduce`, but the receiver is said to be reached by another port, or to show another certificate."""
    address = f"127.0.0.1:{port}" if port else to.passports.address
    public = own_keys(to).public(to.domain, address=address, certificate=shown.decode() if shown else identity(to).leaf)
    (settings.path("partners") / f"{to.domain}.json").write_text(public.to_json())


def certificate(host: str = "films.example", *, begins: int = -1, ends: int = 10, named: bool = True) -> tuple[bytes, bytes]:
    """A certificate that nobody issued, and its key, as PEM; days from now."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now + timedelta(days=begins)).not_valid_after(now + timedelta(days=ends))
    if named:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), secret


def links(count: int, seed: int = 0) -> list[str]:
    return [f"link-{seed}-{number:032d}" for number in range(count)]


def sealed(source: ClientSettings, target: ClientSettings, *, linked: int = 5, issued: int = 0, pad_to: int = 1024, seed: int = 0) -> bytes:
    """A good file of passports."""
    issued = issued or int(time.time())
    return export_passports(
        keys=own_keys(source),
        source=source.domain,
        target=own_keys(target).public(target.domain),
        link_ids=links(linked, seed),
        vectors=np.random.default_rng(seed).normal(size=(linked, DIMENSION)).astype(np.float32),
        space_version=SPACE,
        encoder_version="initial",
        issued=issued,
        expires=issued + 86_400,
        pad_to=pad_to,
    )


def in_outbox(source: ClientSettings, target: ClientSettings, data: bytes) -> Path:
    path = source.path("outbox") / file_name(source.domain, target.domain)
    write_passports(path, data)
    return path


def inbox(settings: ClientSettings) -> dict[str, bytes]:
    """Everything in the inbox, what is hidden included."""
    folder = settings.path("inbox")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}


@dataclass
class Told:
    """What a server said on its own machine."""

    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def wait_for(self, word: str) -> str:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if found := [line for line in self.lines if word in line]:
                return found[0]
            time.sleep(0.02)
        raise AssertionError(f"nobody said '{word}': {self.lines}")


@contextlib.contextmanager
def served(settings: ClientSettings, *, port: int | None = None, shown: Identity | None = None, **limits: float) -> Iterator[Told]:
    """The real server in a thread, over TLS on loopback."""
    told, running, failed = Told(), threading.Event(), []
    address = f"127.0.0.1:{port}" if port else settings.passports.listen
    ends: list[Callable[[], None]] = []

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(stop.set))
        service = PassportService(settings, tell=told, **{"hush_s": 0.0, **limits})
        await serve(service, address, shown or identity(settings), stop, started=running.set, grace_s=2.0)

    def body() -> None:
        try:
            asyncio.run(run())
        except Exception as error:
            failed.append(error)
            running.set()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        assert running.wait(PATIENCE_S)
        if failed:
            raise failed[0]
        yield told
    finally:
        if thread.is_alive():
            ends[0]()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@contextlib.contextmanager
def channel(settings: ClientSettings, port: int | None = None) -> Iterator[grpc.Channel]:
    """A caller who knows the server's certificate."""
    credentials = grpc.ssl_channel_credentials(identity(settings).leaf.encode())
    address = f"127.0.0.1:{port}" if port else settings.passports.listen
    options = [("grpc.ssl_target_name_override", "127.0.0.1")]
    with grpc.secure_channel(address, credentials, options=options) as open_channel:
        yield open_channel


def said_by(signer: ClientSettings, data: bytes, *, kind: str = "passports", **changes: object) -> bytes:
    """A signed opening, with fields of one's choice."""
    opening = Opening.of(data or b"x", kind=kind, source=signer.domain, target="films")
    return dataclasses.replace(opening, **changes).signed(own_keys(signer))


def call(open_channel: grpc.Channel, opening: bytes | None, parts: Iterator[bytes], *, kind: str = "passports") -> tuple[str, str]:
    """Status and text of the answer, in no words but gRPC's."""
    method = open_channel.stream_unary(f"/{SERVICE}/{METHODS[kind]}", request_serializer=message)
    try:
        method(parts, timeout=PATIENCE_S, metadata=((OPENING_KEY, opening),) if opening is not None else ())
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


@contextlib.contextmanager
def relay(to_port: int, *, cut_after: int | None = None) -> Iterator[tuple[int, bytearray]]:
    """Somebody on the line, who sees every byte of both directions, and may cut the first connection after so many bytes of the sender.

    Yields:
        The port to call instead, and what was seen.
    """
    seen, open_ones, cut = bytearray(), [], [cut_after]
    listener = socket.create_server(("127.0.0.1", 0))

    def pass_on(one: socket.socket, other: socket.socket, forward: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := one.recv(16_384):
                seen.extend(data)
                passed += len(data)
                if forward and cut[0] is not None and passed > cut[0]:
                    cut[0] = None
                    break
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = listener.accept()
                try:
                    other = socket.create_connection(("127.0.0.1", to_port))
                except OSError:
                    one.close()
                    continue
                open_ones.extend((one, other))
                for pair in ((one, other, True), (other, one, False)):
                    threading.Thread(target=pass_on, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1]), seen
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        for each in (listener, *open_ones):
            each.close()
        thread.join(PATIENCE_S)
