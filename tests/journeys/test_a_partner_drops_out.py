"""One of three partners dies, refuses or breaks: with min_clients = 2 the others go on, and whatever it spent stays booked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.settings import ClientSettings
from server.strategy import TooFewClients
from shared import wire
from shared.errors import BudgetExhausted
from shared.privacy.ledger import read_events
from shared.privacy.receipts import read_receipts, receipts_text
from simulations.scenario import run_scenario
from tests.journeys.tiny_world import DOMAINS, World, metrics, tiny, world

pytestmark = pytest.mark.journey


class DiesAfter(ClientApp):
    """The real app of all partners; films' process dies for good when it gets its n-th message of a kind."""

    def __init__(self, app: ClientApp, kind: str, messages: int) -> None:
        super().__init__()
        self._app, self._kind, self._left, self._dead = app, kind, messages, False

    def __call__(self, message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == DOMAINS.index("films"):
            self._left -= message.metadata.message_type == self._kind
            self._dead = self._dead or self._left <= 0
            if self._dead:
                raise ConnectionError("the process of this partner is gone")
        return self._app(message, context)


def who_counted(run: Path) -> list[list[str]]:
    """Domains whose replies counted, round by round."""
    return [json.loads(line)["replies"] for line in (run / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "messages", "replies", "left"),
    [
        (wire.HELLO, 1, [["books", "music"]] * 3, ("books", "music")),
        (wire.CENTROIDS, 1, [["books", "music"]] * 3, ("books", "music")),
        (wire.TRAIN, 2, [list(DOMAINS), ["books", "music"], ["books", "music"]], DOMAINS),
    ],
    ids=["before it says its name", "while the space is made", "between two rounds"],
)
def test_the_others_go_on_when_a_partner_dies(
    tmp_path: Path, kind: str, messages: int, replies: list[list[str]], left: tuple[str, ...]
) -> None:
    federation = world(tmp_path / "run", overrides=tiny(privacy__rounds=3))
    outcome = federation.federate(app=DiesAfter(federation.app, kind, messages))  # type: ignore[arg-type]
    assert outcome.domains == left
    assert outcome.round == 3
    assert who_counted(tmp_path / "run") == replies
    assert outcome.delivered == ["books", "music"]
    spent = [event.kind for event in read_events(federation.settings[1].ledger_path)].count("intent")
    assert spent == sum("films" in domains for domains in replies)


def _narrow_range(federation: World) -> None:
    path = federation.settings[1].base / "partner.toml"
    path.write_text(path.read_text().replace("max_clip_norm = 1000.0", "max_clip_norm = 0.01"))
    federation.settings[1] = ClientSettings.read(path)


def _break_state(federation: World) -> None:
    (federation.settings[1].at_home("state")).write_text("not a folder")


@pytest.mark.parametrize("spoil", [_narrow_range, _break_state], ids=["refuses the ranges", "has a broken state"])
def test_the_others_go_on_when_a_partner_refuses_or_breaks(tmp_path: Path, spoil: Callable[[World], None]) -> None:
    federation = world(tmp_path / "run")
    spoil(federation)
    outcome = federation.federate()
    assert outcome.delivered == ["books", "music"]
    assert who_counted(tmp_path / "run") == [["books", "music"]] * 2
    assert "intent" not in [event.kind for event in read_events(federation.settings[1].ledger_path)]


def test_a_run_that_needs_all_three_ends_with_a_name_and_a_code(tmp_path: Path) -> None:
    federation = world(tmp_path / "run", overrides=tiny(aggregation__min_clients=3))
    with pytest.raises(TooFewClients, match="2 of at least 3 clients") as caught:
        federation.federate(app=DiesAfter(federation.app, wire.TRAIN, 1))  # type: ignore[arg-type]
    assert caught.value.exit_code == 16
    assert set(caught.value.dropped) == {("films", "error")}
    assert "process of this partner" not in str(caught.value)


def test_a_whole_scenario_goes_on_without_the_domain_whose_budget_is_spent(tmp_path: Path) -> None:
    """Films took part in a run of its own before: its ledger has no room. The others train, and only they are evaluated."""
    ledgers, how = tmp_path / "ledgers", {"epsilon": 2.0, "ledgers": tmp_path / "ledgers"}
    run_scenario("demo", out=tmp_path / "runs", overrides=tiny(privacy__rounds=1), **how)
    for domain in ("books", "music"):  # two new ledgers; films keeps its own
        for path in ledgers.glob(f"{domain}.sqlite*"):
            path.unlink()
    kept = read_receipts(ledgers / "receipts.json")  # and the coordinator knows nothing of the old ones
    (ledgers / "receipts.json").write_text(receipts_text([kept["films"]]))
    folder = run_scenario("demo", out=tmp_path / "runs", seed=1, overrides=tiny(privacy__rounds=1), **how)
    found = metrics(folder)
    assert who_counted(folder) == [["books", "music"]]
    assert {(d["source"], d["target"]) for d in found["directions"]} == {("books", "music"), ("music", "books")}
    assert sorted(found["warm"]) == ["books", "music"]
    assert [event.kind for event in read_events(ledgers / "films.sqlite")] == ["genesis", "schedule", "intent", "commit", "refused"]
    with pytest.raises(BudgetExhausted, match="nothing was trained"):
        run_scenario("demo", out=tmp_path / "runs", seed=2, overrides=tiny(privacy__rounds=1), **how)
