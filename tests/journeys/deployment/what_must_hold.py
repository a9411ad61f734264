"""What holds after every bad day: a ledger that verifies, and no debit that is missing or stands twice."""

from __future__ import annotations

from collections.abc import Mapping

from client.key_rotation import own_keys
from server.receipts import ReceiptsFile
from shared.privacy.audit import verify
from shared.privacy.findings import Status
from shared.privacy.ledger import read_events
from tests.journeys.coordinated import Coordinated


def lost_attempts(ours: Coordinated, *, rounds: Mapping[str, int], reserve: int, run_id: str = "") -> dict[str, int]:
    """Every ledger verifies against the coordinator's receipts and holds one plan; intents are commits and lost attempts, and no more.

    Args:
        rounds: commits that each domain has to have.
        reserve: attempts that a run may lose.
        run_id: the run that is meant, where ledgers hold several.
    Returns:
        Lost attempts of each domain.
    """
    lost = {}
    known = ReceiptsFile(ours.home.receipts).load()  # nobody's before the first round
    for domain, settings in ours.partners.items():
        found = verify(settings.ledger_path, key=own_keys(settings).verify_key, receipts=ours.home.receipts if domain in known else None)
        assert found.status is Status.INTACT, (domain, found.findings)
        events = read_events(settings.ledger_path)
        kinds = [event.kind for event in events if not run_id or event.payload.get("run_id") == run_id]
        intents, commits = kinds.count("intent"), kinds.count("commit")
        assert kinds.count("schedule") <= 1, domain
        assert commits == rounds[domain], (domain, kinds)
        assert 0 <= intents - commits <= reserve, (domain, kinds)
        lost[domain] = intents - commits
    return lost
