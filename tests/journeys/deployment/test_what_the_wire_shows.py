"""A whole run over real processes, and everything that passes between proxy and SuperLink in plain text: what is in it, and how much.

Each partner's user ids, item ids, titles, file names and link tokens hold markers; passports go from partner to partner. The coordinator's
side of TLS is where somebody could listen at most; a partner's own network sees less.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import zipfile
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from flwr.proto.fab_pb2 import GetFabResponse
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from client.key_rotation import own_keys
from client.register import Register
from client.settings import ClientSettings
from simulations.partners import linked
from tests.journeys.coordinated import Coordinated, coordinator, tiny_run
from tests.journeys.deployment.partner_position import secrets_of as hidden_names
from tests.journeys.deployment.relay import DOWN, UP, Exchange, Relay
from tests.journeys.deployment.what_must_hold import lost_attempts
from tests.journeys.marked_world import FILE, ITEM, LINKED, TEXT, USER, leaks, secrets_of
from tests.journeys.tiny_world import write_domain
from tests.server.nginx import installed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PARTNERS = ("books", "films", "music")
ROUNDS = 2
LISTENED_S = 20.0
FACTOR, PER_MESSAGE = 1.25, 64 * 1024
"""How much more than the manifests' bytes may pass: a share of them, and bytes for each message."""


def marked_sources(folder: Path) -> dict[str, dict[str, Any]]:
    """Data with markers, and links between their users; what each partner.toml says about them."""
    generator = np.random.default_rng(5)
    sources = {}
    for domain in PARTNERS:
        users = [f"{USER}-{domain}-{u:04d}" for u in range(20)] + [f"{LINKED}-{u:04d}" for u in range(8)]
        items = [(f"{ITEM}-{domain}-{i:03d}", f"{TEXT} {domain} {i % 4} volume {i}") for i in range(30)]
        sources[domain] = write_domain(folder / FILE / domain, items, {user: generator.permutation(30)[:6].tolist() for user in users})
    post = folder / "post"
    post.mkdir(mode=0o700)
    for domain, links in linked({domain: path / "interactions.csv" for domain, path in sources.items()}).items():
        links.write_csv(sources[domain] / "links.csv")
    return {
        domain: {
            **{f"data.{name}": str(path / f"{name}.csv") for name in ("items", "interactions", "links")},
            "passports.automatic": True,
            "passports.outbox": str(post),
            "passports.inbox": str(post),
        }
        for domain, path in sources.items()
    }


