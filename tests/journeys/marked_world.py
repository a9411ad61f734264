"""A world full of markers, a listener on the wire, and a search for what was planted, however it is spelt."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flwr.common.serde import message_from_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from client.data.pseudonyms import load_or_create_key, pseudonym
from client.settings import ClientSettings
from tests.journeys.tiny_world import DOMAINS, World, tiny, world, write_domain

USER, LINKED, ITEM, TEXT, FILE = "kolibri-user", "kolibri-linked", "wombat-item", "Quagga", "narwhal-folder"
MODEL = {"model__dimension": 8, "model__prototypes": 4, "privacy__expected_batch_users": 8}


def marked_world(tmp_path: Path, name: str, *, alone: int = 20, linked: int = 8, **more: object) -> World:
    """Three domains whose every user id, item id, title and file name holds a marker; links are marked as they are made."""
    generator = np.random.default_rng(5)
    items = {d: [(f"{ITEM}-{d}-{i:03d}", f"{TEXT} {d} {i % 4} volume {i}") for i in range(30)] for d in DOMAINS}
    sources = {}
    for domain in DOMAINS:
        users = [f"{USER}-{domain}-{u:04d}" for u in range(alone)] + [f"{LINKED}-{u:04d}" for u in range(linked)]
        histories = {user: generator.permutation(30)[:6].tolist() for user in users}
        sources[domain] = write_domain(tmp_path / f"{FILE}-{name}" / domain, items[domain], histories)
    return world(tmp_path / name, sources=sources, overrides=tiny(**MODEL, **more))


class Wire:
    """Keeps every message as bytes."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, int, bytes]] = []

    def __call__(self, direction: str, client: int, data: bytes) -> None:
        self.messages.append((direction, client, data))

    def sizes(self) -> dict[tuple[str, int, str], list[int]]:
        """(direction, client, kind) -> sizes, in order."""
        found: dict[tuple[str, int, str], list[int]] = defaultdict(list)
        for direction, client, data in self.messages:
            kind = message_from_proto(ProtoMessage.FromString(data)).metadata.message_type
            found[direction, client, kind].append(len(data))
        return dict(found)

    def up(self, client: int, kind: str) -> list[bytes]:
        """Contents of a client's replies of one kind."""
        read = [message_from_proto(ProtoMessage.FromString(d)) for way, who, d in self.messages if (way, who) == ("up", client)]
        assert not any(message.has_error() for message in read)  # Flower's error carries the exception's text
        found = [message for message in read if message.metadata.message_type == kind]
        return [recorddict_to_proto(message.content).SerializeToString(deterministic=True) for message in found]


def spellings(secret: str | bytes) -> Iterator[bytes]:
    """A secret as it might hide: as it is, in hex, base64 at any alignment, UTF-16, reversed, or as a digest."""
    plain = secret.encode() if isinstance(secret, str) else secret
    forms = [plain, plain[::-1]]
    if isinstance(secret, str):
        forms += [secret.encode("utf-16-le"), secret.encode("utf-16-be"), secret.upper().encode(), secret.lower().encode()]
    yield from forms
    for form in forms:
        yield form.hex().encode()
        yield form.hex().upper().encode()
        for shift in range(3):  # base64 of the secret inside something longer: cut off what its neighbours decide
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                whole = encode(bytes(shift) + form)[(0, 2, 3)[shift] :].rstrip(b"=")
                yield whole[: len(whole) - 1]
    for digest in (hashlib.sha256(plain).digest(), hashlib.sha1(plain).digest(), hashlib.md5(plain).digest()):
        yield digest
        yield digest.hex().encode()


def leaks(messages: list[tuple[str, int, bytes]], secrets: dict[str, str | bytes]) -> set[str]:
    """Names of the secrets that are found in any message."""
    patterns = {name: re.compile(b"|".join(re.escape(form) for form in set(spellings(secret)))) for name, secret in secrets.items()}
    return {name for name, pattern in patterns.items() if any(pattern.search(data) for _, _, data in messages)}


def secrets_of(settings: ClientSettings) -> dict[str, str | bytes]:
    """What a domain must keep: the markers, and everything that stands for a single user or link."""
    domain = settings.domain
    key = load_or_create_key(settings.at_home("keys") / "pseudonyms.key")
    users = [f"{USER}-{domain}-{u:04d}" for u in range(3)] + [f"{LINKED}-{u:04d}" for u in range(3)]
    links = [line.split(",") for line in settings.path(settings.data.links).read_text().splitlines()[1:6]]
    column = settings.path(settings.data.links).read_text().splitlines()[0].split(",").index("link_id")
    found: dict[str, str | bytes] = {
        "user": USER,
        "linked user": LINKED,
        "item": ITEM,
        "text": TEXT,
        "file": FILE,
        "home": str(settings.base),
    }
    found |= {f"pseudonym of {user}": row.tobytes() for user, row in zip(users, pseudonym(key, users), strict=True)}
    found |= {f"link {number}": link[column] for number, link in enumerate(links)}
    found |= {"pseudonym key": key}
    return found


def all_secrets(federation: World) -> dict[str, str | bytes]:
    return {f"{one.domain}: {name}": secret for one in federation.settings for name, secret in secrets_of(one).items()}
