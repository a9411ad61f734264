"""The ranges that a partner agreed to: what no coordinator may ask for, whatever it signs.

The ledger computes what a run costs and keeps the ceiling, whatever the configuration says. The ranges stop what stays below the ceiling
and still hurts: a guarantee that holds on paper only, and passports that name the items they were made of. Every key of a run configuration
is either held against the agreement (`shared.ranges.outside`), or stands in `FREE` with the reason why it cannot hurt a user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from shared.config import ModelConfig, setting
from shared.errors import ConfigError
from shared.ranges import named

_METHODS: tuple[str, ...] = ModelConfig.__dataclass_fields__["sharing"].metadata["setting"].choices


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreedRanges:
    """Run configurations outside these ranges are refused before any data are opened."""

    max_sampling_rate: float = setting(0.5, "largest chance of a user to be in a batch", low=1e-6, high=1.0)
    min_noise_multiplier: float = setting(
        0.3, "least noise of a step; with less, one step gives away who is in its batch, and only luck protects", low=1e-3, high=1e4
    )
    max_clip_norm: float = setting(10.0, "largest bound on one user's gradient", low=1e-6, high=1e3)
    max_grid_exponent: int = setting(
        30, "finest grid; a finer one is lost in the rounding of 64-bit sums, and with it the proof that noise covers it", low=8, high=40
    )
    max_steps: int = setting(10_000, "most steps of a run, reserve included", low=1, high=10_000_000)
    min_passport_items: int = setting(
        3, "fewest latest items that a passport mixes; a passport of one item is that item", unit="items", low=1, high=1000
    )
    min_history_decay: float = setting(
        0.7,
        "least weight of an item beside the next later one in a passport; far below it, a passport is its latest item",
        low=0.01,
        high=1.0,
    )
    methods: str = setting(
        "shared-private,shared,private-writer,private-bias",
        "values of model.sharing that this partner takes part in: they say which arrays leave",
    )
    test_builds: bool = setting(False, "accept runs whose noise is seeded or absent: simulations only")

    @classmethod
    def widest(cls, *, test_builds: bool) -> AgreedRanges:
        """Whatever a configuration may say at all: for simulations and checks on invented users, never for a partner's data."""
        usual, ends = cls(), dict[str, Any]()
        for one in fields(cls):
            if one.name.startswith(("min_", "max_")):
                end = one.metadata["setting"].low if one.name.startswith("min_") else one.metadata["setting"].high
                ends[one.name] = type(getattr(usual, one.name))(end)
        return cls(**ends, test_builds=test_builds)

    def __post_init__(self) -> None:
        if unknown := self.taken_part_in - set(_METHODS):
            raise ConfigError(
                f"'agreed.methods' names {', '.join(sorted(unknown))}", do=f"Values of model.sharing are {', '.join(_METHODS)}."
            )

    @property
    def taken_part_in(self) -> frozenset[str]:
        """The values in ``methods``."""
        return named(self.methods)


HELD = frozenset(
    {
        "privacy.epsilon",
        "privacy.delta",
        "privacy.noise_multiplier",
        "privacy.sampling_rate",
        "privacy.clip_norm",
        "privacy.grid_exponent",
        "privacy.rounds",
        "privacy.reserve_rounds",
        "privacy.steps_per_round",
        "privacy.noise",
        "model.sharing",
        "training.max_history_items",
        "training.history_decay",
        "training.passport_min_items",
    }
)
"""Keys of a run configuration that `shared.ranges.outside` looks at."""

_AFTER = "works on what is private already, or on public values"
_CLIPPED = "shapes one user's gradient, which is clipped and noised whatever it is"
_SHAPE = "a public shape; the joint vector's length is in the mechanism that the ledger prices"
_SERVER = "the coordinator's own affair"
_COST = "costs time and memory, not privacy"

FREE: Mapping[str, str] = {
    "name": "a name",
    "seed": "names public draws; noise and batches of a private run come from the operating system",
    "privacy.expected_batch_users": f"divides the noisy sum: {_AFTER}",
    "model.dimension": _SHAPE,
    "model.rank": _SHAPE,
    "model.descriptor_dimension": _SHAPE,
    "model.prototypes": _SHAPE,
    "model.encoder": f"{_CLIPPED}; it never leaves",
    "model.method": f"{_CLIPPED}; what leaves is in the message schema, and all of it is in the joint vector",
    "model.transformer_layers": _SHAPE,
    "model.transformer_heads": _SHAPE,
    "model.lora_rank": _SHAPE,
    "model.lora_tokens": _SHAPE,
    "training.learning_rate": f"steps along the noisy gradient: {_AFTER}",
    "training.max_items_per_user": "the unit is the user, whatever the number of items",
    "training.target_items": _CLIPPED,
    "training.catalogue_negatives": _CLIPPED,
    "training.own_history_weight": _CLIPPED,
    "training.own_as_passport": "makes an example of the user's own items; the loss is clipped and noised whatever it is",
    "training.temperature": _CLIPPED,
    "training.adversarial_weight": _CLIPPED,
    "training.inner_steps": _CLIPPED,
    "training.inner_rate": _CLIPPED,
    "training.first_order": _CLIPPED,
    "training.knowledge_weight": _CLIPPED,
    "training.knowledge_decay": _CLIPPED,
    "training.rating_low": _CLIPPED,
    "training.rating_span": _CLIPPED,
    "aggregation.strategy": _SERVER,
    "aggregation.server_learning_rate": _SERVER,
    "aggregation.server_momentum": _SERVER,
    "aggregation.adam_tau": _SERVER,
    "aggregation.trim_fraction": _SERVER,
    "aggregation.min_clients": "every update is private on its own, however many others there are",
    "aggregation.wait_s": _SERVER,
    "aggregation.round_timeout_s": _SERVER,
    "aggregation.max_update_norm": f"bounds what leaves: {_AFTER}",
    "compute.torch_threads": _COST,
    "compute.micro_batch_users": _COST,
    "compute.text_batch_tokens": _COST,
}
"""Every other key, and why it needs no range."""
