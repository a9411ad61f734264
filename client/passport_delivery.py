"""Delivers sealed files to a partner's own server: passports, and erasure notices. Nobody is in between, the coordinator least of all.

The address, and the one certificate that is accepted there, stand in the partner's public keys. A delivery that was cut off is tried again,
as a whole: it has at most `MOST_BYTES`, and a part that waits at the receiver would be one more thing to fill its disk with. What was
taken is remembered, so a later call, also one after a crash, goes on with what is left.
"""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc  # type: ignore[import-untyped]
from cryptography import x509

from shared.addresses import split_address
from shared.errors import PassportError
from shared.supervision import Backoff, tell_on_stderr

from .durable_files import storage_errors, write_file
from .erasure_notice import NOTICE_SUFFIX, is_plain, notices_in
from .key_rotation import own_keys
from .keys import Keys, PublicKeys, seal
from .passport_certificate import name_in
from .passport_exchange import file_name, partners
from .passport_wire import CHUNK_BYTES, METHODS, MOST_BYTES, NOT_TAKEN, NOTICE, OPENING_KEY, PASSPORTS, SERVICE, Opening, message
from .passports import read_passports
from .settings import ClientSettings

_DEADLINE_S = 900.0
_LOOK_S = 10.0
_REFUSALS = 5
"""So often in a row is "not taken" an accident: a disk that is full, another delivery that is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A file that the partner has on its disk.

    Attributes:
        path: of the file here.
        kind: `PASSPORTS` or `NOTICE`.
        bytes: its size, a public one.
    """

    path: Path
    kind: str
    bytes: int


def receiver(settings: ClientSettings, target: str) -> PublicKeys:
    """The public keys of a partner that has a server.

    Raises:
        PassportError: they are not there, or name no address.
    """
    keys = partners(settings).get(target)
    where = settings.passports.partners
    if keys is None:
        raise PassportError(f"there are no public keys of partner '{target}'", do=f"Put the file the partner sent into {where}.")
    if not keys.address:
        do = f"Ask for public keys with an address and put them into {where}; or hand the files over yourself."
        raise PassportError(f"the public keys of '{target}' name no address to deliver to", do=do)
    return keys


def waiting(settings: ClientSettings, target: str) -> list[Path]:
    """What lies in the outbox for a partner and was not delivered yet: notices first."""
    outbox = settings.path(settings.passports.outbox)
    found = [one.path for one in notices_in(outbox, settings.domain) if one.target == target and one.path is not None]
    passports = outbox / file_name(settings.domain, target)
    if passports.is_file() and _taken_before(settings, target) != hashlib.sha256(read_passports(passports)).hexdigest():
        found.append(passports)
    return found


