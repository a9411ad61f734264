"""The run configuration: every default, unit and range, once.

A run is described by one `RunConfig`. The coordinator reads it from a TOML file, solves the noise, and sends it to the clients inside the
first message; a client uses that copy and no other. What changes the guarantee (`PrivacyConfig`) and what only changes speed
(`ComputeConfig`) are different types, and only the latter stays out of the configuration hash.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import tomli_w

from shared.errors import ConfigError

PROTOCOL = 2
"""Version of the messages; a client and a server that disagree on it do not work together."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a value means: its unit, its range (inclusive) or its choices, and a line of explanation."""

    help: str
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


def setting(
    default: Any, help: str, *, unit: str = "", low: float = -math.inf, high: float = math.inf, choices: tuple[str, ...] = ()
) -> Any:
    return field(default=default, metadata={"setting": Setting(help, unit, low, high, choices)})


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyConfig:
    """What changes the guarantee. All of it is public and fixed before any data are opened."""

    epsilon: float = setting(
        8.0, "target of the whole run in each domain, add/remove one user; inf = no privacy, simulations only", low=1e-3
    )
    delta: float = setting(1e-6, "probability that the bound does not hold", low=1e-12, high=1e-2)
    noise_multiplier: float = setting(0.0, "noise standard deviation / sensitivity; 0 = solve it from epsilon", low=0.0, high=1e4)
    sampling_rate: float = setting(0.1, "chance of each user to be in a batch (Poisson)", low=1e-6, high=1.0)
    clip_norm: float = setting(0.5, "L2 bound on one user's joint gradient", low=1e-6, high=1e3)
    grid_exponent: int = setting(20, "clipped sums are rounded to multiples of clip_norm * 2^-grid_exponent", low=8, high=40)
    expected_batch_users: int = setting(512, "public divisor of the noisy sum", unit="users", low=1, high=10_000_000)
    rounds: int = setting(15, "rounds of the run", low=1, high=100_000)
    reserve_rounds: int = setting(1, "further rounds paid in advance, for attempts that are lost", low=0, high=10_000)
    steps_per_round: int = setting(10, "DP-SGD steps in a local round", low=1, high=100_000)
    noise: str = setting(
        "system", "source of the noise; anything but 'system' is a test build and NOT PRIVATE", choices=("system", "seeded", "none")
    )

    @property
    def private(self) -> bool:
        """Whether what this configuration makes may be called private at all."""
        return self.noise == "system" and math.isfinite(self.epsilon)

    @property
    def grid(self) -> float:
        """Grid width g, in the unit of a gradient."""
        return self.clip_norm * 2.0**-self.grid_exponent

    @property
    def total_steps(self) -> int:
        """Steps of the schedule that admission reserves: (rounds + reserve) x steps."""
        return (self.rounds + self.reserve_rounds) * self.steps_per_round


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shapes of the model; all of them public."""

    dimension: int = setting(64, "coordinates of the interest space", low=2, high=1024)
    rank: int = setting(8, "rank of the transfer layer", low=1, high=256)
    descriptor_dimension: int = setting(16, "length of a domain descriptor", low=1, high=1024)
    prototypes: int = setting(64, "interest prototypes", low=2, high=4096)
    encoder: str = setting("attention", "interest encoder", choices=("attention", "transformer", "text-lora"))
    method: str = setting("residual", "how interests move between domains", choices=("residual", "adversarial", "maml", "knowledge-mf"))
    sharing: str = setting(
        "shared-private",
        "what the server averages and what stays",
        choices=("shared-private", "shared", "private-writer", "private-bias"),
    )
    transformer_layers: int = setting(2, "layers of the encoder 'transformer'", low=1, high=12)
    transformer_heads: int = setting(4, "attention heads of the encoder 'transformer'; divides model.dimension", low=1, high=64)
    lora_rank: int = setting(4, "rank of the adaptors of the encoder 'text-lora'", low=1, high=256)
    lora_tokens: int = setting(32, "tokens of an item's text that the encoder 'text-lora' reads", unit="tokens", low=4, high=512)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What the local rounds do; public constants, none computed from data."""

    learning_rate: float = setting(0.02, "Adam step size", low=1e-6, high=10.0)
    max_history_items: int = setting(50, "latest items the encoder reads", unit="items", low=1, high=1000)
    max_items_per_user: int = setting(500, "latest items of a user that are kept at all", unit="items", low=2, high=100_000)
    target_items: int = setting(8, "items a user's loss is about", unit="items", low=1, high=64)
    catalogue_negatives: int = setting(1024, "negatives drawn from the public catalogue in each step", unit="items", low=1, high=1_000_000)
    own_history_weight: float = setting(0.2, "share of the own-history term in the loss of a user who brought passports", low=0.0, high=1.0)
    own_as_passport: bool = setting(
        False, "users who brought no passport train the transfer with the one that this domain would make of their history"
    )
    temperature: float = setting(4.0, "scale of scores at the start of training", low=0.01, high=100.0)
    history_decay: float = setting(0.9, "weight of an item relative to the next later one in the untrained encoder", low=0.01, high=1.0)
    adversarial_weight: float = setting(0.1, "weight of the reversed gradient of the method 'adversarial'", low=0.0, high=10.0)
    inner_steps: int = setting(1, "steps of adaptation of the method 'maml'", low=1, high=10)
    inner_rate: float = setting(0.5, "step size of adaptation of the method 'maml'", low=1e-4, high=100.0)
    first_order: bool = setting(False, "the method 'maml' without second derivatives")
    knowledge_weight: float = setting(0.5, "alpha of the method 'knowledge-mf' at the start", low=0.0, high=100.0)
    knowledge_decay: float = setting(0.05, "beta of the method 'knowledge-mf': ridge on a user's knowledge vector", low=0.0, high=100.0)
    rating_low: float = setting(1.0, "lowest rating, for the method 'knowledge-mf'", low=-1e6, high=1e6)
    rating_span: float = setting(4.0, "highest rating minus the lowest", low=1e-3, high=1e6)
    passport_min_items: int = setting(3, "shortest history that makes a passport", unit="items", low=1, high=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationConfig:
    """How the server averages. Weights are uniform, always."""

    strategy: str = setting("fedavg", "Flower strategy", choices=("fedavg", "fedavgm", "fedadam", "trimmed-mean"))
    server_learning_rate: float = setting(1.0, "step size of fedavgm and fedadam", low=1e-6, high=100.0)
    server_momentum: float = setting(0.0, "momentum of fedavgm", low=0.0, high=0.999)
    adam_tau: float = setting(1e-3, "adaptivity of fedadam", low=1e-9, high=1.0)
    trim_fraction: float = setting(0.2, "share cut off at each end by trimmed-mean", low=0.0, high=0.49)
    min_clients: int = setting(2, "replies a round needs to count", low=1, high=100_000)
    wait_s: float = setting(300.0, "longest wait for clients to connect", unit="s", low=0.1, high=86_400.0)
    round_timeout_s: float = setting(600.0, "longest wait for the replies of a round", unit="s", low=0.1, high=86_400.0)
    max_update_norm: float = setting(1e3, "replies with a larger norm of the transfer layer are refused", low=1e-3, high=1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeConfig:
    """What only changes speed or memory. Not part of the configuration hash."""

    torch_threads: int = setting(1, "threads of a local round; more help on an idle machine only, because a step is short", low=1, high=256)
    micro_batch_users: int = setting(512, "users whose gradients are in memory at a time", unit="users", low=1, high=100_000)
    text_batch_tokens: int = setting(1024, "padded tokens in a batch of the text encoder", unit="tokens", low=64, high=1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run, complete.

    Raises:
        ConfigError: naming the key, when a value is of the wrong type, out of its range, or unknown.
    """

    name: str = setting("run", "name of the scenario")
    seed: int = setting(0, "seed of everything but privacy noise and sampling", low=0, high=2**31 - 1)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        check(self)
        if self.model.descriptor_dimension > self.model.dimension:
            raise ConfigError(
                "model.descriptor_dimension is larger than model.dimension", do="A descriptor is cut from a vector of the interest space."
            )
        if self.model.encoder == "transformer" and self.model.dimension % self.model.transformer_heads:
            raise ConfigError("model.transformer_heads does not divide model.dimension", do="Choose 1, 2, 4 or another divisor.")
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise ConfigError("name may hold letters, digits, '-' and '_' only, because folders are named by it")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RunConfig:
        return cast(RunConfig, build(cls, values, ""))

    @classmethod
    def from_toml(cls, text: str) -> RunConfig:
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"the run configuration is not TOML: {error}") from None
        return cls.from_mapping(values)

    def to_toml(self) -> str:
        """Complete and canonical: every key, in the order of this file; reading it back gives an equal configuration."""
        return tomli_w.dumps(dataclasses.asdict(self))

    @property
    def config_hash(self) -> str:
        """SHA-256, in hex, of the canonical TOML without ``compute``."""
        values = dataclasses.asdict(self)
        del values["compute"]
        return hashlib.sha256(tomli_w.dumps(values).encode()).hexdigest()


def build(kind: type, values: Mapping[str, Any], path: str) -> Any:
    """Makes a configuration record from plain values; refuses unknown keys by name, with the nearest known one.

    Args:
        kind: a frozen dataclass whose fields were declared with `setting`, or are such dataclasses themselves.
        values: as read from TOML.
        path: dotted path of ``values``, for messages; empty at the top.
    """
    fields = {f.name: f for f in dataclasses.fields(kind) if "setting" in f.metadata or _is_table(f)}
    taken: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{path}{key}"
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            raise ConfigError(
                f"unknown key '{where}'", do=f"Did you mean '{path}{near[0]}'?" if near else f"Known keys: {', '.join(fields)}."
            )
        if _is_table(fields[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"'{where}' is a table of keys, not a single value")
            taken[key] = build(cast(type, fields[key].default_factory), value, f"{where}.")
        else:
            default = fields[key].default
            taken[key] = float(value) if isinstance(default, float) and type(value) is int else value
    record = kind(**taken)
    if path:
        check(record, path)
    return record


def _is_table(declared: dataclasses.Field[Any]) -> bool:
    return isinstance(declared.default_factory, type) and dataclasses.is_dataclass(declared.default_factory)


def check(record: Any, path: str = "") -> None:
    """Checks type and range of every field that was declared with `setting`."""
    for f in dataclasses.fields(record):
        declared = f.metadata.get("setting")
        value = getattr(record, f.name)
        where = f"{path}{f.name}"
        if declared is None:
            if dataclasses.is_dataclass(value):
                check(value, f"{where}.")
            continue
        if type(value) is not type(f.default):
            raise ConfigError(f"'{where}' is a {type(value).__name__}, not a {type(f.default).__name__}", do=declared.help)
        if declared.choices and value not in declared.choices:
            raise ConfigError(f"'{where}' is none of {', '.join(declared.choices)}", do=declared.help)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not declared.low <= value <= declared.high:
            unit = f" {declared.unit}" if declared.unit else ""
            raise ConfigError(f"'{where}' is outside {declared.low:g} to {declared.high:g}{unit}", do=declared.help)
