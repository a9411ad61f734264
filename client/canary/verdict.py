"""Tiers 1 and 2 together: one verdict on the training code of this installation, for a file and for the ledger.

Everything runs on invented users with a throw-away ledger and state. What enters the partner's own ledger is one signed event for each
tier: the verdict, the digest of the code that was tested, a few figures, and the digest of the whole verdict file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.allowed import FILE, AllowList
from client.app import code_digest, code_version
from client.key_rotation import own_keys
from client.settings import ClientSettings
from shared.config import RunConfig
from shared.errors import ConfigError
from shared.privacy.conformance import THRESHOLD, Check
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_schema import Event, canonical

from . import conformance, one_run, synthetic

FORMAT = "isthmus-canary-1"

SHOWS = (
    "The training code of this installation, with this run's encoder, sharing, clip norm and grid, was run on invented users, three steps "
    "in each of a run's first rounds. In every one of these steps the noise had the scale and the law that the ledger is charged for, and "
    "none of it came twice; batches were drawn by a coin for each user; one user, however loud, moved what a step releases no further than "
    "was paid for; nothing else that left or was booked depended on who was there."
)
SHOWS_NOT = (
    "Behaviour was tested on the cases named above, not every line of the code: a fault that shows only on other data, in a later step or "
    "round, in larger shapes or on another machine, or that hides on purpose, can pass. Nothing is said about timing, or about what is "
    "done with the data outside this software."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a canary run found.

    Attributes:
        config: the run configuration that was asked for.
        shrunk: what tier 1 made smaller, in words.
        checks: tier 1.
        one_run: tier 2.
        code_digest, code_version: what was tested, named as the ledger's intents name it.
        time_utc: when it began.
        seconds: of the clock.
    """

    config: RunConfig
    shrunk: tuple[str, ...]
    checks: tuple[Check, ...]
    one_run: one_run.OneRunResult
    code_digest: str
    code_version: str
    time_utc: str
    seconds: float

    @property
    def refuted_checks(self) -> tuple[Check, ...]:
        """Checks of tier 1 that the code did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def passed(self) -> bool:
        """Whether neither tier refuted the code."""
        return not self.refuted_checks and not self.one_run.refuted

    def tier(self, number: int) -> str:
        """``passed`` or ``refuted``."""
        refuted = bool(self.refuted_checks) if number == 1 else self.one_run.refuted
        return "refuted" if refuted else "passed"

    def to_record(self, domain: str) -> dict[str, Any]:
        """The verdict file, as plain values; a number that is none is null."""
        return {
            "format": FORMAT,
            "domain": domain,
            "verdict": "passed" if self.passed else "refuted",
            "time_utc": self.time_utc,
            "seconds": round(self.seconds, 1),
            "code_digest": self.code_digest,
            "code_version": self.code_version,
            "config": self.config.name,
            "config_hash": self.config.config_hash,
            "tier_1": {
                "verdict": self.tier(1),
                "threshold": THRESHOLD,
                "made_smaller": list(self.shrunk),
                "checks": [_finite(dataclasses.asdict(check)) for check in self.checks],
                "shows": SHOWS,
                "shows_not": SHOWS_NOT,
            },
            "tier_2": {"verdict": self.tier(2), **_finite(self.one_run.to_record())},
        }

    def summary(self, number: int) -> str:
        """Figures of one tier for the ledger, canonical JSON."""
        if number == 1:
            chances = [check.p for check in self.checks if check.p is not None]
            figures: dict[str, Any] = {
                "checks": len(self.checks),
                "refuted": [check.name for check in self.refuted_checks],
                "smallest_p": min(chances, default=1.0),
                "threshold": THRESHOLD,
            }
        else:
            names = ("audited_epsilon", "claimed_epsilon", "steinke_epsilon", "delta", "canaries", "p_value", "tau")
            figures = {name: getattr(self.one_run, name) for name in names}
        return canonical({"config_hash": self.config.config_hash, **_finite(figures)})


def code_of(settings: ClientSettings) -> str:
    """The name that the ledger's intents have for the code of this installation.

    Where the partner allowed a bundle that holds this very code, it is that bundle's digest, because behind the guard the bundle trains;
    else the digest of the source files.
    """
    sources = code_digest()
    return AllowList(settings.at_home(FILE)).bundle_of_code(sources) or sources


def run(config: RunConfig, *, code: str, workspace: Path, progress: Callable[[str], None] = lambda _: None) -> Verdict:
    """Runs both tiers.

    Args:
        config: the run configuration whose privacy is promised.
        code: see `code_of`.
        workspace: an empty folder; whatever is made in it may be thrown away.
        progress: told in a few words what is being done.
    Raises:
        ConfigError: the configuration promises no privacy.
    """
    if not config.privacy.private:
        raise ConfigError(
            f"the run configuration '{config.name}' promises no privacy (privacy.noise or privacy.epsilon), so nothing can be tested",
            do="Name the configuration of a private run with --config.",
        )
    _, shrunk = synthetic.shrunk(config)
    began, clock = datetime.now(UTC), time.monotonic()
    (workspace / "tier-1").mkdir()
    (workspace / "tier-2").mkdir()
    checks = conformance.check(config, workspace / "tier-1", lambda words: progress(f"tier 1: {words}"))
    found = one_run.audit(config, workspace / "tier-2", lambda words: progress(f"tier 2: {words}"))
    return Verdict(
        config=config,
        shrunk=shrunk,
        checks=checks,
        one_run=found,
        code_digest=code,
        code_version=code_version(),
        time_utc=began.strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=time.monotonic() - clock,
    )


def to_bytes(verdict: Verdict, domain: str) -> bytes:
    """The verdict file; the ledger names its SHA-256."""
    return (json.dumps(verdict.to_record(domain), indent=1, allow_nan=False) + "\n").encode()


def enter(settings: ClientSettings, verdict: Verdict, file: bytes) -> tuple[Event, Event]:
    """Signs the verdict of both tiers into the partner's own ledger, for better or worse.

    Args:
        file: the bytes of the verdict file.
    Raises:
        LedgerError: the ledger cannot be written; the verdict file stays.
    """
    digest = hashlib.sha256(file).hexdigest()
    with Ledger.open(settings.ledger_path, signer=own_keys(settings)) as ledger:
        first, second = (
            ledger.audited(
                tier=number,
                verdict=verdict.tier(number),
                code_digest=verdict.code_digest,
                code_version=verdict.code_version,
                summary=verdict.summary(number),
                report_sha256=digest,
            )
            for number in (1, 2)
        )
    return first, second


def _finite(value: Any) -> Any:
    """Plain values with null for every number that is none, because JSON has no word for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
