"""What travels between the coordinator and the clients: typed records <-> Flower's `RecordDict`.

A message is unpacked strictly: exactly the records, names, types, shapes and dtypes that its kind declares, every number finite, every
text within its pattern, nothing besides. Anything else is `Malformed`, and no other exception comes out of `unpack`. The same rules hold
on both sides of the border: the egress gate sends ``schema.read(records).pack()``, so that what leaves is the canonical form, and admission
reads with the same schema. Arrays and digests are in `shared.wire_arrays`.

==================  ==================  ===============================  ==============================================
kind                instruction         reply                            content of the reply
==================  ==================  ===============================  ==============================================
query.hello         Hello               HelloReply                       domain, protocol
query.moments       MomentsQuery        MomentsReply | Declined          moments of the public catalogue
query.centroids     CentroidsQuery      CentroidsReply | Declined        centroids of the public catalogue
query.descriptor    DescriptorQuery     DescriptorReply | Declined       mean coordinate of the public catalogue
train               RoundInstruction    TransferUpdate                   shared arrays, constant weight, signed receipt
query.deliver       Deliver             Ok                               nothing
(any)                                   Unavailable, Refused             one fixed status record
==================  ==================  ===============================  ==============================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from shared.config import PROTOCOL, RunConfig
from shared.errors import REFUSAL_CODES
from shared.privacy.receipts import SignedReceipt as Receipt
from shared.privacy.receipts import is_receipt_text
from shared.wire_arrays import ArraySpec, Malformed, check_array, check_names, layer_sha256, payload_sha256
from shared.wire_record import ARRAYS_KEY, FIELDS_KEY, Record, config_record, read_fields
from shared.wire_rules import DIGEST, DOMAIN, ROUND, RUN_ID, SHA256, SIGNATURE, Rule, canonical_json, exactly, or_empty, text, toml, whole

# The rest of the house reads these names from here.
__all__ = ["DOMAIN", "ArraySpec", "Malformed", "Receipt", "Record", "canonical_json", "layer_sha256", "payload_sha256"]

HELLO = "query.hello"
MOMENTS = "query.moments"
CENTROIDS = "query.centroids"
DESCRIPTOR = "query.descriptor"
TRAIN = "train"
DELIVER = "query.deliver"
KINDS: tuple[str, ...] = (HELLO, MOMENTS, CENTROIDS, DESCRIPTOR, TRAIN, DELIVER)

WEIGHT = "weight"
"""Key of the one metric that travels: the constant 1.0."""

TEXT_DIMENSION = 384
_METRICS, _RECEIPT, _STATUS = "metrics", "receipt", "status"
_UNIT = 1.0 + 1e-3  # longest coordinate of a unit vector, with room for rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Record):
    """The first message: protocol, run, and the whole run configuration as canonical TOML, signed by the coordinator.

    ``contract_signature`` is `shared.contract.sign` of the configuration, the run, ``bundle_digest`` and ``domains``, in hex; empty in
    simulations. ``bundle_digest`` is the sha256 of the code bundle that the coordinator submitted; empty where it names none. ``domains``
    are those that the run was priced for, sorted, with commas between them.
    """

    RULES: ClassVar[Mapping[str, Rule]] = {
        "protocol": whole(0, 2**31 - 1),
        "run_id": RUN_ID,
        "config_toml": toml,
        "contract_signature": or_empty(SIGNATURE),
        "bundle_digest": or_empty(SHA256),
        "domains": text(r"[A-Za-z0-9_,-]{0,16384}"),
    }
    protocol: int = PROTOCOL
    run_id: str
    config_toml: str
    contract_signature: str = ""
    bundle_digest: str = ""
    domains: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloReply(Record):
    RULES: ClassVar[Mapping[str, Rule]] = {"domain": DOMAIN, "protocol": exactly(PROTOCOL)}
    domain: str
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentsQuery(Record):
    RULES: ClassVar[Mapping[str, Rule]] = {"run_id": RUN_ID}
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MomentsReply(Record):
    """Moments of the catalogue's text vectors: number of items, their sum (D,) and the sum of their outer products (D, D)."""

    RULES: ClassVar[Mapping[str, Rule]] = {"count": whole(0, 10**9), "catalogue_hash": DIGEST}
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {"total": ArraySpec("float64", (None,)), "outer": ArraySpec("float64", (None, None))}
    count: int
    total: np.ndarray
    outer: np.ndarray
    catalogue_hash: str

    def __post_init__(self) -> None:
        for name, array in (("total", self.total), ("outer", self.outer)):  # sums over `count` unit vectors
            check_array(f"array '{name}'", array, ArraySpec("float64", None, limit=self.count * _UNIT))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CentroidsQuery(Record):
    """The interest space without prototypes: mean (D,), basis (D, d), scale (d,)."""

    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {
        "mean": ArraySpec("float32", (None,)),
        "basis": ArraySpec("float32", (None, None)),
        "scale": ArraySpec("float32", (None,)),
    }
    mean: np.ndarray
    basis: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CentroidsReply(Record):
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {"centroids": ArraySpec("float32", (None, None), limit=_UNIT)}
    centroids: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DescriptorQuery(Record):
    """The complete interest space: mean (D,), basis (D, d), scale (d,), prototypes (K, d)."""

    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {**CentroidsQuery.ARRAYS, "prototypes": ArraySpec("float32", (None, None))}
    mean: np.ndarray
    basis: np.ndarray
    scale: np.ndarray
    prototypes: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DescriptorReply(Record):
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {"descriptor": ArraySpec("float32", (None,), limit=_UNIT)}
    descriptor: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundInstruction(Record):
    """One round's work: train from these shared arrays. ``round`` counts from 1 and is absolute, also after a resume.

    ``last_receipt`` is the text of the last receipt that the coordinator holds from this domain, in this run or an earlier one; empty where
    it holds none. A client whose ledger does not hold that event stops.
    """

    RULES: ClassVar[Mapping[str, Rule]] = {
        "run_id": RUN_ID,
        "round": ROUND,
        "config_hash": SHA256,
        "last_receipt": lambda value: type(value) is str and (not value or is_receipt_text(value)),
    }
    OPEN_ARRAYS: ClassVar[str] = "arrays"
    run_id: str
    round: int
    config_hash: str
    arrays: dict[str, np.ndarray]
    last_receipt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TransferUpdate(Record):
    """A client's answer to a round: the shared arrays after it, the constant weight, and the signed receipt."""

    RULES: ClassVar[Mapping[str, Rule]] = {"run_id": RUN_ID, "round": ROUND, "config_hash": SHA256}
    OPEN_ARRAYS: ClassVar[str] = "arrays"
    run_id: str
    round: int
    config_hash: str
    arrays: dict[str, np.ndarray]
    receipt: Receipt
    weight: float = field(default=1.0)

    def _pack(self) -> RecordDict:
        content = Record._pack(self)
        content[_METRICS] = MetricRecord({WEIGHT: self.weight})
        content[_RECEIPT] = config_record({name: getattr(self.receipt, name) for name in Receipt.RULES})
        return content

    @classmethod
    def _recordcheck_names(cls) -> set[str]:
        return {FIELDS_KEY, ARRAYS_KEY, _METRICS, _RECEIPT}

    @classmethod
    def _unpack_rest(cls, content: RecordDict) -> dict[str, Any]:
        metrics = content[_METRICS]
        if not isinstance(metrics, MetricRecord):
            raise Malformed("'metrics' is not a record of metrics")
        check_names("'metrics'", metrics.keys(), {WEIGHT})
        if type(metrics[WEIGHT]) is not float or metrics[WEIGHT] != 1.0:
            raise Malformed("the weight is not the constant 1.0")
        return {"weight": 1.0, "receipt": Receipt(**read_fields(content, _RECEIPT, Receipt.RULES))}

    def digest(self) -> str:
        return payload_sha256(self.run_id, self.round, self.config_hash, self.arrays)

    def with_receipt(self, receipt: Receipt) -> TransferUpdate:
        return replace(self, receipt=receipt)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deliver(Record):
    """The final transfer layer: the client fits its serving head with it and answers `Ok`."""

    RULES: ClassVar[Mapping[str, Rule]] = {"run_id": RUN_ID, "round": ROUND}
    OPEN_ARRAYS: ClassVar[str] = "arrays"
    run_id: str
    round: int
    arrays: dict[str, np.ndarray]