@contextlib.contextmanager
def listened_to(folder: Path, project: Path) -> Iterator[tuple[Coordinated, Relay]]:
    """A federation whose proxy speaks to the SuperLink through a relay."""
    ours = coordinator(folder, project, domains=PARTNERS, own=marked_sources(folder))
    with Relay(ours.home).running() as relay:
        try:
            ours.command("up", ours.home.root, "--detach")
            for domain in ours.partners:
                ours.up(domain)
            ours.wait(lambda: {one["node"] for one in ours.status()["partners"]} == {"online"}, "not every node connected")
            yield ours, relay
        finally:
            ours.end()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What was heard, once all of it has ended."""

    ours: Coordinated
    streams: list[tuple[str, int, bytes]]
    exchanges: list[Exchange]
    idle_from: float
    run_from: float
    run_until: float
    node_ids: dict[str, int]

    def of(self, domain: str) -> list[Exchange]:
        """A partner's node's requests."""
        key = serialization.load_ssh_public_key(self.ours.partners[domain].node_key_path.with_suffix(".pub").read_bytes())
        who = b64encode(public_key_to_bytes(key)).decode()  # type: ignore[arg-type]
        return [one for one in self.exchanges if one.who == who]


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Heard:
    installed()
    folder = tmp_path_factory.mktemp("wire")
    with listened_to(folder, repository) as (ours, relay):
        idle_from = time.monotonic()
        time.sleep(LISTENED_S)
        toml = folder / "run.toml"
        toml.write_text(tiny_run(rounds=ROUNDS, reserve_rounds=2, expected_batch_users=8).to_toml())
        run_from = time.monotonic()
        ours.command("run", ours.home.root, toml, "--wait-for", "all", timeout=1500)
        run_until = time.monotonic()
        node_ids = {domain: hidden_names(ours.home.superlink_state, domain).node_id for domain in PARTNERS}
    return Heard(
        ours=ours,
        streams=relay.streams(),
        exchanges=relay.exchanges(),
        idle_from=idle_from,
        run_from=run_from,
        run_until=run_until,
        node_ids=node_ids,
    )


def test_the_run_was_a_whole_one_with_passports(heard: Heard) -> None:
    """Else nothing that follows would say anything."""
    assert lost_attempts(heard.ours, rounds=dict.fromkeys(PARTNERS, ROUNDS), reserve=2) == dict.fromkeys(PARTNERS, 0)
    for settings in heard.ours.partners.values():
        assert len(sealed(settings)) == len(PARTNERS) * (len(PARTNERS) - 1)
        with Register(settings.at_home("register.sqlite")) as register:
            spaces = {path.read_text() for path in settings.at_home("passports_sent").iterdir()}
            (space,) = spaces
            taken = [len(register.imported(source, space_version=space, now=int(time.time()))[0]) for source in others(settings.domain)]
        assert all(taken), (settings.domain, taken)
    assert all(len([one for one in heard.of(domain) if not one.idle]) > 20 for domain in PARTNERS)


def others(domain: str) -> list[str]:
    return [one for one in PARTNERS if one != domain]


def sealed(settings: ClientSettings) -> list[Path]:
    return sorted(settings.path(settings.passports.outbox).glob("*.passports"))


def everything(heard: Heard) -> list[tuple[str, int, bytes]]:
    """Streams as they passed, bodies without the marks of pieces, and bundles unpacked."""
    assert not any(one.encoded for one in heard.exchanges)  # else a search would have to decode it
    found = list(heard.streams)
    for number, one in enumerate(heard.exchanges):
        found += [(UP, number, one.asked), (DOWN, number, one.answered)]
        if one.path == "/v1/fleet/get-fab":
            with zipfile.ZipFile(io.BytesIO(GetFabResponse.FromString(one.answered).fab.content)) as bundle:
                found += [(DOWN, number, bundle.read(name)) for name in bundle.namelist()]
    return found


def test_no_id_no_link_token_and_no_text_of_an_item_is_in_it(heard: Heard) -> None:
    secrets = {f"{domain}: {name}": secret for domain, one in heard.ours.partners.items() for name, secret in secrets_of(one).items()}
    assert len(secrets) == len(PARTNERS) * 18
    told = everything(heard)
    assert leaks(told, secrets) == set()

    # The same search finds what does pass: a name, a key in a receipt, and a marker that somebody put there.
    keys = {domain: own_keys(one).verify_key for domain, one in heard.ours.partners.items()}
    passes = {**{f"name of {domain}": domain for domain in PARTNERS}, **{f"key of {domain}": key for domain, key in keys.items()}}
    assert leaks([one for one in told if one[0] == UP], dict(passes)) == set(passes)
    assert leaks([*told, (UP, 0, b"\x0a" + b64encode(f"x{USER}-books-0001".encode()))], secrets) >= {"books: user"}

    for path in sealed(heard.ours.partners["books"]):
        data = path.read_bytes()
        assert not any(data[at : at + 32] in message for at in range(0, len(data) - 32, 4096) for *_, message in heard.streams)
    size = sum(len(data) for *_, data in heard.streams)
    print(f"{len(heard.exchanges)} requests, {size:,} bytes in both directions, {len(secrets)} secrets: none found")


def spelt(number: int) -> list[bytes]:
    """A node's number as it might be written."""
    rest, varint = number, bytearray()
    while rest > 127:
        varint.append(rest & 127 | 128)
        rest >>= 7
    return [bytes([*varint, rest]), str(number).encode(), number.to_bytes(8, "little"), number.to_bytes(8, "big"), f"{number:x}".encode()]


