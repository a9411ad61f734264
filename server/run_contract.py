"""What the coordinator signs for a run, and what it signed before: a run goes on under the contract that it began with, or not at all.

Clients hold a run to the first contract that they accepted. So a resume that would sign anything else ends here, with the reason, before a
client is asked.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from shared import contract, wire
from shared.config import RunConfig
from shared.errors import ConfigError, FederationError
from shared.privacy.signing import Signer

from .checkpoints import replace_file
from .contract_key import KEY_FILE, CoordinatorKey
from .partners import PARTNERS_FILE, Partners

BUNDLE_FILE = "bundle.sha256"
"""Beside the run's TOML: sha256, in hex, of the bundle that was submitted."""
DOMAINS_FILE = "domains.txt"
"""Beside the run's TOML: the domains that were enrolled when the run was priced and submitted, a line each; nobody else takes part."""
CONTRACT_FILE = "contract.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """Who signs a run's contract, and for which code.

    Args:
        signer: the coordinator's key.
        bundle_digest: sha256 of the submitted bundle, in hex; empty where it is not known, which no guarded client accepts.
        domains: `contract.spelled` names of those that the run was priced for; the client of any other domain refuses.
    """

    signer: Signer
    bundle_digest: str = ""
    domains: str = ""

    @classmethod
    def beside(cls, source: Path) -> Signing | None:
        """The key, the digest and the domains that lie beside a run's TOML, as files or links; None where there is no key.

        Where no file names domains, all are named that are enrolled now.

        Raises:
            ConfigError: one of them cannot be used, or there is a digest without a key.
        """
        key, bundle = source.with_name(KEY_FILE), source.with_name(BUNDLE_FILE)
        digest = _digest(bundle) if os.path.lexists(bundle) else ""
        if not os.path.lexists(key):  # a link to a key that is gone is a mistake, not an unsigned run
            if digest:
                raise ConfigError(f"{bundle} names a bundle, and there is no {KEY_FILE} to sign the run with", do="Put the key beside it.")
            return None
        return cls(signer=CoordinatorKey.load(key), bundle_digest=digest, domains=contract.spelled(_domains(source)))


def greeting(config: RunConfig, run_id: str, signing: Signing | None) -> wire.Hello:
    """The first message of a run, signed where there is a key."""
    text = config.to_toml()
    if signing is None:
        return wire.Hello(run_id=run_id, config_toml=text)
    signature = contract.sign(signing.signer, config_toml=text, run_id=run_id, bundle_digest=signing.bundle_digest, domains=signing.domains)
    return wire.Hello(
        run_id=run_id,
        config_toml=text,
        contract_signature=signature,
        bundle_digest=signing.bundle_digest,
        domains=signing.domains,
    )


def keep(folder: Path, hello: wire.Hello) -> bool:
    """Writes down what a run is announced with; again with the same: nothing happens.

    Returns:
        Whether it was not announced before.
    Raises:
        FederationError: the run was announced with another contract before.
        StorageError: it cannot be written.
    """
    path = folder / CONTRACT_FILE
    now = {name: getattr(hello, name) for name in ("run_id", "bundle_digest", "domains")} | {"signature": hello.contract_signature}
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        before = None
    except (OSError, ValueError, RecursionError):
        raise FederationError(f"{path} cannot be read", do="Restore it, or start a new run in another folder.") from None
    if isinstance(before, dict):
        before = {"domains": "", **before}  # a run from before contracts named any: unsigned, it goes on
    if before == now:
        return False
    if isinstance(before, dict) and before.get("run_id") == hello.run_id:
        raise FederationError(
            "the contract is not the one this run was announced with: key, bundle, domains or configuration (even compute) changed",
            do="Resume with the key, the bundle, the domains and the config.toml that it began with, or start a new run.",
        )
    replace_file(path, (json.dumps(now, indent=1) + "\n").encode())
    return True


def forget(folder: Path) -> None:
    """Takes back what nobody accepted: a run that everybody refused for its contract may be announced with another one."""
    (folder / CONTRACT_FILE).unlink(missing_ok=True)


def _domains(source: Path) -> list[str]:
    named, enrolled = source.with_name(DOMAINS_FILE), source.with_name(PARTNERS_FILE)
    try:
        if os.path.lexists(named):
            return named.read_text(encoding="ascii").split()
        return list(Partners.from_toml(enrolled.read_text(encoding="utf-8")).agreements or {}) if enrolled.is_file() else []
    except (OSError, ValueError):
        raise ConfigError(
            f"{named} or {enrolled.name} beside it cannot be read", do="Restore it: the contract names these domains."
        ) from None


def _digest(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        text = ""
    if _DIGEST.fullmatch(text) is None:
        raise ConfigError(f"{path} does not hold a sha256 in hex", do="Write the digest of the bundle that is submitted into it.")
    return text
