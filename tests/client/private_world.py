"""The two partners of `partner_world` and a third, music, to which books is linked too; all of them send private passports."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from pathlib import Path

import numpy as np

from client.key_rotation import own_keys
from client.passport_exchange import export
from client.passports import ImportedPassports, import_passports
from client.preparation import prepare
from client.settings import ClientSettings
from tests.client.partner_world import CONFIG, World

EPSILON = 4.0


def music_link(person: str) -> str:
    return hashlib.sha256(f"music/{person}".encode()).hexdigest()[:32]


def choose(world: World, domain: str, **passports: object) -> ClientSettings:
    """Changes the [passports] section of a domain."""
    settings = world[domain]
    dataclasses.replace(settings, passports=dataclasses.replace(settings.passports, **passports)).write(Path(world.toml(domain)))
    return world[domain]


def make_private(world: World) -> World:
    for domain in ("books", "films"):
        choose(world, domain, mode="private", epsilon_u=EPSILON, private_dimensions=16)
    folder = world.root / "music"
    folder.mkdir()
    ClientSettings(domain="music").write(folder / "partner.toml")
    (world["books"].path("partners") / "music.json").write_text(own_keys(world["music"]).public("music").to_json())
    links = world.root / "books/links.csv"
    people = [line.split(",")[0] for line in links.read_text().splitlines()[1:]]
    links.write_text(links.read_text() + "".join(f"{person},music,{music_link(person)}\n" for person in people))
    prepared = prepare(world["books"], CONFIG)
    prepared.fix_space(prepared.space(world.space_version))
    return world


def send(world: World, target: str, space_version: str | None = None) -> Path:
    """Books exports to a target."""
    books = world["books"]
    return export(books, CONFIG, prepare(books, CONFIG), target, space_version or world.space_version).path


def opened(world: World, target: str, data: bytes) -> ImportedPassports:
    """What a target finds in a file."""
    books = own_keys(world["books"]).public("books")
    return import_passports(
        data, keys=own_keys(world[target]), me=target, partners={"books": books}, space_version="whatever", now=int(time.time())
    )


def vectors(world: World, target: str, data: bytes | None = None) -> dict[str, bytes]:
    """Person -> bytes of their vector in a file to a target; in the newest one in the outbox when left out."""
    found = opened(world, target, data or (world["books"].path("outbox") / f"books-to-{target}.passports").read_bytes())
    by_link = dict(zip(found.link_ids, (row.tobytes() for row in np.asarray(found.vectors)), strict=True))
    lines = (line.split(",") for line in (world.root / "books/links.csv").read_text().splitlines()[1:])
    return {person: by_link[link] for person, partner, link in lines if partner == target and link in by_link}


def environment() -> dict[str, str]:
    """For processes of one's own."""
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
