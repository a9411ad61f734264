"""What a comparison varies: encoder, method, what is shared, the server's strategy, and any further configuration key."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.config import RunConfig

from .scenario_config import Scenario

METHOD, ENCODER, SHARING, STRATEGY = "model.method", "model.encoder", "model.sharing", "aggregation.strategy"
STANDARD = (METHOD, ENCODER, SHARING, STRATEGY)
"""Keys that name a variant whether they are varied or not, in the order of their words."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One column of a comparison: configuration key -> value, `STANDARD` keys first, others by name."""

    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Variant:
        keys = [key for key in STANDARD if key in values] + sorted(set(values) - set(STANDARD))
        return cls(tuple((key, values[key]) for key in keys))

    @classmethod
    def of_config(cls, config: RunConfig) -> Variant:
        """What a run's configuration says of the standard keys."""
        flat = flattened(dataclasses.asdict(config))
        return cls.of({key: flat[key] for key in STANDARD if key in flat})

    def get(self, key: str) -> Any:
        return dict(self.settings).get(key)

    def completed(self, base: Mapping[str, Any], keys: Iterable[str]) -> Variant:
        """The same with a value for each of ``keys``, taken from ``base`` where this one has none."""
        return Variant.of({key: base[key] for key in keys if key in base} | dict(self.settings))

    def difference(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that are not as in ``base``: what has to be set to get this variant."""
        return {key: value for key, value in self.settings if key not in base or base[key] != value}

    def words(self, keys: Sequence[str]) -> str:
        """Name among variants that differ in ``keys``.

        >>> Variant.of({"model.method": "maml", "model.rank": 16}).words(["model.method", "model.rank"])
        'maml, rank 16'
        """
        values = dict(self.settings)
        named = [f"{values[key]}" if key in STANDARD else f"{key.rpartition('.')[2]} {values[key]}" for key in keys if key in values]
        return ", ".join(named)


NOTHING = Variant()
"""Where nothing is varied and nothing is known."""


def varied(variants: Iterable[Variant]) -> list[str]:
    """Keys in which variants differ, in the order of `Variant`.

    >>> varied([Variant.of({"model.method": "maml", "model.rank": 8}), Variant.of({"model.method": "maml", "model.rank": 16})])
    ['model.rank']
    """
    found = list(variants)
    keys = Variant.of({key: None for variant in found for key, _ in variant.settings}).settings
    return [key for key, _ in keys if len({repr(variant.get(key)) for variant in found}) > 1]


def product(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the axes' values; one empty combination where there is no axis.

    >>> product({"a": [1, 2], "b": [3]})
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def flattened(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys.

    >>> flattened({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flattened(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return found


def base_of(scenario: Scenario) -> dict[str, Any]:
    """Every key of a scenario with its value, the run's keys without ``run.``; without what belongs to a single run."""
    flat = flattened(dataclasses.asdict(scenario))
    flat = {key.removeprefix("run."): value for key, value in flat.items()}
    for key in ("seed", "privacy.epsilon", "privacy.noise_multiplier"):
        flat.pop(key, None)
    return flat


def slug(words: str) -> str:
    """Words as part of a folder's name.

    >>> slug("maml, rank 16")
    'maml-rank-16'
    """
    return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-")


def digest(values: Mapping[str, Any]) -> str:
    """Eight hex digits that name plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
