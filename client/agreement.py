"""What must hold before a run is believed: the coordinator's signature on its contract. Decided before any data are opened.

The signature is checked over the very bytes that came, before anything reads them, and again before each round: a round is computed under
the contract of `hello`, by the code that the contract names.
"""

from __future__ import annotations

from shared import contract, wire
from shared.config import RunConfig
from shared.errors import ConfigError, Refusal

from .settings import ClientSettings

_ASK = "Ask the coordinator what it signed."


def check_signature(settings: ClientSettings, question: wire.Hello, *, running: str | None = None) -> str | None:
    """Checks a run's contract.

    Args:
        question: the first message of the run.
        running: sha256 of the bundle that runs here; None where it is not known.
    Returns:
        The signature, for the ledger; None where this partner knows no coordinator, in simulations: what nobody checked is not recorded.
    Raises:
        Refusal: code ``signature``, with the reason for the partner's own eyes.
    """
    server = settings.server
    if not server.coordinator_key:
        if server.address:
            raise Refusal(
                "signature",
                f"domain '{settings.domain}' names a server and not its coordinator's key",
                do="Set server.coordinator_key in partner.toml, as the coordinator's JOIN.json says it.",
            )
        return None
    if not question.contract_signature:
        raise Refusal("signature", "the run is not signed", do=_ASK)
    signed = {name: getattr(question, name) for name in ("config_toml", "run_id", "bundle_digest", "domains")}
    if not contract.holds(server.coordinator_key, question.contract_signature, **signed):
        raise Refusal(
            "signature", "the coordinator's key did not sign this run, this configuration, this bundle and these domains", do=_ASK
        )
    if settings.domain not in question.domains.split(","):
        raise Refusal("signature", f"the run was signed for others than domain '{settings.domain}', and priced without it", do=_ASK)
    if running is not None and question.bundle_digest != running:
        raise Refusal("signature", "the run was signed for another bundle than the one that runs here", do=_ASK)
    return question.contract_signature


def read_config(text: str) -> RunConfig:
    """The run configuration, in its one canonical spelling.

    Raises:
        Refusal: code ``range``: an unknown key, a value outside of what it may be, or another spelling than the coordinator's.
    """
    try:
        config = RunConfig.from_toml(text)
    except (ConfigError, ValueError, ArithmeticError, RecursionError) as error:  # Python's own limits for numbers and nesting
        what = error.what if isinstance(error, ConfigError) else "the run configuration holds a number or a table beyond any limit"
        raise Refusal("range", what, do="Ask the coordinator for another configuration, or update the older of the two.") from None
    if config.to_toml() != text:
        raise Refusal("range", "the run configuration is not complete, or not in its canonical form", do="Update the older of the two.")
    return config