def deliver(
    settings: ClientSettings,
    target: str,
    files: Sequence[Path],
    *,
    patience_s: float = 600.0,
    backoff: Backoff | None = None,
    tell: Callable[[str], None] = tell_on_stderr,
) -> Iterator[Delivered]:
    """Delivers files one after the other; each is yielded once the partner has it.

    A notice of the outbox that was taken is removed from it: it names links of somebody who is forgotten.

    Args:
        files: by their names, `NOTICE_SUFFIX` or passports.
        patience_s: how long to try again; at least one attempt is made.
        backoff: pauses between attempts.
        tell: is told of failed attempts, a line each.
    Raises:
        PassportError: the partner cannot be reached, shows another certificate, or does not take a file; or a file is not one to send.
    """
    to, keys = receiver(settings, target), own_keys(settings)
    until = time.monotonic() + patience_s
    for path in files:
        kind = NOTICE if path.suffix == NOTICE_SUFFIX else PASSPORTS
        data = _sealed(path, kind, to)
        _deliver_one(_Parcel(data=data, kind=kind, source=settings.domain, to=to, keys=keys), until, backoff or Backoff(), tell)
        if kind == PASSPORTS:
            write_file(_taken_mark(settings, target), hashlib.sha256(data).hexdigest().encode())
        elif path.parent == settings.path(settings.passports.outbox):
            with storage_errors(f"'{path.name}'"):
                path.unlink(missing_ok=True)
        yield Delivered(path=path, kind=kind, bytes=len(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parcel:
    data: bytes
    kind: str
    source: str
    to: PublicKeys
    keys: Keys

    def parts(self) -> Iterator[bytes]:
        return (self.data[at : at + CHUNK_BYTES] for at in range(0, len(self.data), CHUNK_BYTES))

    def opening(self) -> bytes:
        return Opening.of(self.data, kind=self.kind, source=self.source, target=self.to.partner).signed(self.keys)


def _sealed(path: Path, kind: str, to: PublicKeys) -> bytes:
    """A file's bytes, as they may travel."""
    data = read_passports(path)
    if kind == NOTICE and is_plain(data):  # written when the partner's keys were not at hand
        data = seal(data, to.box_key)
    if not data:
        raise PassportError(f"'{path.name}' is empty", do="Export it again.")
    if len(data) > MOST_BYTES:
        raise PassportError(f"'{path.name}' has more than {MOST_BYTES >> 20} MiB", do="Hand it to the partner as a file.")
    return data


def _deliver_one(parcel: _Parcel, until: float, backoff: Backoff, tell: Callable[[str], None]) -> None:
    failures = refusals = 0
    while True:
        try:
            _attempt(parcel)
            return
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
        refused = code == grpc.StatusCode.ABORTED and details == NOT_TAKEN
        refusals = refusals + 1 if refused else 0
        failures += 1
        if not refused:
            _check_certificate(parcel.to)
        pause = backoff.pause_s(failures, random.random())
        who = f"'{parcel.to.partner}' at {parcel.to.address}"
        if refusals >= _REFUSALS or time.monotonic() + pause > until:
            if refused:
                do = "It does not say why. Ask what 'isthmus-client passport serve' told there, and compare fingerprints and clocks."
                raise PassportError(f"the server of {who} did not take the file", do=do)
            raise PassportError(
                f"the server of {who} cannot be reached",
                do="Call this again once it runs; what was delivered is not sent twice. Ask the partner whether the address is right.",
            )
        tell(f"{who}: {NOT_TAKEN if refused else f'no answer ({code.name.lower()})'}; tried again in {pause:.1f} s")
        time.sleep(pause)


def _attempt(parcel: _Parcel) -> None:
    """One call.

    Raises:
        grpc.RpcError: the file was not taken, or nobody answered.
    """
    try:
        name = name_in(parcel.to.certificate)
    except ValueError:
        raise _unusable(parcel.to, "cannot be used: it names no host") from None
    credentials = grpc.ssl_channel_credentials(parcel.to.certificate.encode())
    options = [("grpc.ssl_target_name_override", name), ("grpc.max_metadata_size", 8192)]
    with grpc.secure_channel(parcel.to.address, credentials, options=options) as channel:
        call = channel.stream_unary(f"/{SERVICE}/{METHODS[parcel.kind]}", request_serializer=message)
        call(parcel.parts(), timeout=_DEADLINE_S, metadata=((OPENING_KEY, parcel.opening()),))


def _check_certificate(to: PublicKeys) -> None:
    """Why a connection failed, where it is the certificate: no patience helps then. Nothing is sent here, and nothing is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(split_address(to.address), timeout=_LOOK_S) as plain, context.wrap_socket(plain) as tls:
            shown = tls.getpeercert(binary_form=True)
        expected = x509.load_pem_x509_certificate(to.certificate.encode())
    except (OSError, ValueError):
        return
    if shown is None:
        return
    if x509.load_der_x509_certificate(shown) != expected:
        raise _unusable(to, "is not the one in the partner's public keys")
    if datetime.now(UTC) >= expected.not_valid_after_utc:
        raise _unusable(to, f"ended on {expected.not_valid_after_utc:%Y-%m-%d}")
    if datetime.now(UTC) < expected.not_valid_before_utc:
        raise _unusable(to, "is not valid yet: compare the clocks")


def _unusable(to: PublicKeys, why: str) -> PassportError:
    return PassportError(
        f"the certificate of the server of '{to.partner}' at {to.address} {why}",
        do="Nothing was sent. Ask the partner for the public keys again, over a channel you both trust.",
    )


def _taken_mark(settings: ClientSettings, target: str) -> Path:
    return settings.at_home("passports_delivered") / target


def _taken_before(settings: ClientSettings, target: str) -> str:
    mark = _taken_mark(settings, target)
    return mark.read_text(encoding="utf-8") if mark.is_file() else ""
