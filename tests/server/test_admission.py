"""Each rule of admission, by the attack it stops."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode

from server.admission import Admission, Inadmissible
from server.partners import Agreement, Partners
from shared import wire
from shared.errors import AdmissionRefused, ConfigError
from shared.privacy.receipts import SignedReceipt
from shared.privacy.signing import Signer, SigningPair
from shared.transfer_layer import initial_arrays
from tests.server.tiny_clients import KEYS, small_config, trained

CONFIG = small_config()
NODE = 7
RUN = "tiny-1"


def update(folder: Path, round: int = 1) -> wire.TransferUpdate:
    question = wire.RoundInstruction(run_id=RUN, round=round, config_hash=CONFIG.config_hash, arrays=initial_arrays(CONFIG.model, round))
    return trained(folder, 0, question, CONFIG)


def message(content: RecordDict | None = None, *, node: int = NODE, kind: str = wire.TRAIN, error: Error | None = None) -> Message:
    metadata = Metadata(
        run_id=1,
        message_id="m",
        src_node_id=node,
        dst_node_id=1,
        reply_to_message_id="q",
        group_id="1",
        created_at=0.0,
        ttl=60.0,
        message_type=kind,
    )
    return make_message(metadata, content=content, error=error)


STRANGER = SigningPair(b"s" * 32)


def admission(ceiling: float = math.inf, last: wire.Receipt | None = None, verify_key: str = "") -> Admission:
    agreed = Agreement(ceiling_epsilon=ceiling, verify_key=verify_key)
    partners = Partners(agreements={"arts": agreed}, receipts={"arts": last} if last else {})
    partners.pin(NODE, "arts", [NODE])
    return Admission(config=CONFIG, run_id=RUN, partners=partners, text_dimension=12)


def code_of(rules: Admission, reply: Message, round: int = 1) -> str:
    with pytest.raises(Inadmissible) as caught:
        rules.admit(reply, round)
    return caught.value.code


def test_an_honest_reply_is_admitted(tmp_path: Path) -> None:
    sent = update(tmp_path)
    assert admission().admit(message(sent.pack()), 1).digest() == sent.digest()


def _with(**changes: object) -> Callable[[wire.TransferUpdate], wire.TransferUpdate]:
    return lambda update: dataclasses.replace(update, **changes)


def said(receipt: SignedReceipt, signer: Signer = KEYS[0], **changes: object) -> SignedReceipt:
    """The receipt with other values, signed anew."""
    values = {field.name: getattr(receipt, field.name) for field in dataclasses.fields(receipt)} | changes
    del values["verify_key"], values["signature"]
    return SignedReceipt.signed(signer, **values)


def _receipt(**changes: object) -> Callable[[wire.TransferUpdate], wire.TransferUpdate]:
    """What a partner could say that lies with its own key."""
    return lambda update: update.with_receipt(said(update.receipt, **changes))


def _unsigned(**changes: object) -> Callable[[wire.TransferUpdate], wire.TransferUpdate]:
    """What somebody on the way could say, who has no key."""
    return lambda update: update.with_receipt(dataclasses.replace(update.receipt, **changes))


def _signed(change: Callable[[wire.TransferUpdate], wire.TransferUpdate]) -> Callable[[wire.TransferUpdate], wire.TransferUpdate]:
    """The liar also writes a digest that fits."""

    def lie(update: wire.TransferUpdate) -> wire.TransferUpdate:
        changed = change(update)
        return changed.with_receipt(said(changed.receipt, payload_sha256=changed.digest()))

    return lie


def _mechanism(**changes: object) -> Callable[[wire.TransferUpdate], wire.TransferUpdate]:
    def lie(update: wire.TransferUpdate) -> wire.TransferUpdate:
        record = json.loads(update.receipt.mechanism) | changes
        return update.with_receipt(said(update.receipt, mechanism=wire.canonical_json(record)))

    return lie


def _loud(update: wire.TransferUpdate) -> wire.TransferUpdate:
    return dataclasses.replace(update, arrays={name: np.full_like(array, 900.0) for name, array in update.arrays.items()})


LIES = {
    "a wrong digest": (_receipt(payload_sha256="f" * 64), "digest"),
    "arrays that were changed after the commit": (_loud, "digest"),
    "a layer that is too large": (_signed(_loud), "norm"),
    "another round": (_signed(_with(round=2)), "stale"),
    "another run": (_signed(_with(run_id="tiny-2")), "stale"),
    "another configuration": (_signed(_with(config_hash="e" * 64)), "stale"),
    "the receipt of another domain": (_receipt(domain="books"), "domain"),
    "no intent": (_receipt(count_of_intents=0), "receipt"),
    "more epsilon than agreed": (_receipt(epsilon_spent=3.01), "ceiling"),
    "infinite epsilon": (_receipt(epsilon_spent=math.inf), "ceiling"),
    "less noise": (_mechanism(noise_multiplier=(0.5).hex()), "mechanism"),
    "more steps": (_mechanism(steps=4000), "mechanism"),
    "a larger clip norm": (_mechanism(clip_norm=(5.0).hex()), "mechanism"),
    "a mechanism that protects nobody": (_mechanism(kind="none"), "mechanism"),
    "a mechanism nobody knows": (_mechanism(kind="laplace"), "mechanism"),
    "a mechanism with a foreign field": (_mechanism(user="4711"), "mechanism"),
    "less epsilon than was signed": (_unsigned(epsilon_spent=0.05), "signature"),
    "another head than was signed": (_unsigned(head_hash="d" * 64), "signature"),
    "a signature over something else": (_unsigned(signature=KEYS[0].sign(b"something else").hex()), "signature"),
    "the key of another partner over its own signature": (_unsigned(verify_key=KEYS[1].verify_key), "signature"),
}


@pytest.mark.parametrize(("lie", "code"), LIES.values(), ids=LIES.keys())
def test_a_reply_is_dropped_that_shows(tmp_path: Path, lie: Callable[[wire.TransferUpdate], wire.TransferUpdate], code: str) -> None:
    assert code_of(admission(ceiling=3.0), message(lie(update(tmp_path)).pack())) == code


def test_a_replayed_receipt_is_dropped(tmp_path: Path) -> None:
    old = update(tmp_path, 1)
    new = update(tmp_path, 2)
    replayed = new.with_receipt(dataclasses.replace(old.receipt, payload_sha256=new.digest()))
    rules = admission(last=old.receipt)
    assert rules.admit(message(new.pack()), 2).receipt.count_of_intents == 2
    assert code_of(rules, message(replayed.pack()), 2) == "signature"
    assert code_of(rules, message(new.with_receipt(old.receipt).pack()), 2) == "digest"


def test_a_ledger_that_went_back_is_dropped(tmp_path: Path) -> None:
    old, new = update(tmp_path, 1), update(tmp_path, 2)
    for lie in ({"epsilon_spent": 0.01}, {"head_hash": old.receipt.head_hash}, {"count_of_intents": 1}):
        changed = new.with_receipt(said(new.receipt, **lie))
        assert code_of(admission(last=old.receipt), message(changed.pack()), 2) == "receipt", lie


def test_the_same_reply_sent_again_is_admitted_again(tmp_path: Path) -> None:
    sent = update(tmp_path)
    assert admission(last=sent.receipt).admit(message(sent.pack()), 1).receipt == sent.receipt
    later = sent.with_receipt(said(sent.receipt, epsilon_spent=7.0))  # a release was booked in between
    assert admission(last=sent.receipt).admit(message(later.pack()), 1).receipt.epsilon_spent == 7.0


def test_a_receipt_under_another_key_than_that_of_the_last_one_is_dropped(tmp_path: Path) -> None:
    old, new = update(tmp_path, 1), update(tmp_path, 2)
    other = new.with_receipt(said(new.receipt, STRANGER))
    assert other.receipt.holds()
    assert code_of(admission(last=old.receipt), message(other.pack()), 2) == "key"
    assert admission().admit(message(other.pack()), 2).receipt.verify_key == STRANGER.verify_key  # nobody knows the domain yet


def test_the_agreed_key_decides_also_over_an_earlier_receipt(tmp_path: Path) -> None:
    old, new = update(tmp_path, 1), update(tmp_path, 2)
    changed = new.with_receipt(said(new.receipt, STRANGER))
    rules = admission(last=old.receipt, verify_key=STRANGER.verify_key)  # the partner told the coordinator about its new key
    assert rules.admit(message(changed.pack()), 2).receipt == changed.receipt
    assert code_of(rules, message(new.pack()), 2) == "key"
    assert code_of(admission(verify_key=KEYS[0].verify_key), message(changed.pack()), 2) == "key"


def test_a_node_cannot_speak_for_a_domain_it_did_not_name_at_hello(tmp_path: Path) -> None:
    assert code_of(admission(), message(update(tmp_path).pack(), node=8)) == "domain"


def test_the_text_of_a_client_exception_is_not_kept() -> None:
    reply = message(error=Error(code=2, reason="user 4711 likes gardening"))
    with pytest.raises(Inadmissible) as caught:
        admission().admit(reply, 1)
    assert (caught.value.code, "4711" in str(caught.value)) == ("error", False)


def test_fixed_failures_and_refusals_have_codes_of_their_own() -> None:
    assert code_of(admission(), message(wire.Unavailable().pack())) == "unavailable"
    assert code_of(admission(), message(wire.Refused("ceiling").pack())) == "refused-ceiling"


def test_a_reply_of_another_kind_is_dropped(tmp_path: Path) -> None:
    assert code_of(admission(), message(update(tmp_path).pack(), kind=wire.HELLO)) == "malformed"


def test_an_extra_array_is_dropped(tmp_path: Path) -> None:
    content = update(tmp_path).pack()
    content["arrays"]["private.head"] = Array(np.zeros(3, np.float32))  # type: ignore[index]
    assert code_of(admission(), message(content)) == "malformed"


# --- partners ---


def test_who_is_not_enrolled_is_left_out() -> None:
    partners = Partners(agreements={"arts": Agreement()})
    with pytest.raises(AdmissionRefused, match="not enrolled"):
        partners.pin(1, "books", [1])


def test_two_connected_nodes_cannot_share_a_domain_but_a_new_node_may_follow_a_lost_one() -> None:
    partners = Partners()
    partners.pin(1, "arts", [1, 2])
    with pytest.raises(AdmissionRefused, match="two connected nodes"):
        partners.pin(2, "arts", [1, 2])
    partners.pin(2, "arts", [2])
    assert (partners.nodes, partners.domains) == ([2], ["arts"])


def test_a_node_cannot_change_its_domain() -> None:
    partners = Partners()
    partners.pin(1, "arts", [1])
    with pytest.raises(AdmissionRefused, match="changed its domain"):
        partners.pin(1, "books", [1])


def test_a_node_speaks_for_the_domain_whose_key_it_holds_and_for_no_other() -> None:
    partners = Partners(registered=lambda: {1: "arts", 2: "books"})
    for node, domain in ((1, "books"), (3, "books")):  # in another one's name, and one that nobody admitted
        with pytest.raises(AdmissionRefused, match="whose key it holds"):
            partners.pin(node, domain, [1, 2, 3])
    partners.pin(2, "books", [1, 2, 3])
    assert (partners.domains, partners.registered_as(1), partners.registered_as(3)) == (["books"], "arts", None)


def test_a_guard_that_refuses_the_bundle_has_refused_the_run() -> None:
    assert code_of(admission(), message(error=Error(ErrorCode.INVALID_FAB, "The FAB could not be verified."))) == "refused-bundle"


def test_partners_are_read_from_toml_and_a_misspelt_key_is_named() -> None:
    partners = Partners.from_toml("[arts]\nceiling_epsilon = 4\n[books]\n")
    assert (partners.expected, partners.ceiling_of("arts"), partners.ceiling_of("books")) == (2, 4.0, math.inf)
    with pytest.raises(ConfigError, match=r"arts\.ceiling"):
        Partners.from_toml("[arts]\nceiling = 4\n")
    with pytest.raises(ConfigError, match="verify_key"):
        Partners.from_toml('[arts]\nverify_key = "ABCD"\n')
    with pytest.raises(ConfigError, match="not a domain"):
        Partners.from_toml("arts = 4\n")
    with pytest.raises(ConfigError, match="not TOML"):
        Partners.from_toml("[arts")
