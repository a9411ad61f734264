"""The messages of the service that recommends. The page is ``proto/recommender.proto``.

They are described here instead of being generated: a field is a line, in the words of the page.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from shared.errors import UsageError

PACKAGE = "isthmus.recommender.v1"
SERVICE = f"{PACKAGE}.Recommender"
FILE = "recommender.proto"
MOST_MESSAGE_BYTES = 2 * 1024 * 1024

METHODS = {
    "Recommend": ("RecommendRequest", "RecommendReply"),
    "Similar": ("SimilarRequest", "SimilarReply"),
    "Explain": ("ExplainRequest", "ExplainReply"),
    "Observe": ("ObserveRequest", "ObserveReply"),
    "AcceptPassport": ("AcceptPassportRequest", "AcceptPassportReply"),
}
STREAMED = "AcceptPassport"
"""The one method whose request comes in parts."""

FIELDS = {
    "RecommendRequest": (
        "optional string user = 1;",
        "optional uint32 k = 2;",
        "optional string declared = 3;",
        "repeated float interest = 4;",
        "string space_version = 5;",
        "repeated string blocked = 6;",
        "bool with_seen = 7;",
        "double diversity = 8;",
        "bool explain = 9;",
        "bool even_unknown = 10;",
    ),
    "RecommendReply": (
        "repeated Recommendation items = 1;",
        "string source = 2;",
        "string model_version = 3;",
        "double uncertainty = 4;",
    ),
    "Recommendation": ("string item = 1;", "double score = 2;", "string reason = 3;"),
    "SimilarRequest": ("string item = 1;", "optional uint32 k = 2;"),
    "SimilarReply": ("repeated Like items = 1;", "string model_version = 2;"),
    "ExplainRequest": ("string user = 1;", "string item = 2;"),
    "ExplainReply": (
        "string words = 1;",
        "string source = 2;",
        "double score = 3;",
        "double from_interest = 4;",
        "double from_popularity = 5;",
        "repeated Share prototypes = 6;",
        "repeated Like like = 7;",
        "double uncertainty = 8;",
        "string model_version = 9;",
    ),
    "Share": ("string name = 1;", "double share = 2;"),
    "Like": ("string item = 1;", "string title = 2;", "double cosine = 3;"),
    "ObserveRequest": ("string user = 1;", "string item = 2;", "Kind kind = 3;", "optional int64 at = 4;"),
    "ObserveReply": ("bool is_new = 1;",),
    "AcceptPassportRequest": ("bytes chunk = 1;", "optional string user = 2;", "optional string link_id = 3;"),
    "AcceptPassportReply": ("string source = 1;", "uint64 passports = 2;", "int64 expires = 3;"),
}
KINDS = ("KIND_UNSPECIFIED", "INTERACTION", "LIKED", "DISMISSED")
"""Values of the enumeration ``Kind``, in order."""

_FIELD = re.compile(r"(?:(optional|repeated) )?(\w+) (\w+) = (\d+);")


def describe() -> descriptor_pb2.FileDescriptorProto:
    """The messages and the service as the protobuf library has them described."""
    file = descriptor_pb2.FileDescriptorProto(name=FILE, package=PACKAGE, syntax="proto3")
    kinds = file.enum_type.add(name="Kind")
    for number, name in enumerate(KINDS):
        kinds.value.add(name=name, number=number)
    for name, lines in FIELDS.items():
        message = file.message_type.add(name=name)
        for line in lines:
            _describe_field(message, line)
    service = file.service.add(name="Recommender")
    for name, (request, reply) in METHODS.items():
        types = {"input_type": f".{PACKAGE}.{request}", "output_type": f".{PACKAGE}.{reply}"}
        service.method.add(name=name, client_streaming=name == STREAMED, **types)
    return file


def _describe_field(message: Any, line: str) -> None:
    found = _FIELD.fullmatch(line)
    if found is None:
        raise ValueError(f"not a field: {line}")
    rule, kind, name, number = found.groups()
    field = message.field.add(name=name, number=int(number))
    types = descriptor_pb2.FieldDescriptorProto
    field.label = types.LABEL_REPEATED if rule == "repeated" else types.LABEL_OPTIONAL
    if kind in FIELDS or kind == "Kind":
        field.type = types.TYPE_ENUM if kind == "Kind" else types.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"
    else:
        field.type = types.Type.Value(f"TYPE_{kind.upper()}")
    if rule == "optional":  # proto3 knows whether such a field was set by a group of its own
        field.proto3_optional = True
        field.oneof_index = len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{name}")


def pool(*others: Any) -> descriptor_pool.DescriptorPool:
    """Everything that a server describes of itself, in a pool of its own: the process-wide one belongs to whoever generates code.

    Args:
        others: file descriptors of services that are served beside this one.
    """
    made = descriptor_pool.DescriptorPool()
    made.Add(describe())
    for other in others:
        copy = descriptor_pb2.FileDescriptorProto()
        other.CopyToProto(copy)
        made.Add(copy)
    return made


_POOL = pool()


def message_class(name: str) -> Any:
    """The class of a message, by its name on the page."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


CLASSES: dict[str, Any] = {name: message_class(name) for name in FIELDS}


def parse(name: str, encoded: bytes) -> Message:
    """A message from its bytes.

    Raises:
        UsageError: they are no such message.
    """
    try:
        return CLASSES[name].FromString(encoded)
    except DecodeError:
        raise UsageError(f"the request is no {name}", do="Compare client/proto/recommender.proto.") from None
