"""A record of the wire: strict reading, canonical writing. The kinds are in `shared.wire`, the rules for fields in `shared.wire_rules`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from flwr.app import ConfigRecord, RecordDict

from shared.wire_arrays import ArraySpec, Malformed, check_names, pack_arrays, read_arrays
from shared.wire_rules import Rule

FIELDS_KEY, ARRAYS_KEY = "fields", "arrays"


class Record:
    """One kind of message content. Sub-classes are frozen dataclasses; ``RULES`` and ``ARRAYS`` say what each field must be.

    Fields in ``RULES`` travel in a `ConfigRecord`, those in ``ARRAYS`` in an `ArrayRecord`; ``OPEN_ARRAYS`` names a field that
    holds a dictionary of float32 arrays whose names follow from the run configuration.
    """

    RULES: ClassVar[Mapping[str, Rule]] = {}
    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {}
    OPEN_ARRAYS: ClassVar[str] = ""

    def pack(self) -> RecordDict:
        """The canonical content of a message.

        Raises:
            Malformed: when the record itself breaks its rules, so that nothing malformed is ever sent.
        """
        content = self._pack()
        type(self).unpack(content)
        return content

    def _pack(self) -> RecordDict:
        content = RecordDict()
        if self.RULES:
            content[FIELDS_KEY] = config_record({name: getattr(self, name) for name in self.RULES})
        if self.ARRAYS:
            content[ARRAYS_KEY] = pack_arrays({name: getattr(self, name) for name in self.ARRAYS})
        if self.OPEN_ARRAYS:
            content[ARRAYS_KEY] = pack_arrays(getattr(self, self.OPEN_ARRAYS))
        return content

    @classmethod
    def unpack(cls, content: RecordDict, arrays: Mapping[str, ArraySpec] | None = None) -> Self:
        """Reads a message's content.

        Args:
            content: as received.
            arrays: what the arrays must be exactly; None checks what holds for every run.
        Raises:
            Malformed: and nothing else, whatever ``content`` holds.
        """
        check_names("records", content.keys(), cls._recordcheck_names())
        values = read_fields(content, FIELDS_KEY, cls.RULES) if cls.RULES else {}
        if cls.ARRAYS or cls.OPEN_ARRAYS:
            found = read_arrays(content[ARRAYS_KEY], arrays if arrays is not None else cls.ARRAYS or None)
            values |= {cls.OPEN_ARRAYS: found} if cls.OPEN_ARRAYS else found
        return cls(**values, **cls._unpack_rest(content))

    @classmethod
    def _recordcheck_names(cls) -> set[str]:
        return ({FIELDS_KEY} if cls.RULES else set()) | ({ARRAYS_KEY} if cls.ARRAYS or cls.OPEN_ARRAYS else set())

    @classmethod
    def _unpack_rest(cls, content: RecordDict) -> dict[str, Any]:
        return {}


def config_record(values: Mapping[str, Any]) -> ConfigRecord:
    try:
        return ConfigRecord(dict(values))
    except TypeError:
        raise Malformed("a field is of a type that cannot travel") from None


def read_fields(content: RecordDict, name: str, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Reads one `ConfigRecord` whose keys are exactly ``rules`` and whose values keep them."""
    record = content[name]
    if not isinstance(record, ConfigRecord):
        raise Malformed(f"'{name}' is not a record of settings")
    check_names(f"'{name}'", record.keys(), rules)
    for key, rule in rules.items():
        if not rule(record[key]):
            raise Malformed(f"'{name}.{key}' is of the wrong type or outside its range")
    return dict(record)
