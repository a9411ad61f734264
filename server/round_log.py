"""``rounds.jsonl``: one line for each round that counted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import StorageError

from .checkpoints import replace_file
from .messenger import Traffic
from .privacy_overview import finite


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What happened in a round.

    Args:
        seconds: from sending the instruction to the checkpoint.
        replies: domains that were averaged.
        refused: (domain, code) of each reply that was not, over all attempts.
        attempts: how often clients were asked.
        epsilon: spent by each domain so far, by its receipt.
        traffic: bytes by domain.
    """

    round: int
    seconds: float
    replies: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    attempts: int
    epsilon: Mapping[str, float]
    traffic: Mapping[str, Traffic]

    def to_json(self) -> dict[str, Any]:
        """Plain values; infinite epsilon becomes null."""
        return {
            "round": self.round,
            "seconds": round(self.seconds, 4),
            "replies": list(self.replies),
            "refused": [{"domain": domain, "code": code} for domain, code in self.refused],
            "attempts": self.attempts,
            "epsilon": {domain: finite(value) for domain, value in sorted(self.epsilon.items())},
            "bytes": {domain: traffic.to_json() for domain, traffic in sorted(self.traffic.items())},
        }


class RoundLog:
    """Lines are only appended; a resumed run first drops those after its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, report: RoundReport) -> None:
        """Writes one line through to the disk.

        Raises:
            StorageError: when it cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(report.to_json(), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written ({error.strerror})", do="Make room, then resume.") from None

    def read(self) -> list[dict[str, Any]]:
        """Lines so far; one that a crash cut short is left out."""
        if not self.path.exists():
            return []
        lines: list[dict[str, Any]] = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(text)
            except ValueError:
                continue
            if isinstance(value, dict) and type(value.get("round")) is int:
                lines.append(value)
        return lines

    def keep_until(self, round: int) -> None:
        """Drops lines of later rounds: they will be done again."""
        kept = [line for line in self.read() if line["round"] <= round]
        replace_file(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
