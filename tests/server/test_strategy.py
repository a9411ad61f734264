"""Whole runs over real Flower objects: honest ones and disturbed ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from server.app import run_federation
from server.checkpoints import Checkpoints
from server.journal import keeping, left_out
from server.partners import Agreement, Partners
from server.strategy import Outcome, TooFewClients
from server.too_few import BudgetUsedUp
from shared import wire
from shared.privacy.receipts import SignedReceipt
from simulations.in_process_grid import InProcessGrid
from tests.server.tiny_clients import KEYS, TEXT, Fault, intents, small_config, tiny_app
from tests.server.whole_runs import CONFIG, close, federate, lines, moved


def test_a_run_goes_from_hello_to_delivery(tmp_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    outcome = federate(tmp_path, progress=lambda *event: stages.append(event))
    assert close(outcome.layer, moved(0.06))  # 3 rounds of mean(.01, .02, .03) = .02
    assert outcome.domains == ("arts", "books", "cameras")
    assert outcome.not_delivered == ()
    assert {(tmp_path / "run-disks" / f"{client}.delivered").read_text() for client in range(3)} == {wire.layer_sha256(outcome.layer)}
    assert [stage for stage, _, _ in stages] == ["hello", "moments", "centroids", "descriptor", "train", "train", "train", "deliver"]
    assert Checkpoints(tmp_path / "run" / "transfer_layer").rounds() == [0, 1, 2, 3]


def test_each_round_leaves_a_line(tmp_path: Path) -> None:
    federate(tmp_path)
    first, _, last = lines(tmp_path)
    assert (first["round"], first["replies"], first["refused"], first["attempts"]) == (1, ["arts", "books", "cameras"], [], 1)
    assert last["epsilon"] == pytest.approx({"arts": 0.3, "books": 0.3, "cameras": 0.3})
    assert all(traffic["up"] > 0 and traffic["down"] > 0 for traffic in last["bytes"].values())  # type: ignore[attr-defined]


def test_the_space_is_made_from_all_catalogues_in_a_fixed_order(tmp_path: Path) -> None:
    outcome, again = federate(tmp_path), federate(tmp_path, name="again")
    assert outcome.space == again.space
    assert outcome.space.prototypes.shape == (3, 4)
    checkpoint = Checkpoints(tmp_path / "run" / "transfer_layer").load(0)
    assert sorted(checkpoint.descriptors) == ["arts", "books", "cameras"]


def test_who_declines_moments_still_takes_part(tmp_path: Path) -> None:
    disks = tmp_path / "run-disks"
    disks.mkdir()
    outcome = federate(tmp_path, app=tiny_app(disks, shares_catalogue=False))
    assert outcome.domains == ("arts", "books", "cameras")


# --- disturbed ---


def _only(victim: int, round: int | None, change: Fault) -> Fault:
    """Disturbs one client's replies to rounds, in one round or in all."""

    def fault(client: int, number: int, content: RecordDict) -> RecordDict:
        hit = client == victim and number >= 1 and (round is None or number == round)
        return change(client, number, content) if hit else content

    return fault


def _set(record: str, key: str, value: object) -> Fault:
    def change(client: int, round: int, content: RecordDict) -> RecordDict:
        content[record][key] = value  # type: ignore[index, assignment]
        return content

    return change


def _raise(client: int, round: int, content: RecordDict) -> RecordDict:
    raise RuntimeError("user 4711 likes gardening")


def _unavailable(client: int, round: int, content: RecordDict) -> RecordDict:
    return wire.Unavailable().pack()


def _old(client: int, round: int, content: RecordDict) -> RecordDict:
    """The client signs the count of an older copy of its ledger."""
    sent = wire.TransferUpdate.unpack(content)
    record = sent.receipt.to_record() | {"count_of_intents": 1, "epsilon_spent": sent.receipt.epsilon_spent}
    del record["verify_key"], record["signature"]
    return sent.with_receipt(SignedReceipt.signed(KEYS[client], **record)).pack()


READER = (2, 4)
FAULTS: dict[str, tuple[Fault, str]] = {
    "NaN": (_set("arrays", "transfer.reader", Array(np.full(READER, np.nan, np.float32))), "malformed"),
    "a wrong shape": (_set("arrays", "transfer.reader", Array(np.zeros((1, 1), np.float32))), "malformed"),
    "an extra key": (_set("arrays", "private.head", Array(np.zeros((1,), np.float32))), "malformed"),
    "a weight of 1e12": (_set("metrics", "weight", 1e12), "malformed"),
    "a negative weight": (_set("metrics", "weight", -2.0), "malformed"),
    "a wrong digest": (_set("receipt", "payload_sha256", "f" * 64), "digest"),
    "an unavailable client": (_unavailable, "unavailable"),
    "a client that raises": (_raise, "error"),
    "a receipt that was changed on the way": (_set("receipt", "count_of_intents", 9), "signature"),
    "a replayed receipt": (_old, "receipt"),
}


