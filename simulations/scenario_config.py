"""A scenario: which data, which ceiling, which run. Built-in ones are TOML files beside this one; a path to another is accepted."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.schedule import solved
from shared.config import RunConfig, build, check, setting
from shared.errors import ConfigError, UsageError

from .synthetic_domains import SyntheticConfig

SCENARIOS = Path(__file__).parent / "scenarios"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where the domains come from: made here, or a folder of ``<set>/<domain>/items.csv`` and ``interactions.csv``.

    With ``split = "temporal"`` one moment, the same in all domains, divides what is trained on and what is the truth: passports, counts and
    models are of before, warm users are asked about all they took afterwards, cold people (held out, or new to a domain since) too.
    """

    kind: str = setting("synthetic", "made here, or read from a folder", choices=("synthetic", "folder"))
    set: str = setting("", "folder below the data folder")
    domains: str = setting("", "domains, separated by commas; empty = every folder of the set")
    time: str = setting("unix_s", "what the time column holds", choices=("unix_s", "order"))
    unknown_items: str = setting("refuse", "interactions with items that the catalogue lacks", choices=("refuse", "drop"))
    ratings: str = setting("", "column of ratings, which the method 'knowledge-mf' reads; empty = interactions say yes, and nothing more")
    linked_users: int = setting(
        0, "linked training users of each pair of domains that stay linked; 0 = all; who is held out stays", unit="users", low=0
    )
    split: str = setting(
        "person", "hold out people and latest items, or also all that came after one moment", choices=("person", "temporal")
    )
    before_cut: float = setting(0.8, "share of the interactions of all domains before that moment", low=0.01, high=0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class CeilingConfig:
    """What each simulated partner permits for the life of its ledger."""

    epsilon: float = setting(0.0, "ceiling of each ledger; 0 = the run's own target", low=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that defines a simulation but its seeds' consequences."""

    data: DataConfig = field(default_factory=DataConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    ceiling: CeilingConfig = field(default_factory=CeilingConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check(self)

    @property
    def ceiling_epsilon(self) -> float:
        """Ceiling of a new ledger; infinite where nothing is private."""
        return math.inf if not self.run.privacy.private else self.ceiling.epsilon or self.run.privacy.epsilon


def built_in() -> list[str]:
    """Names of the scenarios that come with isthmus."""
    return sorted(path.stem for path in SCENARIOS.glob("*.toml"))


def load(name: str, *, seed: int = 0, epsilon: float | None = None, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """Reads a scenario, sets what the caller wants otherwise, and solves the noise.

    Args:
        name: of a built-in scenario, or the path of a TOML file.
        seed: of everything but privacy noise.
        epsilon: target of the run instead of the scenario's own; inf for a run without privacy.
        overrides: dotted key -> value; ``privacy.rounds`` and the like belong to the run, ``synthetic.strength`` to the scenario.
    Raises:
        UsageError: no scenario of that name.
        ConfigError: an unknown key or a value out of range.
        UnreachableBudget: no noise reaches the target.
    """
    values = _read(name)
    run = values.setdefault("run", {})
    run["seed"] = seed
    if epsilon is not None:
        run.setdefault("privacy", {})["epsilon"] = float(epsilon)
    for key, value in (overrides or {}).items():
        _set(values, key, value)
    scenario: Scenario = build(Scenario, values, "")
    return dataclasses.replace(scenario, run=solved(scenario.run))


def _read(name: str) -> dict[str, Any]:
    path = SCENARIOS / f"{name}.toml" if name in built_in() else Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, built_in(), n=1)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise UsageError(f"there is no scenario '{name}'", do=f"{hint}Scenarios: {', '.join(built_in())}, or the path of a TOML file.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not TOML: {error}") from None


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    """Puts a value at a dotted key; what is no part of the scenario itself is part of the run."""
    parts = key.split(".")
    if parts[0] not in {f.name for f in dataclasses.fields(Scenario)}:
        parts.insert(0, "run")
    table = values
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"'{key}' goes through a single value", do="Keys look like privacy.rounds or synthetic.strength.")
    table[parts[-1]] = value
