"""T3 and T7: two data sets that differ by one user, side by side through the real training code, under the same noise."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.common.serde import recorddict_to_proto

from client.training import local_round
from shared.privacy import conformance as statistics
from shared.privacy.conformance import Check
from shared.privacy.ledger import read_events
from shared.privacy.ledger_schema import Event
from shared.privacy.mechanism import Mechanism
from shared.wire import TransferUpdate

from . import synthetic

if TYPE_CHECKING:
    from .conformance import Bench

_CROWDS = (24, 4)
"""Many users, and so few that each of them matters to whatever is divided by their number or drawn from among them."""


def one_user_more_or_less(bench: Bench) -> list[Check]:
    """T3: how far one user moves the joint release of any step of a round, in the ways of `synthetic.LOUD`."""
    mechanism = local_round.round_mechanism(bench.coupled)
    start = bench.partner("t3-start", bench.coupled, bench.people(0))
    start.update(1)  # on nobody, so that every layer has left its initial zeros
    shares: dict[str, float] = {}
    for kind in synthetic.LOUD:
        for users in _CROWDS:
            releases = []
            for name, crowd in _neighbours(bench, kind, users):
                home = bench.workspace / f"t3-{kind}-{users}-{name}"
                data = crowd.data("arts", bench.config.model.descriptor_dimension)
                releases.append(start.copied(home, data=data).sums(2, held=True))
            shares[f"{kind} of {users}"] = _share(releases[0], releases[1], mechanism)
    worst = max(shares, key=lambda name: math.inf if math.isnan(shares[name]) else shares[name])
    what = f"how far one user moves a step's joint vector of {mechanism.dimension} numbers, as a share of C + g sqrt(p); most: {worst}"
    return [Check.of_size("T3 sensitivity", what, shares[worst], 1 + statistics.ROUNDING)]


def _share(with_user: np.ndarray, without_user: np.ndarray, mechanism: Mechanism) -> float:
    """The largest share among the steps of a round, (steps, p) each; not a number where one is none."""
    if with_user.shape != without_user.shape:
        return math.inf  # how many steps there were tells who was there
    return float(np.max([statistics.sensitivity(one, other, mechanism) for one, other in zip(with_user, without_user, strict=True)]))


def rest_of_the_message(bench: Bench) -> list[Check]:
    """T3: every byte of a reply besides the arrays, whoever and however many are in the data."""
    seen = []
    for partner in _side_by_side(bench, "t3-message"):
        reply = partner.update(1)
        seen.append((rest_of_message(reply), {name: (array.dtype, array.shape) for name, array in reply.arrays.items()}))
    faults = sum(other != seen[0] for other in seen[1:])
    return [Check.of_fact("T3 other bytes", "replies that differ besides the numbers in their arrays, digests and signature", faults)]


def rest_of_message(update: TransferUpdate) -> bytes:
    """All bytes of a reply but the numbers in its arrays, and what is computed from them: digest, head of the ledger, signature."""
    nothing = {name: np.zeros_like(array) for name, array in update.arrays.items()}
    computed = {"payload_sha256", "head_hash", "signature"} & {field.name for field in dataclasses.fields(update.receipt)}
    zeros: dict[str, Any] = {name: "0" * len(getattr(update.receipt, name)) for name in computed}
    receipt = dataclasses.replace(update.receipt, **zeros)
    blank = dataclasses.replace(update, arrays=nothing, receipt=receipt)
    return bytes(recorddict_to_proto(blank.pack()).SerializeToString(deterministic=True))


class _PowerCut(Exception):
    """The machine goes down when the first user's items are read."""


def what_is_booked(bench: Bench) -> list[Check]:
    """T7: when the debit reaches the disk, and whether the ledger's events depend on who is in the data."""
    partner = bench.partner("t7-cut", bench.coupled, bench.people(24))
    plain, booked = partner.data, []

    def cut(_: np.ndarray) -> None:
        booked.append(_intents(partner))
        raise _PowerCut

    partner.data = synthetic.watched(plain, cut)
    with contextlib.suppress(_PowerCut):
        partner.update(1)
    late = int(booked != [1]) + int(_intents(partner) != 1)
    partner.data = synthetic.watched(plain, lambda _: booked.append(_intents(partner)))
    partner.update(1)
    late += int(set(booked[1:]) != {2}) + int(_intents(partner) != 2)
    ledgers = []
    for one in _side_by_side(bench, "t7"):
        one.update(1)
        ledgers.append([_public(event) for event in read_events(one.ledger_path)])
    told = sum(ledger != ledgers[0] for ledger in ledgers[1:])
    return [
        Check.of_fact("T7 debit first", "rounds whose debit was not on disk when the first user's data were read", late),
        Check.of_fact("T7 events", "ledgers of neighbouring data that differ besides times, hashes, digests and signatures", told),
    ]


def _intents(partner: synthetic.Partner) -> int:
    return sum(event.kind == "intent" for event in read_events(partner.ledger_path))


def _public(event: Event) -> tuple[int, str, dict[str, Any]]:
    return event.seq, event.kind, {name: value for name, value in event.payload.items() if name != "payload_sha256"}


def _neighbours(bench: Bench, kind: str, users: int) -> Iterator[tuple[str, synthetic.People]]:
    """A crowd with one loud user in its middle, so that users come after, and the same crowd without them."""
    who = min(9, users - 2)
    crowd = bench.people(users).with_loud(who, kind)
    yield "with", crowd
    yield "without", crowd.without(who)


def _side_by_side(bench: Bench, name: str) -> Iterator[synthetic.Partner]:
    """Partners with many users, one less, few, and nobody."""
    crowds = [*_neighbours(bench, "length", 24), ("few", bench.people(4)), ("nobody", bench.people(0))]
    for who, crowd in crowds:
        data = crowd.data("arts", bench.config.model.descriptor_dimension)
        yield synthetic.Partner(home=bench.workspace / f"{name}-{who}", config=bench.coupled, data=data)
