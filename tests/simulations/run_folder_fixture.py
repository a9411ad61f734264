"""A finished run folder that no run made: figures are planted, so that tables and reports have a right answer."""

import json
from pathlib import Path

import numpy as np

from client.egress_manifest import Manifest
from shared.config import ModelConfig, PrivacyConfig, RunConfig
from simulations.metrics import Bytes, DomainPrivacy, Metrics, Seconds, build_metrics, write_metrics
from simulations.ranks import METHODS, RanksFile, write_ranks

DOMAINS = ("books", "films")
N_ITEMS = 200
STRENGTH = {
    "popularity": 0.12,
    "linked-popularity": 0.13,
    "text": 0.1,
    "text-popularity": 0.15,
    "head-only": 0.16,
    "neighbours": 0.2,
    "target-only": 0.17,
    "federated": 0.3,
    "federated-shuffled": 0.12,
    "recommender": 0.32,
    "pooled-ridge": 0.35,
}
"""Chance of each held-out item to be among the first ten."""


def planted_ranks(n_users: int, seed: int, methods: dict[str, float], *, first_person: int = 0) -> RanksFile:
    """Ranks in which a method's held-out items are among the first ten with the given chance."""
    generator = np.random.default_rng(seed)
    offsets = np.append(0, generator.integers(1, 4, n_users).cumsum())
    hit, where = generator.random(offsets[-1]), generator.random(offsets[-1])
    ranks, top = {}, {}
    for method, chance in methods.items():
        ranks[method] = np.where(hit < chance, np.floor(where * 10), np.floor(10 + where * (N_ITEMS - 10))).astype(np.float32)
        top[method] = np.argsort(generator.random((n_users, N_ITEMS)), axis=1)[:, :20].astype(np.int32)
    users = np.zeros((n_users, 16), dtype=np.uint8)
    users[:, :4] = (first_person + np.arange(n_users, dtype="<u4")).view(np.uint8).reshape(n_users, 4)
    return RanksFile(offsets=offsets, users=users, popularity=generator.integers(0, 50, N_ITEMS), ranks=ranks, top=top)


def config_of(*, seed: int = 0, epsilon: float = 8.0, noise: str = "system", name: str = "planted", method: str = "residual") -> RunConfig:
    privacy = PrivacyConfig(epsilon=epsilon, noise=noise, rounds=3, noise_multiplier=1.0)
    return RunConfig(name=name, seed=seed, privacy=privacy, model=ModelConfig(method=method))


def planted_folder(
    folder: Path,
    *,
    seed: int = 0,
    epsilon: float = 8.0,
    noise: str = "system",
    strength: dict[str, float] | None = None,
    n_users: int = 300,
    method: str = "residual",
    validation: dict[str, float] | None = None,
) -> Path:
    """Writes a whole run folder: configuration, rounds, ranks, metrics and egress manifests.

    Args:
        strength: method -> chance of a hit; of cold people, and of validation people where ``validation`` says nothing else.
    """
    config = config_of(seed=seed, epsilon=epsilon, noise=noise, method=method)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config.to_toml())
    chances = strength or STRENGTH
    for number, (source, target) in enumerate((DOMAINS, DOMAINS[::-1])):
        write_ranks(folder / "ranks" / f"{source}-{target}.npz", planted_ranks(n_users, 100 * seed + number, chances))
        known = {row: (validation or chances)[row] for row in ("popularity", "head-only", "federated", "federated-shuffled")}
        ranks = planted_ranks(n_users // 3, 100 * seed + 20 + number, known, first_person=n_users)
        write_ranks(folder / "ranks" / "validation" / f"{source}-{target}.npz", ranks)
    for number, domain in enumerate(DOMAINS):
        warm = {method: chances[method] for method in ("popularity", "text", "federated")}
        write_ranks(folder / "ranks" / f"warm-{domain}.npz", planted_ranks(n_users, 100 * seed + 10 + number, warm))
    write_rounds(folder, config)
    for domain in DOMAINS:
        write_egress(folder / "clients" / domain / "egress.jsonl", config.privacy.rounds)
    write_metrics(folder / "metrics.json", metrics_of(folder, config, split_seed=seed))
    return folder


def metrics_of(folder: Path, config: RunConfig, *, split_seed: int) -> Metrics:
    epsilon = config.privacy.epsilon if config.privacy.private else np.inf
    spent = DomainPrivacy(epsilon=epsilon * 0.9, delta=1e-6, ceiling=epsilon, pld=epsilon * 0.9, prv=epsilon * 0.9, rdp=epsilon, events=3)
    return build_metrics(
        folder / "ranks",
        privacy=dict.fromkeys(DOMAINS, spent),
        seconds=Seconds(text_encoding=1.5, training=8.25, evaluation=2.0, total=12.0),
        bytes=dict.fromkeys(DOMAINS, Bytes(up=123_456, down=234_567)),
        peak_rss_mb=812.5,
        config_hash=config.config_hash,
        versions={"isthmus": "0.1.0", "flwr": "1.41.0", "torch": "2.13.0"},
        seed=config.seed,
        split_seed=split_seed,
        epsilon_target=config.privacy.epsilon,
        noise=config.privacy.noise,
        private=config.privacy.private,
        generator=np.random.default_rng(0),
    )


def write_rounds(folder: Path, config: RunConfig) -> None:
    lines = []
    for number in range(1, config.privacy.rounds + 1):
        spent = config.privacy.epsilon * 0.9 * (number / config.privacy.rounds) ** 0.6
        lines.append(
            {
                "round": number,
                "seconds": 2.5 + number / 10,
                "replies": list(DOMAINS),
                "refused": [],
                "epsilon": {domain: spent if np.isfinite(spent) else None for domain in DOMAINS},
                "bytes": {domain: {"up": 9000, "down": 8000} for domain in DOMAINS},
            }
        )
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_egress(path: Path, rounds: int) -> None:
    path.parent.mkdir(parents=True)
    kinds = [("query.hello", 120), ("query.moments", 600_000), ("query.centroids", 17_000), ("query.descriptor", 200)]
    kinds += [("train", 9000)] * rounds + [("query.deliver", 60)]
    manifest = Manifest(path)
    for kind, size in kinds:
        manifest.left(kind=kind, why="fixed shape, public by declared policy", schema=kind, size=size, sha256="0" * 64)


__all__ = ["DOMAINS", "METHODS", "STRENGTH", "config_of", "metrics_of", "planted_folder", "planted_ranks"]
