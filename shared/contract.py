"""The run configuration as a contract: the coordinator signs what a run will do, for one run and one bundle of code.

What is signed is `message` of four texts: the configuration as it travels (canonical TOML, every key of it), the run id, the sha256 of the
bundle that runs, and the names of the domains that the run was priced for; the last two empty where none is named. A client that knows
the coordinator's key checks the signature over the very bytes that it received, before anything reads them; whoever changes one letter of
any of the four needs the coordinator's private key.
"""

from __future__ import annotations

from collections.abc import Iterable

from .privacy.signing import Signer
from .privacy.signing import holds as _holds

_TAG = b"isthmus-contract-1\0"
_LENGTH = 8


def spelled(domains: Iterable[str]) -> str:
    """Names of domains as a contract says them: sorted, each once, with commas between them."""
    return ",".join(sorted(set(domains)))


def message(*, config_toml: str, run_id: str, bundle_digest: str, domains: str) -> bytes:
    """What is signed: a tag, and each text in UTF-8 after its length in 8 bytes, so that no two contracts have the same bytes.

    >>> message(config_toml="a = 1", run_id="r", bundle_digest="", domains="b")[19:43]
    b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x05a = 1\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x01r\\x00\\x00'

    Raises:
        UnicodeEncodeError: a text holds half of a surrogate pair, which no encoder of ours ever wrote.
    """
    parts = [text.encode("utf-8") for text in (config_toml, run_id, bundle_digest, domains)]
    return _TAG + b"".join(len(part).to_bytes(_LENGTH, "big") + part for part in parts)


def sign(signer: Signer, *, config_toml: str, run_id: str, bundle_digest: str, domains: str) -> str:
    """The coordinator's signature, 64 bytes in hex. The same contract always gets the same one (RFC 8032), also after a restart.

    Args:
        config_toml: `RunConfig.to_toml`, the noise solved.
        bundle_digest: sha256 of the bundle in hex; empty where none is named.
        domains: `spelled` names of the domains that the run was priced for.
    """
    return signer.sign(message(config_toml=config_toml, run_id=run_id, bundle_digest=bundle_digest, domains=domains)).hex()


def holds(verify_key: str, signature: str, *, config_toml: str, run_id: str, bundle_digest: str, domains: str) -> bool:
    """Whether the owner of a public key signed exactly this. False for whatever is no signature at all.

    Raises:
        AuditError: the key is not 32 bytes in hex.
    """
    try:
        said = bytes.fromhex(signature)
        signed = message(config_toml=config_toml, run_id=run_id, bundle_digest=bundle_digest, domains=domains)
    except ValueError:  # UnicodeEncodeError is one
        said, signed = b"", b""
    return len(said) == 64 and said.hex() == signature and _holds(verify_key, signed, said)
