"""Two small partners with real files, texts, links, keys and ledgers: books and films, and the messages that a server would send them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client import delivery, queries, rounds
from client.passport_exchange import export, own_keys, take_in
from client.preparation import prepare
from client.settings import BenchmarkSettings, CeilingSettings, ClientSettings, DataSettings, PassportSettings
from shared import wire
from shared.config import ModelConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.interest_space import InterestSpace, Moments, centroids
from shared.privacy.ledger import Ledger
from shared.transfer_layer import initial_arrays

RUN = "run-1"
CONFIG = RunConfig(
    name="small",
    seed=3,
    privacy=PrivacyConfig(noise_multiplier=4.0, sampling_rate=0.2, rounds=2, steps_per_round=2, expected_batch_users=8),
    model=ModelConfig(dimension=8, rank=2, descriptor_dimension=4, prototypes=4),
    training=TrainingConfig(max_history_items=6, max_items_per_user=20, target_items=2, catalogue_negatives=16),
)
DOMAINS = ("books", "films")
ITEMS, LINKED, ALONE, SPLIT_SEED = 24, 60, 20, 5
_WORDS = ("galaxy", "recipe", "yacht", "chess", "rose", "locomotive", "violin", "volcano")


def link_id(person: str) -> str:
    return hashlib.sha256(person.encode()).hexdigest()[:32]


def people(domain: str) -> list[str]:
    return [f"p{n:03d}" for n in range(LINKED)] + [f"{domain}-{n:03d}" for n in range(ALONE)]


def settings(root: Path, domain: str, text_cache: Path) -> ClientSettings:
    """Files and settings of a domain; every person has four to nine items, the linked ones a token each."""
    folder = root / domain
    folder.mkdir(parents=True)
    generator = np.random.default_rng(DOMAINS.index(domain))
    titles = [f"{domain[0]}{n:02d},{_WORDS[n % 8]} number {n},{domain}" for n in range(ITEMS)]
    (folder / "items.csv").write_text("item_id,title,categories\n" + "\n".join(titles) + "\n")
    rows = ["user_id,item_id,timestamp"]
    for person in people(domain):
        items = generator.choice(ITEMS, size=generator.integers(4, 10), replace=False)
        rows += [f"{person},{domain[0]}{item:02d},{1_600_000_000 + 1000 * at}" for at, item in enumerate(items)]
    (folder / "interactions.csv").write_text("\n".join(rows) + "\n")
    partner = DOMAINS[1 - DOMAINS.index(domain)]
    links = [f"{person},{partner},{link_id(person)}" for person in people(domain)[:LINKED]]
    (folder / "links.csv").write_text("user_id,partner,link_id\n" + "\n".join(links) + "\n")
    made = ClientSettings(
        domain=domain,
        text_cache=str(text_cache),
        data=DataSettings(links="links.csv"),
        ceiling=CeilingSettings(epsilon=8.0, delta=CONFIG.privacy.delta),
        passports=PassportSettings(outbox="outbox", inbox="inbox", partners="partners"),
        benchmark=BenchmarkSettings(split_seed=SPLIT_SEED, hold_out_last=True),
    )
    made.write(folder / "partner.toml")
    return ClientSettings.read(folder / "partner.toml")


@dataclass(frozen=True)
class World:
    """Both partners below one folder, greeted, with the interest space fixed."""

    root: Path
    space_version: str

    def __getitem__(self, domain: str) -> ClientSettings:
        return ClientSettings.read(self.root / domain / "partner.toml")

    def toml(self, domain: str) -> str:
        return str(self.root / domain / "partner.toml")


def introduce(root: Path) -> None:
    """Each partner gets the other's public keys."""
    both = {domain: ClientSettings.read(root / domain / "partner.toml") for domain in DOMAINS}
    for domain, one in both.items():
        (other,) = (both[name] for name in DOMAINS if name != domain)
        folder = other.path("partners")
        folder.mkdir(exist_ok=True)
        (folder / f"{domain}.json").write_text(own_keys(one).public(domain).to_json())


def ledger(one: ClientSettings) -> None:
    one.ledger_path.parent.mkdir(parents=True, exist_ok=True)
    said = {"domain": one.domain, "ceiling_epsilon": 8.0, "delta": one.ceiling.delta, "set_by": "partner"}
    Ledger.create(one.ledger_path, signer=own_keys(one), **said).close()


def settle(root: Path, text_cache: Path) -> World:
    """Both partners up to the moment before passports go out."""
    both = [settings(root, domain, text_cache) for domain in DOMAINS]
    for one in both:
        ledger(one)
        queries.hello(one, wire.Hello(run_id=RUN, config_toml=CONFIG.to_toml()))
    replies = [queries.moments(one, wire.MomentsQuery(run_id=RUN)) for one in both]
    found = [Moments(r.count, r.total, r.outer) for r in replies if isinstance(r, wire.MomentsReply)]
    space = InterestSpace.from_moments(found, CONFIG.model.dimension)
    space = space.with_prototypes([centroids(np.eye(8, dtype=np.float32), 4, 0)], 4, 0)
    for one in both:
        queries.descriptor(one, descriptor_query(space))
    introduce(root)
    return World(root=root, space_version=space.version)


def descriptor_query(space: InterestSpace) -> wire.DescriptorQuery:
    return wire.DescriptorQuery(mean=space.mean, basis=space.basis, scale=space.scale, prototypes=space.prototypes)


def instruction(round: int = 1, run_id: str = RUN) -> wire.RoundInstruction:
    return wire.RoundInstruction(run_id=run_id, round=round, config_hash=CONFIG.config_hash, arrays=initial_arrays(CONFIG.model, 3))


def final_layer() -> wire.Deliver:
    generator = np.random.default_rng(8)
    arrays = {name: generator.normal(size=a.shape).astype(np.float32) for name, a in initial_arrays(CONFIG.model, 3).items()}
    return wire.Deliver(run_id=RUN, round=2, arrays=arrays)


def exchange(world: World) -> None:
    """Passports both ways, as files."""
    for source, target in (DOMAINS, DOMAINS[::-1]):
        made = export(world[source], CONFIG, prepare(world[source], CONFIG), target, world.space_version)
        take_in(world[target], world.space_version, made.path, dimension=CONFIG.model.dimension)


def trained(root: Path, text_cache: Path) -> World:
    """A whole run, without a server: passports, two rounds at each partner, delivery."""
    world = settle(root, text_cache)
    exchange(world)
    for domain in DOMAINS:
        for round in (1, 2):
            rounds.train(world[domain], instruction(round), bundle_digest="b" * 64, code_version="0")
        delivery.deliver(world[domain], final_layer())
    return world
