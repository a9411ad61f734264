"""What a client answers besides training: greeting, public catalogue, final layer. One function for each kind of message.

A Flower client may be a new process for each message, so what `hello` brought is kept on disk: one run at a time.
"""

from __future__ import annotations

import numpy as np

from shared import wire
from shared.config import PROTOCOL, RunConfig
from shared.errors import BudgetExhausted, LedgerBroken, LedgerError, LedgerLocked, Refusal, StateError
from shared.interest_space import InterestSpace, Moments, centroids
from shared.privacy.ledger import Ledger

from .agreement import check_signature, read_config
from .durable_files import write_file
from .passport_exchange import export_all, own_keys
from .preparation import PreparedDomain, Progress, prepare
from .settings import ClientSettings

_CONFIG, _RUN_ID, _SPACE, _CONTRACT = "run.toml", "run_id", "space_version", "contract"


class CurrentRun:
    """What this client remembers of the run that greeted it last."""

    def __init__(self, settings: ClientSettings) -> None:
        self._folder = settings.at_home("run")

    def begin(self, run_id: str, config: RunConfig, *, signature: str = "", bundle_digest: str = "", domains: str = "") -> None:
        """Another run begins without an interest space: the one before had its own."""
        if self._read_or_none(_RUN_ID) != run_id:
            (self._folder / _SPACE).unlink(missing_ok=True)
        write_file(self._folder / _CONFIG, config.to_toml().encode())
        write_file(self._folder / _CONTRACT, f"{signature}\n{bundle_digest}\n{domains}".encode())
        write_file(self._folder / _RUN_ID, run_id.encode())

    def fix_space(self, version: str) -> None:
        write_file(self._folder / _SPACE, version.encode())

    def config_or_none(self) -> RunConfig | None:
        path = self._folder / _CONFIG
        return RunConfig.from_toml(path.read_text(encoding="utf-8")) if path.is_file() else None

    def config(self) -> RunConfig:
        """Raises StateError before the first `hello`."""
        config = self.config_or_none()
        if config is None:
            raise StateError("no run has greeted this client yet", do="The server sends 'hello' first.")
        return config

    def run_id(self) -> str:
        """Raises StateError before the first `hello`."""
        return self._read(_RUN_ID)

    def greeting(self) -> wire.Hello:
        """What `hello` brought. Raises StateError before the first one."""
        signature, bundle_digest, domains = [*(self._read_or_none(_CONTRACT) or "").split("\n"), "", "", ""][:3]
        text = self.config().to_toml()
        return wire.Hello(
            run_id=self.run_id(), config_toml=text, contract_signature=signature, bundle_digest=bundle_digest, domains=domains
        )

    def check(self, run_id: str) -> None:
        """Raises StateError where a message belongs to another run than the last `hello`."""
        if self.run_id() != run_id:
            raise StateError("the message belongs to another run than the one that greeted this client last")

    def space_version(self) -> str:
        """Raises StateError before the interest space is fixed."""
        return self._read(_SPACE)

    def _read(self, name: str) -> str:
        found = self._read_or_none(name)
        if found is None:
            raise StateError(f"this client holds no {name.replace('_', ' ')} yet", do="Start the run from its first message.")
        return found

    def _read_or_none(self, name: str) -> str | None:
        path = self._folder / name
        return path.read_text(encoding="utf-8") if path.is_file() else None


def hello(settings: ClientSettings, question: wire.Hello, *, running: str | None = None) -> wire.HelloReply:
    """Checks protocol, contract, agreed ranges and ceiling, and reserves the whole schedule, all before any data are opened.

    Args:
        running: sha256 of the bundle that runs here; None where it is not known.
    Raises:
        Refusal: with a code from the fixed list.
    """
    if question.protocol != PROTOCOL:
        raise Refusal(
            "version", f"the server speaks protocol {question.protocol}, this client {PROTOCOL}", do="Update the older of the two."
        )
    signature = check_signature(settings, question, running=running)
    config = read_config(question.config_toml)
    settings.admit(config)
    from .training.local_round import round_mechanism  # torch: only where it is needed, for each message may be a process of its own

    with Ledger.open(settings.ledger_path, signer=own_keys(settings)) as ledger:
        if ledger.private and not config.privacy.private:
            raise Refusal("range", "a test build never writes into a ledger that promises privacy", do="Use a ledger of its own for it.")
        try:
            ledger.admit(
                run_id=question.run_id,
                config_hash=config.config_hash,
                mechanism=round_mechanism(config),
                rounds=config.privacy.rounds,
                reserve=config.privacy.reserve_rounds,
                plan_signature=signature,
            )
        except BudgetExhausted as error:
            raise Refusal("ceiling", error.what, do=error.do) from error
        except (LedgerBroken, LedgerLocked):
            raise  # nothing that the run asked for: the partner's own trouble, and `unavailable` to the server
        except LedgerError as error:
            raise Refusal("range", error.what, do=error.do) from error
    said = {"signature": signature or "", "bundle_digest": question.bundle_digest, "domains": question.domains}
    CurrentRun(settings).begin(question.run_id, config, **said)
    return wire.HelloReply(domain=settings.domain)


def opened(settings: ClientSettings, progress: Progress | None = None) -> tuple[RunConfig, PreparedDomain]:
    """The run's configuration and this domain's data."""
    config = CurrentRun(settings).config()
    return config, prepare(settings, config, progress)


def moments(settings: ClientSettings, question: wire.MomentsQuery, progress: Progress | None = None) -> wire.MomentsReply | wire.Declined:
    """Moments of the public catalogue."""
    CurrentRun(settings).check(question.run_id)
    if not settings.consent.catalogue_moments:
        return wire.Declined()
    _, prepared = opened(settings, progress)
    found = Moments.of(prepared.text_vectors)
    return wire.MomentsReply(count=found.count, total=found.total, outer=found.outer, catalogue_hash=prepared.catalogue_hash)


def prototype_centroids(settings: ClientSettings, question: wire.CentroidsQuery) -> wire.CentroidsReply | wire.Declined:
    """Centroids of the public catalogue in the interest space."""
    if not settings.consent.catalogue_centroids:
        return wire.Declined()
    config, prepared = opened(settings)
    empty = np.zeros((0, config.model.dimension), dtype=np.float32)
    space = InterestSpace(mean=question.mean, basis=question.basis, scale=question.scale, prototypes=empty)
    return wire.CentroidsReply(centroids=centroids(space.project(prepared.text_vectors), config.model.prototypes, config.seed))


def descriptor(settings: ClientSettings, question: wire.DescriptorQuery) -> wire.DescriptorReply | wire.Declined:
    """Fixes the interest space here, hands out passports where that is automatic, and answers the domain's descriptor."""
    config, prepared = opened(settings)
    space = InterestSpace(mean=question.mean, basis=question.basis, scale=question.scale, prototypes=question.prototypes)
    coordinates = prepared.fix_space(space)
    CurrentRun(settings).fix_space(space.version)
    if settings.passports.automatic:
        export_all(settings, config, prepared, space.version)
    if not settings.consent.catalogue_descriptor:
        return wire.Declined()
    return wire.DescriptorReply(descriptor=space.descriptor(coordinates, config.model.descriptor_dimension))