@pytest.mark.parametrize(("fault", "code"), FAULTS.values(), ids=FAULTS.keys())
def test_a_bad_reply_is_dropped_by_code_and_the_run_goes_on(tmp_path: Path, fault: Fault, code: str) -> None:
    outcome = federate(tmp_path, fault=_only(2, 2, fault))
    assert close(outcome.layer, moved(0.02 + 0.015 + 0.02))  # in round 2 only .01 and .02 are averaged
    second = lines(tmp_path)[1]
    assert (second["replies"], second["refused"]) == (["arts", "books"], [{"domain": "cameras", "code": code}])


def test_no_text_of_a_client_exception_reaches_log_or_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="isthmus"):
        federate(tmp_path, fault=_only(2, None, _raise))
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    ours = "".join(record.getMessage() for record in caplog.records if record.name.startswith("isthmus"))
    assert "dropped" in ours
    assert "gardening" not in ours
    assert b"gardening" not in written


def test_a_round_with_too_few_replies_is_repeated_and_only_those_are_asked_who_failed(tmp_path: Path) -> None:
    tries: list[int] = []

    def fails_twice(client: int, round: int, content: RecordDict) -> RecordDict:
        tries.append(client)
        return wire.Unavailable().pack() if client > 0 and tries.count(client) <= 2 else content

    outcome = federate(tmp_path, fault=lambda c, r, content: fails_twice(c, r, content) if r == 2 else content)
    assert close(outcome.layer, moved(0.06))
    assert lines(tmp_path)[1]["attempts"] == 3
    assert (tries.count(0), tries.count(1), tries.count(2)) == (1, 3, 3)
    assert [intents(tmp_path / "run-disks", client) for client in range(3)] == [3, 3, 3]  # repeated rounds came from disk


def test_a_round_that_never_gets_enough_replies_ends_the_run_and_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(TooFewClients, match=r"round 2: 1 of at least 2") as caught:
        federate(tmp_path, fault=lambda c, r, content: wire.Unavailable().pack() if c > 0 and r == 2 else content)
    assert ("books", "unavailable") in caught.value.dropped
    outcome = federate(tmp_path, resume=True)
    assert close(outcome.layer, moved(0.06))


def test_a_client_that_refuses_a_round_is_not_asked_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def refuses(client: int, round: int, content: RecordDict) -> RecordDict:
        asked.append(round)
        return wire.Refused("ceiling").pack()

    outcome = federate(tmp_path, fault=_only(2, None, refuses))
    assert asked == [1]
    assert outcome.domains == ("arts", "books")


def test_who_was_late_and_then_answered_does_not_hide_that_the_others_have_nothing_left(tmp_path: Path) -> None:
    tries: list[int] = []

    def fault(client: int, round: int, content: RecordDict) -> RecordDict:
        if round != 2:
            return content
        tries.append(client)
        if client > 0:
            return wire.Refused("ceiling").pack()
        return wire.Unavailable().pack() if tries.count(0) == 1 else content

    with pytest.raises(BudgetUsedUp) as caught:
        federate(tmp_path, fault=fault)
    assert caught.value.dropped == (("books", "refused-ceiling"), ("cameras", "refused-ceiling"))


def test_too_few_clients_at_hello_name_their_codes(tmp_path: Path) -> None:
    app = ClientApp()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        content = wire.HelloReply(domain="arts") if context.node_config["partition-id"] == 0 else wire.Refused("ceiling")
        return Message(content.pack(), reply_to=message)

    with pytest.raises(TooFewClients, match="hello: 1 of at least 2") as caught:
        federate(tmp_path, app=app)
    assert [code for _, code in caught.value.dropped] == ["refused-ceiling", "refused-ceiling"]


def test_two_nodes_that_name_one_domain_do_not_both_take_part(tmp_path: Path) -> None:
    def twin(client: int, round: int, content: RecordDict) -> RecordDict:
        if client == 2 and "fields" in content and "domain" in content["fields"]:
            content["fields"]["domain"] = "arts"  # type: ignore[index]
        return content

    assert federate(tmp_path, fault=twin).domains == ("arts", "books")


def test_waiting_for_clients_that_never_come_is_bounded(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TooFewClients, match="hello: 1 of at least 2"):
        federate(tmp_path, clients=1)
    assert time.monotonic() - started < 5.0  # wait_s is .3


def test_a_missing_client_is_gone_without_after_the_wait(tmp_path: Path) -> None:
    folder, disks = tmp_path / "run", tmp_path / "disks"
    folder.mkdir()
    disks.mkdir()
    grid = InProcessGrid(tiny_app(disks), 2)
    outcome = run_federation(grid, CONFIG, folder, expected_clients=3, text_dimension=TEXT)
    assert outcome.domains == ("arts", "books")


