"""A domain with everything that a report needs, by the real parts: a signed ledger, its egress manifest, the coordinator's receipt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import BudgetExhausted
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.ledger_schema import NO_HASH, canonical
from shared.privacy.manifest import ManifestLine, chained, encoded
from shared.privacy.mechanism import Mechanism
from shared.privacy.receipts import SignedReceipt, receipts_text
from shared.privacy.report import build
from shared.privacy.report_domain import Evidence
from tests.shared.privacy.bookshop import KEYS

CODE, OTHER_CODE, BYTES = "ab" * 32, "cd" * 32, "d" * 64
WHY = {
    "TransferUpdate": "post-processing of the round's private steps; weight and receipt hold no data",
    "MomentsReply": "the catalogue is public by this partner's policy",
    "HelloReply": "a domain's name and the protocol: no data",
}


def one_round(**changes: Any) -> Mechanism:
    """One round of 10 steps at q .05 and sigma 1, unless told otherwise."""
    values = {"kind": "poisson_gaussian", "sampling_rate": 0.05, "noise_multiplier": 1.0, "clip_norm": 0.5, "grid": 2.0**-21}
    return Mechanism(**{**values, "dimension": 1000, "steps": 10, **changes})


@dataclass(kw_only=True)
class Partner:
    """Writes one domain's files into a folder; what each call leaves out is what a report then misses.

    Attributes:
        folder: for all files; receipts of several partners go into one file there.
        domain: its name.
        delta: of its ledger.
        private: what genesis says.
        set_by: who set the ceiling.
    """

    folder: Path
    domain: str = "books"
    delta: float = 1e-5
    private: bool = True
    ceiling: float = 8.0
    set_by: str = "the bookshop's board"
    name: str = ""

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name or self.domain}.sqlite"

    def begun(self) -> Partner:
        terms = {
            "domain": self.domain,
            "ceiling_epsilon": self.ceiling,
            "delta": self.delta,
            "set_by": self.set_by,
            "private": self.private,
        }
        Ledger.create(self.path, signer=KEYS, **terms).close()
        return self

    def ran(self, rounds: int = 4, *, run_id: str = "autumn", code: str = CODE, lost: int = 0, one: Mechanism | None = None) -> Partner:
        """A whole run; attempts at its first round are lost ``lost`` times."""
        what = {"run_id": run_id, "config_hash": "c" * 64, "mechanism": one or one_round()}
        with Ledger.open(self.path, signer=KEYS) as ledger:
            ledger.admit(rounds=rounds, reserve=max(1, lost), **what)
            for number in range(1, rounds + 1):
                for _ in range(1 + (lost if number == 1 else 0)):
                    attempt = ledger.intent(round=number, bundle_digest=code, code_version="0.1.0", **what)
                ledger.commit(run_id=run_id, round=number, attempt=attempt, payload_sha256=BYTES)
            self._receipt(ledger, what["mechanism"])
        return self

    def _receipt(self, ledger: Ledger, one: Mechanism) -> None:
        """What the coordinator keeps after the last round; beside those of other partners."""
        receipt = SignedReceipt.signed(
            KEYS,
            domain=self.domain,
            count_of_intents=ledger.count_of_intents,
            head_hash=ledger.head_hash,
            payload_sha256=BYTES,
            mechanism=canonical(one.to_record()),
            epsilon_spent=ledger.epsilon_spent(),
        )
        file = self.folder / "receipts.json"
        kept = json.loads(file.read_text())["receipts"] if file.exists() else []
        others = [SignedReceipt.from_record(record) for record in kept if record["domain"] != self.domain]
        file.write_text(receipts_text([*others, receipt]))

    def tested(self, *tiers: int, code: str = CODE, verdict: str = "passed") -> Partner:
        """The verdict of a canary run, with the figures that one writes."""
        figures = {
            1: {"checks": 9, "refuted": [], "smallest_p": 0.0123, "threshold": 1e-6},
            2: {"audited_epsilon": 2.37, "claimed_epsilon": 4.38, "steinke_epsilon": 1.84, "canaries": 4000, "tau": 0.05},
        }
        with Ledger.open(self.path, signer=KEYS) as ledger:
            for tier in tiers or (1, 2):
                what = {"tier": tier, "verdict": verdict, "code_digest": code, "code_version": "0.1.0", "report_sha256": "e" * 64}
                ledger.audited(summary=canonical({"config_hash": "c" * 64, **figures[tier]}), **what)
        return self

    def raised(self, to: float = 12.0, *, by: str = "privacy board, minute 14", why: str = "a second season was agreed") -> Partner:
        with Ledger.open(self.path, signer=KEYS) as ledger:
            ledger.raise_ceiling(to, raised_by=by, why=why)
        return self

    def refused(self) -> Partner:
        """A plan that would pass the ceiling."""
        with Ledger.open(self.path, signer=KEYS) as ledger:
            try:
                ledger.admit(run_id="too much", config_hash="9" * 64, mechanism=one_round(), rounds=4000, reserve=0)
            except BudgetExhausted:
                return self
        raise AssertionError("the plan was admitted")

    def released(self, purpose: str = "popularity") -> Partner:
        one = one_round(kind="gaussian", sampling_rate=1.0, noise_multiplier=20.0, clip_norm=3.0, steps=1)
        with Ledger.open(self.path, signer=KEYS) as ledger:
            ledger.release(release_id=f"{purpose} of autumn", purpose=purpose, mechanism=one, config_hash="c" * 64)
        return self

    def evidence(self, *, key: bool = True, receipts: bool = True, manifest: bool = True, without: int = 0) -> Evidence:
        """What the officer hands over.

        Args:
            without: this many of the last commits have no line in the manifest.
        """
        return Evidence(
            ledger=self.path,
            key=KEYS.verify_key if key else None,
            receipts=self.folder / "receipts.json" if receipts else None,
            manifest=self._manifest(without) if manifest else None,
        )

    def _manifest(self, without: int) -> Path:
        commits = [event for event in read_events(self.path) if event.kind == "commit"]
        said: list[dict[str, Any]] = [{"kind": "query.hello", "schema": "HelloReply", "bytes": 47}]
        said += [{"kind": "query.moments", "schema": "MomentsReply", "bytes": 1_183_197}]
        for event in commits[: len(commits) - without]:
            update = {"kind": "train", "schema": "TransferUpdate", "bytes": 19_034, "round": event.payload["round"]}
            said.append({**update, "ledger_event": event.hash, "sha256": event.payload["payload_sha256"]})
        path, previous = self.path.with_suffix(".jsonl"), NO_HASH
        with path.open("wb") as file:
            for one in said:
                line = {"event": "left", "time_utc": "2026-11-23T09:15:00Z", "why": WHY[one["schema"]], "sha256": "1" * 64, **one}
                linked = chained(ManifestLine(**line), previous)
                previous = linked.hash
                file.write(encoded(linked))
            stopped = ManifestLine(event="blocked", time_utc="2026-11-23T09:16:00Z", kind="train", why="schema", round=3)
            file.write(encoded(chained(stopped, previous)))
        return path


def built(*evidence: Evidence, **more: Any) -> dict[str, Any]:
    """A report, with a person table for two domains: what is more costs time and shows nothing else."""
    return build(evidence, **{"copies": 2, **more})