# --- fixed replies -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Status:
    """A reply of one `ConfigRecord` {status, protocol}: the same bytes whatever the cause."""

    STATUS: ClassVar[str] = ""

    def pack(self) -> RecordDict:
        return RecordDict({_STATUS: ConfigRecord({"status": self.STATUS, "protocol": PROTOCOL})})


class Ok(Status):
    STATUS = "ok"


class Unavailable(Status):
    """Every failure there is, without its reason."""

    STATUS = "unavailable"


class Declined(Status):
    """The partner does not share this (moments, centroids, descriptor): it only receives."""

    STATUS = "declined"


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal decided before any data were opened; of its reason only a code from `REFUSAL_CODES` leaves."""

    code: str

    def __post_init__(self) -> None:
        if self.code not in REFUSAL_CODES:
            raise Malformed("not a refusal code")

    def pack(self) -> RecordDict:
        return RecordDict({_STATUS: ConfigRecord({"status": "refused", "code": self.code, "protocol": PROTOCOL})})


Reply = HelloReply | MomentsReply | CentroidsReply | DescriptorReply | TransferUpdate | Status | Refused

INSTRUCTIONS: Mapping[str, type[Record]] = {
    HELLO: Hello,
    MOMENTS: MomentsQuery,
    CENTROIDS: CentroidsQuery,
    DESCRIPTOR: DescriptorQuery,
    TRAIN: RoundInstruction,
    DELIVER: Deliver,
}
REPLIES: Mapping[str, type[Record] | type[Ok]] = {
    HELLO: HelloReply,
    MOMENTS: MomentsReply,
    CENTROIDS: CentroidsReply,
    DESCRIPTOR: DescriptorReply,
    TRAIN: TransferUpdate,
    DELIVER: Ok,
}
_MAY_DECLINE = frozenset({MOMENTS, CENTROIDS, DESCRIPTOR})


def _read_status(kind: str, content: RecordDict) -> Status | Refused:
    check_names("records", content.keys(), {_STATUS})
    record = content[_STATUS]
    if not isinstance(record, ConfigRecord):
        raise Malformed("'status' is not a record of settings")
    if "code" in record:
        rules = {"status": exactly("refused"), "code": lambda v: type(v) is str and v in REFUSAL_CODES, "protocol": exactly(PROTOCOL)}
        return Refused(read_fields(content, _STATUS, rules)["code"])
    allowed: list[type[Status]] = [Unavailable, *([Ok] if kind == DELIVER else []), *([Declined] if kind in _MAY_DECLINE else [])]
    for status in allowed:
        if record.get("status") == status.STATUS:
            read_fields(content, _STATUS, {"status": exactly(status.STATUS), "protocol": exactly(PROTOCOL)})
            return status()
    raise Malformed("'status.status' is not a status of this kind of message")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplySchema:
    """The exact form of the replies to one kind of message, in one run.

    ``arrays`` names every array with its shape, dtype and range; None where the reply carries none.
    """

    kind: str
    arrays: Mapping[str, ArraySpec] | None

    def read(self, content: RecordDict) -> Reply:
        """Reads a reply, or one of the fixed statuses that are allowed in its place.

        Raises:
            Malformed: when the content is neither.
        """
        expected = REPLIES[self.kind]
        if _STATUS in content or not issubclass(expected, Record):
            return _read_status(self.kind, content)
        return cast(Reply, expected.unpack(content, self.arrays))


def _space_specs(config: RunConfig, text_dimension: int) -> dict[str, ArraySpec]:
    d = config.model.dimension
    return {
        "mean": ArraySpec("float32", (text_dimension,)),
        "basis": ArraySpec("float32", (text_dimension, d)),
        "scale": ArraySpec("float32", (d,)),
    }


def _shared_specs(config: RunConfig) -> dict[str, ArraySpec]:
    from shared.transfer_layer import shared_shapes

    limit = config.aggregation.max_update_norm
    return {name: ArraySpec("float32", tuple(shape), limit=limit) for name, shape in shared_shapes(config.model).items()}


def reply_schema(kind: str, config: RunConfig, text_dimension: int = TEXT_DIMENSION) -> ReplySchema:
    """What may be answered to a message of this kind in this run."""
    model = config.model
    if kind == MOMENTS:
        arrays = {"total": ArraySpec("float64", (text_dimension,)), "outer": ArraySpec("float64", (text_dimension, text_dimension))}
    elif kind == CENTROIDS:
        arrays = {"centroids": ArraySpec("float32", (model.prototypes, model.dimension), limit=_UNIT)}
    elif kind == DESCRIPTOR:
        arrays = {"descriptor": ArraySpec("float32", (model.descriptor_dimension,), limit=_UNIT)}
    elif kind == TRAIN:
        arrays = _shared_specs(config)
    elif kind in KINDS:
        return ReplySchema(kind=kind, arrays=None)
    else:
        raise Malformed("not a kind of message")
    return ReplySchema(kind=kind, arrays=arrays)


def read_instruction(kind: str, content: RecordDict, config: RunConfig | None = None, text_dimension: int = TEXT_DIMENSION) -> Record:
    """Reads what a client received; with the run configuration, shapes are checked too.

    Raises:
        Malformed: when the kind is unknown or the content is not what it declares.
    """
    if kind not in INSTRUCTIONS:
        raise Malformed("not a kind of message")
    arrays: Mapping[str, ArraySpec] | None = None
    if config is not None:
        if kind in (TRAIN, DELIVER):
            arrays = _shared_specs(config)
        elif kind == CENTROIDS:
            arrays = _space_specs(config, text_dimension)
        elif kind == DESCRIPTOR:
            prototypes = ArraySpec("float32", (config.model.prototypes, config.model.dimension))
            arrays = {**_space_specs(config, text_dimension), "prototypes": prototypes}
    return INSTRUCTIONS[kind].unpack(content, arrays)