def test_a_slow_client_misses_its_round(tmp_path: Path) -> None:
    config = small_config(aggregation={"round_timeout_s": 0.25})

    def slow(client: int, round: int, content: RecordDict) -> RecordDict:
        if client == 2 and round == 1:
            time.sleep(0.3)
        return content

    federate(tmp_path, config, fault=slow)
    assert lines(tmp_path)[0]["refused"] == [{"domain": "cameras", "code": "no-reply"}]


def test_a_client_that_connects_late_is_greeted_and_takes_part(tmp_path: Path) -> None:
    folder, disks = tmp_path / "run", tmp_path / "disks"
    folder.mkdir()
    disks.mkdir()

    class Late(InProcessGrid):
        late = True

        def get_node_ids(self) -> list[int]:
            return [node for node in super().get_node_ids() if node < 3 or not self.late]

    grid = Late(tiny_app(disks), 3)

    def arrive(stage: str, done: int, total: int) -> None:
        del total
        grid.late = grid.late and (stage, done) != ("train", 1)

    outcome = run_federation(grid, CONFIG, folder, text_dimension=TEXT, progress=arrive)
    assert [line["replies"] for line in lines(tmp_path)] == [["arts", "books"], ["arts", "books", "cameras"], ["arts", "books", "cameras"]]
    assert outcome.domains == ("arts", "books", "cameras")


@pytest.mark.parametrize(("failures", "rounds"), [(2, 3), (6, 0)])
def test_a_client_that_missed_the_beginning_is_greeted_again_a_few_times(tmp_path: Path, failures: int, rounds: int) -> None:
    """Its node was starting again while the space was made: that is no reason to do without it for the whole run."""
    tries: list[int] = []

    def away(client: int, round: int, content: RecordDict) -> RecordDict:
        tries.extend([client] if client == 2 else [])
        return wire.Unavailable().pack() if client == 2 and len(tries) <= failures else content

    (tmp_path / "run").mkdir()
    with keeping(tmp_path / "run", 1) as journal:
        federate(tmp_path, fault=away, partners=Partners(registered=lambda: {1: "arts", 2: "books", 3: "cameras"}))
    assert left_out(journal.read()) == ({} if rounds else {"cameras": "unavailable"})  # nobody is who takes part
    answered = [line["replies"] for line in lines(tmp_path)]
    assert answered == [["arts", "books", "cameras"] if rounds else ["arts", "books"]] * 3
    assert len(tries) == (failures if not rounds else 2 + 2 + 3 + 1)  # in vain; or hello, hello and descriptor, rounds, delivery


@pytest.mark.parametrize(("deaf", "ends"), [(5, True), (6, False)])
def test_a_question_that_nobody_was_there_to_hear_costs_no_attempt(tmp_path: Path, deaf: int, ends: bool) -> None:
    class Away(InProcessGrid):
        left = 0

        def get_node_ids(self) -> list[int]:
            return [] if self.left else list(super().get_node_ids())

        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            if not self.left:
                return super().send_and_receive(messages, timeout=timeout)
            self.left -= 1
            return []

    folder, disks = tmp_path / "run", tmp_path / "run-disks"
    folder.mkdir()
    disks.mkdir()
    grid = Away(tiny_app(disks), 3)

    def leave(stage: str, done: int, _: int) -> None:
        grid.left = deaf if (stage, done) == ("train", 1) else grid.left

    def run() -> Outcome:
        return run_federation(grid, CONFIG, folder, text_dimension=TEXT, progress=leave)

    if ends:  # three questions that count, and three that nobody heard
        assert run().round == 3
        assert lines(tmp_path)[1]["attempts"] == deaf + 1
    else:
        with pytest.raises(TooFewClients):
            run()


def test_only_enrolled_domains_take_part_and_none_above_its_ceiling(tmp_path: Path) -> None:
    partners = Partners(
        agreements={"arts": Agreement(), "books": Agreement(), "drums": Agreement(), "cameras": Agreement(ceiling_epsilon=0.15)}
    )
    federate(tmp_path, partners=partners)
    assert [line["refused"] for line in lines(tmp_path)] == [
        [],
        [{"domain": "cameras", "code": "ceiling"}],
        [{"domain": "cameras", "code": "ceiling"}],
    ]


def test_a_client_that_does_not_confirm_delivery_is_named(tmp_path: Path) -> None:
    def deaf(client: int, round: int, content: RecordDict) -> RecordDict:
        return wire.Unavailable().pack() if client == 1 and "status" in content else content

    assert federate(tmp_path, fault=deaf).not_delivered == (("books", "unavailable"),)
