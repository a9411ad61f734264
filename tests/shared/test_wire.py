"""The wire: what was packed is read back unchanged, and nothing else is read at all."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared import wire
from shared.config import PROTOCOL, RunConfig
from shared.errors import REFUSAL_CODES
from shared.privacy.signing import SigningPair
from shared.transfer_layer import initial_arrays

CONFIG = RunConfig.from_mapping({"model": {"dimension": 8, "rank": 2, "descriptor_dimension": 4, "prototypes": 3}})
TEXT = 12
HASH = "0123456789abcdef" * 4
LAYER = initial_arrays(CONFIG.model, 0)


def receipt(**changes: Any) -> wire.Receipt:
    values: dict[str, Any] = {
        "domain": "books",
        "count_of_intents": 3,
        "head_hash": HASH,
        "payload_sha256": wire.payload_sha256("run-1", 2, HASH, LAYER),
        "mechanism": wire.canonical_json({"kind": "poisson_gaussian", "steps": 10}),
        "epsilon_spent": 1.5,
    }
    key = SigningPair(b"k" * 32)
    signed = wire.Receipt.signed(key, **values)
    return replace(signed, **changes)


def update(**changes: Any) -> wire.TransferUpdate:
    values: dict[str, Any] = {"run_id": "run-1", "round": 2, "config_hash": HASH, "arrays": LAYER, "receipt": receipt()}
    return wire.TransferUpdate(**(values | changes))


def moments() -> wire.MomentsReply:
    unit = np.eye(TEXT)[0]
    return wire.MomentsReply(count=5, total=5 * unit, outer=5 * np.outer(unit, unit), catalogue_hash=HASH)


def space(prototypes: bool) -> dict[str, np.ndarray]:
    arrays = {"mean": np.zeros(TEXT), "basis": np.ones((TEXT, 8)), "scale": np.ones(8)} | (
        {"prototypes": np.ones((3, 8))} if prototypes else {}
    )
    return {name: array.astype(np.float32) for name, array in arrays.items()}


INSTRUCTIONS: dict[str, wire.Record] = {
    wire.HELLO: wire.Hello(run_id="run-1", config_toml=CONFIG.to_toml()),
    wire.MOMENTS: wire.MomentsQuery(run_id="run-1"),
    wire.CENTROIDS: wire.CentroidsQuery(**space(False)),
    wire.DESCRIPTOR: wire.DescriptorQuery(**space(True)),
    wire.TRAIN: wire.RoundInstruction(run_id="run-1", round=2, config_hash=HASH, arrays=LAYER),
    wire.DELIVER: wire.Deliver(run_id="run-1", round=15, arrays=LAYER),
}
REPLIES: dict[str, Any] = {
    wire.HELLO: wire.HelloReply(domain="books"),
    wire.MOMENTS: moments(),
    wire.CENTROIDS: wire.CentroidsReply(centroids=np.full((3, 8), 0.25, dtype=np.float32)),
    wire.DESCRIPTOR: wire.DescriptorReply(descriptor=np.full(4, -0.5, dtype=np.float32)),
    wire.TRAIN: update(),
    wire.DELIVER: wire.Ok(),
}


def over_the_wire(content: RecordDict) -> RecordDict:
    """Through protobuf bytes and back, as Flower does it."""
    proto = recorddict_to_proto(content)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


def same(left: Any, right: Any) -> bool:
    """Equality of packed content, byte by byte."""
    a, b = (recorddict_to_proto(r.pack()).SerializeToString(deterministic=True) for r in (left, right))
    return type(left) is type(right) and bool(a == b)


@pytest.mark.parametrize("kind", wire.KINDS)
def test_what_was_packed_is_read_back_unchanged(kind: str) -> None:
    instruction = wire.read_instruction(kind, over_the_wire(INSTRUCTIONS[kind].pack()), CONFIG, TEXT)
    reply = wire.reply_schema(kind, CONFIG, TEXT).read(over_the_wire(REPLIES[kind].pack()))
    assert same(instruction, INSTRUCTIONS[kind])
    assert same(reply, REPLIES[kind])


@pytest.mark.parametrize("kind", wire.KINDS)
def test_unavailable_and_a_refusal_code_may_stand_in_for_any_reply(kind: str) -> None:
    schema = wire.reply_schema(kind, CONFIG, TEXT)
    assert schema.read(over_the_wire(wire.Unavailable().pack())) == wire.Unavailable()
    assert {schema.read(over_the_wire(wire.Refused(code).pack())) for code in REFUSAL_CODES} == {
        wire.Refused(code) for code in REFUSAL_CODES
    }


def test_only_what_is_about_the_catalogue_may_be_declined() -> None:
    takers = []
    for kind in wire.KINDS:
        try:
            takers.append((kind, wire.reply_schema(kind, CONFIG, TEXT).read(wire.Declined().pack())))
        except wire.Malformed:
            continue
    assert takers == [(kind, wire.Declined()) for kind in (wire.MOMENTS, wire.CENTROIDS, wire.DESCRIPTOR)]


def test_ok_is_no_answer_to_a_round() -> None:
    with pytest.raises(wire.Malformed):
        wire.reply_schema(wire.TRAIN, CONFIG, TEXT).read(wire.Ok().pack())


def test_a_code_that_is_not_on_the_list_is_refused() -> None:
    content = RecordDict({"status": ConfigRecord({"status": "refused", "code": "user-4711", "protocol": PROTOCOL})})
    with pytest.raises(wire.Malformed):
        wire.reply_schema(wire.TRAIN, CONFIG, TEXT).read(content)


def _extra_record(content: RecordDict) -> None:
    content["more"] = ConfigRecord({"a": 1})


def _extra_array(content: RecordDict) -> None:
    content["arrays"]["user.4711"] = Array(np.zeros(3, np.float32))  # type: ignore[index]


def _extra_metric(content: RecordDict) -> None:
    content["metrics"]["loss"] = 0.5  # type: ignore[index]


def _extra_field(content: RecordDict) -> None:
    content["fields"]["users"] = 12  # type: ignore[index]


def _missing_array(content: RecordDict) -> None:
    del content["arrays"]["transfer.reader"]  # type: ignore[attr-defined]


def _array(array: np.ndarray) -> Callable[[RecordDict], None]:
    def attack(content: RecordDict) -> None:
        content["arrays"]["transfer.reader"] = Array(array)  # type: ignore[index]

    return attack


def _value(record: str, key: str, value: Any) -> Callable[[RecordDict], None]:
    def attack(content: RecordDict) -> None:
        content[record][key] = value  # type: ignore[index]

    return attack


READER = LAYER["transfer.reader"]
ATTACKS: dict[str, Callable[[RecordDict], None]] = {
    "an extra record": _extra_record,
    "an extra array": _extra_array,
    "an extra metric": _extra_metric,
    "an extra field": _extra_field,
    "a missing array": _missing_array,
    "NaN": _array(np.full_like(READER, np.nan)),
    "infinity": _array(np.full_like(READER, np.inf)),
    "a value outside its range": _array(np.full_like(READER, 1e4)),
    "float64": _array(READER.astype(np.float64)),
    "a transposed shape": _array(READER.T.copy()),
    "a shape that would broadcast": _array(READER[:1, :1].copy()),
    "Fortran order": _array(np.asfortranarray(READER)),
    "big-endian bytes": _array(READER.astype(">f4")),
    "a weight of 1e12": _value("metrics", "weight", 1e12),
    "a negative weight": _value("metrics", "weight", -1.0),
    "a weight of NaN": _value("metrics", "weight", float("nan")),
    "a whole-number weight": _value("metrics", "weight", 1),
    "a list of weights": _value("metrics", "weight", [1.0]),
    "a round as text": _value("fields", "round", "2"),
    "a negative round": _value("fields", "round", -1),
    "a run id with a blank": _value("fields", "run_id", "run 1"),
    "a hash with text behind it": _value("receipt", "head_hash", HASH + " user-4711"),
    "an epsilon of NaN": _value("receipt", "epsilon_spent", float("nan")),
    "a negative epsilon": _value("receipt", "epsilon_spent", -0.5),
    "a mechanism with blanks to hide in": _value("receipt", "mechanism", '{"kind": "gaussian"}'),
    "a mechanism that is a list": _value("receipt", "mechanism", "[1]"),
    "a mechanism that is nested too deeply": _value("receipt", "mechanism", "[" * 1000 + "]" * 1000),
    "a domain with a path": _value("receipt", "domain", "../books"),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_update_is_refused_that_holds(attack: Callable[[RecordDict], None]) -> None:
    content = update().pack()
    attack(content)
    with pytest.raises(wire.Malformed):
        wire.reply_schema(wire.TRAIN, CONFIG, TEXT).read(over_the_wire(content))


def test_a_header_that_promises_a_huge_array_is_refused_before_memory_is_taken() -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\x00" * 16
    content = update().pack()
    content["arrays"]["transfer.reader"] = Array(dtype="float32", shape=(1099511627776,), stype="numpy.ndarray", data=data)  # type: ignore[index]
    with pytest.raises(wire.Malformed, match="as many bytes"):
        wire.TransferUpdate.unpack(content)


def test_a_pickled_array_is_refused_unopened() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    content = update().pack()
    content["arrays"]["transfer.reader"] = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=stream.getvalue())  # type: ignore[index]
    with pytest.raises(wire.Malformed, match="plain"):
        wire.TransferUpdate.unpack(content)


def test_bytes_behind_an_array_are_refused() -> None:
    content = update().pack()
    honest = Array(READER)
    content["arrays"]["transfer.reader"] = Array(
        dtype="float32", shape=READER.shape, stype="numpy.ndarray", data=honest.data + b"user-4711"
    )  # type: ignore[index]
    with pytest.raises(wire.Malformed, match="as many bytes"):
        wire.TransferUpdate.unpack(content)


def test_a_record_that_breaks_its_own_rules_is_not_packed() -> None:
    with pytest.raises(wire.Malformed):
        wire.HelloReply(domain="a user named bob@example.org").pack()
    with pytest.raises(wire.Malformed):
        update(arrays={"transfer.reader": np.full((2, 8), np.nan, np.float32)}).pack()


def test_no_message_of_malformed_repeats_a_foreign_name_or_value() -> None:
    content = update().pack()
    content["arrays"]["user.4711"] = Array(np.zeros(3, np.float32))  # type: ignore[index]
    with pytest.raises(wire.Malformed) as caught:
        wire.reply_schema(wire.TRAIN, CONFIG, TEXT).read(content)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [
        wire.payload_sha256("run-2", 2, HASH, LAYER),
        wire.payload_sha256("run-1", 3, HASH, LAYER),
        wire.payload_sha256("run-1", 2, HASH[::-1], LAYER),
        wire.payload_sha256("run-1", 2, HASH, LAYER | {"transfer.reader": READER.T}),  # the same bytes in another shape
        wire.payload_sha256("run-1", 2, HASH, {name + "x": array for name, array in LAYER.items()}),
        wire.payload_sha256("run-1", 2, HASH, {name: array.view(np.int32) for name, array in LAYER.items()}),
    ],
)
def test_the_digest_depends_on_run_round_configuration_name_shape_and_dtype(other: str) -> None:
    assert other != wire.payload_sha256("run-1", 2, HASH, LAYER)


def test_the_digest_does_not_depend_on_order_or_memory_layout() -> None:
    shuffled = {name: np.asfortranarray(LAYER[name]).astype(">f4") for name in reversed(LAYER)}
    assert wire.layer_sha256(shuffled) == wire.layer_sha256(LAYER)
    assert wire.payload_sha256("run-1", 2, HASH, shuffled) == update().digest()


def test_the_digest_is_that_of_the_written_definition() -> None:
    import hashlib

    def framed(*parts: bytes) -> bytes:
        return b"".join(struct.pack("<Q", len(part)) + part for part in parts)

    array = np.array([[1.0, 2.0]], dtype=np.float32)
    by_hand = framed(b"isthmus payload 1", b"r", b"7", b"c") + framed(b"w", b"float32", b"1,2", struct.pack("<2f", 1.0, 2.0))
    assert wire.payload_sha256("r", 7, "c", {"w": array}) == hashlib.sha256(by_hand).hexdigest()


def test_the_receipt_is_not_part_of_the_digest() -> None:
    assert update(receipt=receipt(epsilon_spent=9.0)).digest() == update().digest()


def test_the_size_of_an_update_is_the_same_whatever_was_learnt() -> None:
    def size(fill: float) -> int:
        arrays = {name: np.full_like(array, fill) for name, array in LAYER.items()}
        return len(recorddict_to_proto(update(arrays=arrays).pack()).SerializeToString())

    assert len({size(fill) for fill in (0.0, 1.0, -0.37, 999.0)}) == 1


FLOATS = st.floats(-100, 100, width=32)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), number=st.integers(0, 100_000), epsilon=st.floats(0, allow_nan=False))
def test_any_update_survives_the_wire(data: st.DataObject, number: int, epsilon: float) -> None:
    arrays = {name: data.draw(hnp.arrays(np.float32, array.shape, elements=FLOATS)) for name, array in LAYER.items()}
    sent = update(arrays=arrays, round=number, receipt=receipt(epsilon_spent=epsilon))
    got = wire.reply_schema(wire.TRAIN, CONFIG, TEXT).read(over_the_wire(sent.pack()))
    assert same(got, sent)
    assert isinstance(got, wire.TransferUpdate)
    assert got.digest() == sent.digest()


SCALARS = st.one_of(st.integers(-(2**62), 2**62), st.floats(), st.text(max_size=8), st.booleans(), st.binary(max_size=8))
KEYS = st.one_of(
    st.sampled_from(["fields", "arrays", "metrics", "receipt", "status", "weight", "domain", "round", "code", "transfer.reader"]),
    st.text(max_size=6),
)
JUNK_ARRAYS = st.one_of(
    hnp.arrays(st.sampled_from([np.float32, np.float64, np.int64]), hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)).map(Array),
    st.builds(
        lambda dtype, shape, stype, body: Array(dtype=dtype, shape=tuple(shape), stype=stype, data=body),
        st.sampled_from(["float32", "object", ""]),
        st.lists(st.integers(-1, 4), max_size=3),
        st.sampled_from(["numpy.ndarray", "pickle"]),
        st.one_of(st.binary(max_size=64), st.binary(max_size=64).map(lambda tail: b"\x93NUMPY\x01\x00\x20\x00" + tail)),
    ),
)
RECORDS = st.one_of(
    st.dictionaries(KEYS, SCALARS, max_size=4).map(ConfigRecord),
    st.dictionaries(KEYS, st.one_of(st.floats(), st.integers(-5, 5)), max_size=3).map(MetricRecord),
    st.dictionaries(KEYS, JUNK_ARRAYS, max_size=3).map(ArrayRecord),
)


def _read_all(content: RecordDict) -> None:
    for kind in wire.KINDS:
        for read in (lambda c, k=kind: wire.reply_schema(k, CONFIG, TEXT).read(c), lambda c, k=kind: wire.read_instruction(k, c)):
            try:
                read(content)
            except wire.Malformed:
                continue


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(KEYS, RECORDS, max_size=4))
def test_junk_raises_malformed_and_nothing_else(content: dict[str, Any]) -> None:
    _read_all(RecordDict(content))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(wire.KINDS), st.booleans(), st.data())
def test_a_valid_message_with_one_part_replaced_raises_malformed_and_nothing_else(kind: str, reply: bool, data: st.DataObject) -> None:
    content = (REPLIES if reply else INSTRUCTIONS)[kind].pack()
    name = data.draw(st.sampled_from(sorted(content)))
    record = content[name]
    key = data.draw(st.sampled_from(sorted(record)))
    if isinstance(record, ArrayRecord):
        record[key] = data.draw(JUNK_ARRAYS)
    elif isinstance(record, ConfigRecord):
        record[key] = data.draw(SCALARS)
    else:
        record[key] = data.draw(st.floats())
    _read_all(content)


def test_an_unknown_kind_of_message_is_refused() -> None:
    with pytest.raises(wire.Malformed):
        wire.read_instruction("evaluate", RecordDict())
    with pytest.raises(wire.Malformed):
        wire.reply_schema("evaluate", CONFIG)


def test_moments_larger_than_their_count_allows_are_refused() -> None:
    with pytest.raises(wire.Malformed):
        replace(moments(), count=4)  # five unit vectors cannot be the sum of four