def test_a_partner_is_told_nothing_by_which_it_could_name_another_ones_node_or_messages(heard: Heard) -> None:
    messages = {
        domain: {
            given.metadata.message_id
            for one in heard.of(domain)
            if one.path == "/v1/fleet/pull-messages"
            for given in PullMessagesResponse.FromString(one.answered).messages_list
        }
        for domain in PARTNERS
    }
    assert all(len(names) == 7 for names in messages.values()), messages  # hello, moments, centroids, descriptor, two rounds, deliver
    for domain in PARTNERS:
        told = b"".join(one.answered for one in heard.of(domain))
        assert any(form in told for form in spelt(heard.node_ids[domain]))  # its own number is
        for other in others(domain):
            assert not any(form in told for form in spelt(heard.node_ids[other])), (domain, other)
            assert not any(name.encode() in told for name in messages[other]), (domain, other)


def test_hardly_more_leaves_than_the_manifests_say(heard: Heard) -> None:
    """Bytes upwards, heads of HTTP included; idle polling is measured before the run and taken out of the run request by request."""
    idle = [one for one in heard.exchanges if one.idle and heard.idle_from <= one.at < heard.idle_from + LISTENED_S]
    assert [one.path for one in heard.exchanges if heard.idle_from <= one.at < heard.idle_from + LISTENED_S and not one.idle] == []
    seconds, per_request, rate = LISTENED_S, sum(one.up for one in idle) / len(idle), len(idle) / LISTENED_S / len(PARTNERS)
    print(
        f"idle: {rate:.2f} requests/s a node, {per_request:.0f} bytes up and {sum(one.down for one in idle) / len(idle):.0f} down each, "
        f"{rate * per_request:.0f} bytes/s up a node"
    )

    during = [one for one in heard.exchanges if heard.run_from <= one.at]
    polls = [one for one in during if one.idle]
    took = heard.run_until - heard.run_from
    assert sum(one.up for one in polls) / len(polls) < 1.1 * per_request  # what is taken out is what idle nodes send, and no more often
    assert len(polls) < 1.5 * len(idle) / seconds * took + 60

    up_all = sum(len(data) for way, _, data in heard.streams if way == UP)
    assert (
        up_all - sum(one.up for one in heard.exchanges) < 2048
    )  # nothing passed that was not read as a request, but for one cut off at the end
    said_all, messages_all, leaving_all = 0, 0, 0
    for domain, settings in heard.ours.partners.items():
        lines = [json.loads(line) for line in settings.at_home("egress.jsonl").read_text().splitlines()]
        left = [line for line in lines if line["event"] == "left"]
        said = sum(line["bytes"] for line in left)
        leaving = sum(one.up for one in heard.of(domain) if not one.idle)
        assert len(left) == 7
        assert leaving <= FACTOR * said + PER_MESSAGE * len(left), (domain, leaving, said)
        said_all, messages_all, leaving_all = said_all + said, messages_all + len(left), leaving_all + leaving
    kinds = Counter[str]()
    for one in during:
        kinds[one.path.rpartition("/")[2]] += 0 if one.idle else one.up
    print(
        f"up, idle taken out: {leaving_all:,} bytes; manifests: {said_all:,} in {messages_all} messages; "
        f"x{leaving_all / said_all:.3f}, {(leaving_all - said_all) / messages_all:,.0f} bytes more a message; by request: {dict(kinds)}"
    )
    down = Counter[str]()
    for one in during:
        down[one.path.rpartition("/")[2]] += one.down
    print(f"down, in no manifest: {dict(down)}")
