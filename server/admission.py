"""Each reply on its way in: the twin of the egress gate. What does not pass is dropped and reported by a short code; it never ends a run.

==============  =====================================================================================================================
code            a reply was dropped because
==============  =====================================================================================================================
no-reply        none came in time
error           the client's code raised; Flower's text is not kept
unavailable     the client answered with its fixed failure
refused-CODE    the client declined, with one of `REFUSAL_CODES`; its guard says ``bundle``, before any of our code runs
malformed       records, names, shapes, dtypes, ranges or finiteness are not those of the schema
stale           it belongs to another run, round or configuration
digest          the digest of its arrays is not the one in its receipt
domain          the receipt speaks for another domain than the node did at hello, or the node may not speak for it
signature       the receipt is not signed by the key it names
key             that key is not the one of this domain: the agreed one, or the one that signed the last receipt
receipt         the ledger behind it did not go on from the last receipt, of this run or an earlier one
mechanism       the mechanism it was debited under is not the one of the run configuration
ceiling         the ledger shows more epsilon than the partner agreed to
norm            the transfer layer is larger than `aggregation.max_update_norm`
==============  =====================================================================================================================
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
from flwr.app import Message
from flwr.common.constant import ErrorCode

from shared import wire
from shared.config import RunConfig
from shared.errors import AdmissionRefused, LedgerError
from shared.privacy.mechanism import Mechanism
from shared.privacy.receipts import SignedReceipt
from shared.wire import TransferUpdate

from .partners import Partners

NO_REPLY = "no-reply"


class Inadmissible(AdmissionRefused):
    """A reply is dropped. ``code`` is what reports show."""

    def __init__(self, code: str, what: str = "") -> None:
        self.code = code
        super().__init__(what or code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The rules of one run."""

    config: RunConfig
    run_id: str
    partners: Partners
    text_dimension: int = wire.TEXT_DIMENSION

    def read(self, kind: str, message: Message) -> wire.Reply:
        """Reads any reply by the schema of its kind; failures and refusals become `Inadmissible`."""
        if message.metadata.message_type != kind:
            raise Inadmissible("malformed", "the reply is of another kind than the question")
        if message.has_error() and message.error.code == ErrorCode.INVALID_FAB:
            raise Inadmissible("refused-bundle")
        if message.has_error() or not message.has_content():
            raise Inadmissible("error")
        try:
            reply = wire.reply_schema(kind, self.config, self.text_dimension).read(message.content)
        except wire.Malformed as error:
            raise Inadmissible("malformed", str(error)) from None
        if isinstance(reply, wire.Unavailable):
            raise Inadmissible("unavailable")
        if isinstance(reply, wire.Refused):
            raise Inadmissible(f"refused-{reply.code}")
        return reply

    def admit(self, message: Message, round: int) -> TransferUpdate:
        """Checks the reply to a round. Nothing is remembered: call `Partners.receipts` up to date once the round counts.

        Raises:
            Inadmissible: with the code of the first rule it breaks.
        """
        update = self.read(wire.TRAIN, message)
        assert isinstance(update, TransferUpdate)
        if (update.run_id, update.round, update.config_hash) != (self.run_id, round, self.config.config_hash):
            raise Inadmissible("stale")
        if update.digest() != update.receipt.payload_sha256:
            raise Inadmissible("digest")
        domain = self.partners.domain_of(message.metadata.src_node_id)
        if domain is None or update.receipt.domain != domain:
            raise Inadmissible("domain")
        self._check_receipt(update.receipt, domain)
        norm = math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in update.arrays.values()))
        if norm > self.config.aggregation.max_update_norm:
            raise Inadmissible("norm")
        return update

    def _check_receipt(self, receipt: SignedReceipt, domain: str) -> None:
        if not receipt.holds():
            raise Inadmissible("signature")
        key, last = self.partners.key_of(domain), self.partners.receipts.get(domain)
        if key is not None and receipt.verify_key != key:
            do = "Where the partner changed its key, write the new one into partners.toml."
            raise Inadmissible("key", f"the receipt is signed by another key than that of its domain ({do})")
        if receipt.count_of_intents < 1:
            raise Inadmissible("receipt", "a reply without an intent")
        if last is not None and not (receipt.goes_on_from(last) or receipt.repeats(last)):
            raise Inadmissible("receipt", "the ledger is older than its last receipt")
        self._check_mechanism(receipt)
        if receipt.epsilon_spent > self.partners.ceiling_of(receipt.domain):
            raise Inadmissible("ceiling")

    def _check_mechanism(self, receipt: SignedReceipt) -> None:
        try:
            mechanism = Mechanism.from_record(json.loads(receipt.mechanism))
        except LedgerError:
            raise Inadmissible("mechanism", "not a record of a mechanism") from None
        privacy = self.config.privacy
        agreed = mechanism.steps == privacy.steps_per_round
        if mechanism.kind == "none":
            agreed = agreed and not privacy.private
        else:
            agreed = (
                agreed
                and mechanism.sampling_rate == privacy.sampling_rate
                and mechanism.clip_norm == privacy.clip_norm
                and mechanism.grid == privacy.grid
                and privacy.noise_multiplier in (0.0, mechanism.noise_multiplier)
            )
        if not agreed:
            raise Inadmissible("mechanism")
