"""metrics.json, schema 2: what a run brought, what it cost, and how sure that is.

Ranks of held-out items (``ranks/*.npz``, `RanksFile`) become figures per direction (`Direction`) and per domain (`WarmDomain`); with the
privacy, the seconds and the bytes of the run they are one frozen `Metrics`, written atomically and read back with every field checked.
A figure that does not exist (no users, an infinite epsilon) is ``null`` in the file and ``nan`` or ``inf`` in memory.
Schema 2 added ``validation``, the figures of people by whom choices are made; files of schema 1 are read as ones without.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import RunFolderError

from .bootstrap import Interval
from .json_files import plain, read_json, write_json
from .ranks import direction_of, method_figures, read_ranks

SCHEMA = 2
READABLE = (1, 2)
Methods = Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """Figures of the cold users who come from ``source`` to ``target``."""

    source: str
    target: str
    n_users: int
    methods: Methods


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmDomain:
    """Figures of users whose last item was left out."""

    n_users: int
    methods: Methods


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainPrivacy:
    """What the ledger of a domain adds up to; ``inf`` where nothing was private, ``nan`` where an accountant gave no answer."""

    epsilon: float
    delta: float
    ceiling: float
    pld: float
    prv: float
    rdp: float
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    text_encoding: float
    training: float
    evaluation: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """Bytes of content that a domain sent (up) and received (down)."""

    up: int
    down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """One run. ``epsilon_target`` is ``inf`` for a run without privacy."""

    directions: tuple[Direction, ...]
    warm: Mapping[str, WarmDomain]
    privacy: Mapping[str, DomainPrivacy]
    seconds: Seconds
    bytes: Mapping[str, Bytes]
    peak_rss_mb: float
    config_hash: str
    versions: Mapping[str, str]
    seed: int
    split_seed: int
    epsilon_target: float
    noise: str
    private: bool
    validation: tuple[Direction, ...] = ()
    schema: int = SCHEMA

    def direction(self, source: str, target: str) -> Direction:
        for direction in self.directions:
            if (direction.source, direction.target) == (source, target):
                return direction
        raise KeyError(f"{source} -> {target}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, ``schema`` first; what is not finite is ``None``."""
        values: dict[str, Any] = plain(self)
        return {"schema": values.pop("schema"), **values}


def build_metrics(
    ranks_folder: Path,
    *,
    privacy: Mapping[str, DomainPrivacy],
    seconds: Seconds,
    bytes: Mapping[str, Bytes],
    peak_rss_mb: float,
    config_hash: str,
    versions: Mapping[str, str],
    seed: int,
    split_seed: int,
    epsilon_target: float,
    noise: str,
    private: bool,
    generator: np.random.Generator,
) -> Metrics:
    """Makes the metrics of a run from its ranks and from what was measured beside them.

    Args:
        ranks_folder: holds ``<source>-<target>.npz`` and ``warm-<domain>.npz``; domains are the keys of ``privacy``.
        generator: the bootstrap's source of chance.
    """
    directions, warm = _figures(ranks_folder, privacy, generator)
    validation, _ = _figures(ranks_folder / "validation", privacy, generator)
    return Metrics(
        directions=directions,
        warm=warm,
        validation=validation,
        privacy=privacy,
        seconds=seconds,
        bytes=bytes,
        peak_rss_mb=peak_rss_mb,
        config_hash=config_hash,
        versions=versions,
        seed=seed,
        split_seed=split_seed,
        epsilon_target=epsilon_target,
        noise=noise,
        private=private,
    )


def _figures(
    folder: Path, domains: Mapping[str, DomainPrivacy], generator: np.random.Generator
) -> tuple[tuple[Direction, ...], dict[str, WarmDomain]]:
    directions, warm = [], {}
    for path in sorted(folder.glob("*.npz")):
        source, target = direction_of(path.stem, domains)
        ranks = read_ranks(path)
        n_users, methods = int(ranks.with_truth.sum()), method_figures(ranks, generator)
        if source is None:
            warm[target] = WarmDomain(n_users=n_users, methods=methods)
        else:
            directions.append(Direction(source=source, target=target, n_users=n_users, methods=methods))
    return tuple(directions), warm


def write_metrics(path: Path, metrics: Metrics) -> None:
    """Writes metrics.json, atomically."""
    write_json(path, metrics.to_json())


def read_metrics(path: Path) -> Metrics:
    """Reads metrics.json and checks every field.

    Raises:
        RunFolderError: when the file is missing, damaged, or of a schema this version does not know.
    """
    values = read_json(path)
    schema = values.get("schema")
    if schema not in READABLE:
        raise RunFolderError(
            f"{path} has schema {schema if isinstance(schema, int) else 'unknown'}, this version reads schema 1 and {SCHEMA}",
            do="Read it with the version of isthmus that wrote it, or run the scenario again.",
        )
    try:
        return _metrics(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(f"{path} does not follow schema {schema}: {error}", do="Run the scenario again.") from None


def _metrics(values: Mapping[str, Any]) -> Metrics:
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(Metrics)})
    if unknown:
        raise ValueError(f"unknown field '{unknown[0]}'")
    return Metrics(
        directions=tuple(map(_direction, values["directions"])),
        validation=tuple(map(_direction, values["validation"] if values["schema"] != 1 else ())),
        warm={str(domain): WarmDomain(n_users=_whole(w, "n_users"), methods=_methods(w)) for domain, w in values["warm"].items()},
        privacy={str(domain): _privacy(p) for domain, p in values["privacy"].items()},
        seconds=Seconds(**{f.name: _number(values["seconds"], f.name, math.nan) for f in dataclasses.fields(Seconds)}),
        bytes={str(domain): Bytes(up=_whole(b, "up"), down=_whole(b, "down")) for domain, b in values["bytes"].items()},
        peak_rss_mb=_number(values, "peak_rss_mb", math.nan),
        config_hash=_text(values, "config_hash"),
        versions={str(name): str(version) for name, version in values["versions"].items()},
        seed=_whole(values, "seed"),
        split_seed=_whole(values, "split_seed"),
        epsilon_target=_number(values, "epsilon_target", math.inf),
        noise=_text(values, "noise"),
        private=_flag(values, "private"),
    )


def _direction(values: Mapping[str, Any]) -> Direction:
    return Direction(
        source=_text(values, "source"), target=_text(values, "target"), n_users=_whole(values, "n_users"), methods=_methods(values)
    )


def _privacy(values: Mapping[str, Any]) -> DomainPrivacy:
    absent = {"epsilon": math.inf, "pld": math.inf, "ceiling": math.inf, "delta": math.nan, "prv": math.nan, "rdp": math.nan}
    return DomainPrivacy(**{name: _number(values, name, value) for name, value in absent.items()}, events=_whole(values, "events"))


def _methods(values: Mapping[str, Any]) -> dict[str, dict[str, Interval]]:
    return {
        str(method): {
            str(metric): Interval(**{bound: _number(interval, bound, math.nan) for bound in ("mean", "low", "high")})
            for metric, interval in metrics.items()
        }
        for method, metrics in values["methods"].items()
    }


def _number(values: Mapping[str, Any], name: str, absent: float) -> float:
    value = values[name]
    if value is None:
        return absent
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"'{name}' is not a number")
    return float(value)


def _whole(values: Mapping[str, Any], name: str) -> int:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"'{name}' is not a whole number")
    return value


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values[name]
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is not a text")
    return value


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values[name]
    if not isinstance(value, bool):
        raise ValueError(f"'{name}' is neither true nor false")
    return value
