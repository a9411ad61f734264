"""The folder of one simulated run.

::

    config.toml          the run configuration, complete
    rounds.jsonl         one line for each round that counted
    run_id.json          name of the run, under which ledgers hold its reservation
    federation.json      run id, domains, bytes, digest of the final layer
    receipts.json        the last receipt of each domain; beside the ledgers, where these outlive the run
    metrics.json         schema 1
    transfer_layer/      checkpoints
    clients/DOMAIN/      each partner's home: data, keys, state, serving head, ledger
    ledgers/CONTROL/     ledgers of controls
    ranks/               ranks and lists per direction; validation/ the same of those by whom choices are made
    tensorboard/
    report.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.config import RunConfig
from shared.errors import RunFolderError, StorageError


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside a run folder; `create` makes a new one, `open` checks an old one."""

    path: Path

    def create(self, config: RunConfig) -> RunFolder:
        """Makes the folder and writes the configuration.

        Raises:
            RunFolderError: it exists and is not empty.
            StorageError: it cannot be made.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunFolderError(f"{self.path} exists already", do="Choose another folder with --out, or resume this one with --resume.")
        try:
            for folder in (self.path, self.transfer_layer, self.ledgers, self.tensorboard, self.ranks, self.clients):
                folder.mkdir(parents=True, exist_ok=True)
            self.config_file.write_text(config.to_toml(), encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be made ({error.strerror})", do="Make room, or choose another folder with --out."
            ) from None
        return self

    def open(self) -> RunFolder:
        """Checks that a run began here.

        Raises:
            RunFolderError: it is not a run folder.
        """
        if not self.config_file.is_file():
            raise RunFolderError(f"{self.path} is not a run folder: it has no config.toml", do="Name the folder that a run printed.")
        return self

    @property
    def config(self) -> RunConfig:
        """The configuration the run was made with."""
        try:
            return RunConfig.from_toml(self.config_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            raise RunFolderError(f"{self.config_file} cannot be read", do="Name the folder that a run printed.") from None

    def client(self, domain: str) -> Path:
        return self.clients / domain

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def rounds(self) -> Path:
        return self.path / "rounds.jsonl"

    @property
    def federation(self) -> Path:
        return self.path / "federation.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def transfer_layer(self) -> Path:
        return self.path / "transfer_layer"

    @property
    def ledgers(self) -> Path:
        return self.path / "ledgers"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def ranks(self) -> Path:
        return self.path / "ranks"

    @property
    def validation_ranks(self) -> Path:
        return self.ranks / "validation"

    @property
    def clients(self) -> Path:
        return self.path / "clients"
