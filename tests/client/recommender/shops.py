"""Two shops whose linked customers like the same things in both: books and films about one of eight subjects, delivered and served.

The right answer is known by construction: everybody's items are about their subject (and one item that many take), so who brings the
passport of a reader of galaxies wants films about galaxies.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from client import delivery, queries, rounds
from client.settings import BenchmarkSettings, ClientSettings
from shared import wire
from shared.interest_space import InterestSpace, Moments
from shared.transfer_layer import initial_arrays
from tests.client import partner_world
from tests.client.partner_world import CONFIG, DOMAINS, RUN, World

SUBJECTS = ("galaxy", "recipe", "yacht", "chess", "rose", "locomotive", "violin", "volcano")
ITEMS = 64
LINKED, ALONE = 160, 40
NEWCOMERS = ("n00", "n01")
"""Linked customers of the other shop without a single interaction here: the first likes subject 0, the second subject 1."""


def subject_of(item: str) -> str:
    """What an item is about: items stand in turn for the subjects."""
    return SUBJECTS[int(item[1:]) % 8]


def likes(person: str) -> int:
    """The subject that a person likes, in every shop."""
    return int(person[-2:]) % 8


def shop(root: Path, domain: str, text_cache: Path) -> ClientSettings:
    """Like `partner_world.settings`, with a taste for each person: five items about their subject; and item 0, which half of all take."""
    partner_world.settings(root, domain, text_cache)
    folder, generator = root / domain, np.random.default_rng(DOMAINS.index(domain))
    titles = [f"{domain[0]}{n:02d},the {SUBJECTS[n % 8]} {n // 8},{domain}" for n in range(ITEMS)]
    (folder / "items.csv").write_text("item_id,title,categories\n" + "\n".join(titles) + "\n")
    partner = DOMAINS[1 - DOMAINS.index(domain)]
    people = [f"p{n:03d}" for n in range(LINKED)] + [f"{domain}-{n:03d}" for n in range(ALONE)]
    rows, links = ["user_id,item_id,timestamp"], ["user_id,partner,link_id"]
    for person in people:
        items = [likes(person) + 8 * place for place in generator.permutation(8)[:5]] + [0] * (generator.random() < 0.5)
        rows += [f"{person},{domain[0]}{item:02d},{1_600_000_000 + 1000 * at}" for at, item in enumerate(items)]
    for person in NEWCOMERS:
        if domain == "books":
            rows += [f"{person},b{likes(person) + 8 * place:02d},{1_600_000_000 + place}" for place in range(5)]
        links.append(f"{person},{partner},{partner_world.link_id(person)}")
    links += [f"{person},{partner},{partner_world.link_id(person)}" for person in people[:LINKED]]
    (folder / "interactions.csv").write_text("\n".join(rows) + "\n")
    (folder / "links.csv").write_text("\n".join(links) + "\n")
    made = dataclasses.replace(ClientSettings.read(folder / "partner.toml"), benchmark=BenchmarkSettings())  # nobody is held out
    made.write(folder / "partner.toml")
    return ClientSettings.read(folder / "partner.toml")


def delivered_shops(root: Path, text_cache: Path) -> World:
    """Both shops after a whole run whose final layer is the identity: what was liked there is liked here."""
    both = [shop(root, domain, text_cache) for domain in DOMAINS]
    for one in both:
        partner_world.ledger(one)
        queries.hello(one, wire.Hello(run_id=RUN, config_toml=CONFIG.to_toml()))
    replies = [queries.moments(one, wire.MomentsQuery(run_id=RUN)) for one in both]
    space = InterestSpace.from_moments([Moments(r.count, r.total, r.outer) for r in replies if isinstance(r, wire.MomentsReply)], 8)
    found = [queries.prototype_centroids(one, wire.CentroidsQuery(mean=space.mean, basis=space.basis, scale=space.scale)) for one in both]
    domain_centroids = [reply.centroids for reply in found if isinstance(reply, wire.CentroidsReply)]
    space = space.with_prototypes(domain_centroids, CONFIG.model.prototypes, 0)
    for one in both:
        queries.descriptor(one, partner_world.descriptor_query(space))
    partner_world.introduce(root)
    world = World(root=root, space_version=space.version)
    partner_world.exchange(world)
    for domain in DOMAINS:
        rounds.train(world[domain], partner_world.instruction(1), bundle_digest="b" * 64, code_version="0")
        delivery.deliver(world[domain], identity())
    return world


def identity(round: int = 1) -> wire.Deliver:
    """A final layer that changes nothing."""
    return wire.Deliver(run_id=RUN, round=round, arrays=initial_arrays(CONFIG.model, 3))
