"""Mistakes that people make with differential privacy, planted into the code or the records of this house, and the check that finds each.

A row runs through the very code that a partner runs (`isthmus-client canary`, `isthmus-audit verify`); nothing of it is imitated. Correct
code passes the same checks in twenty runs. With ``-s`` the table is printed.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.canary import conformance, one_run, synthetic
from client.model.methods import residual
from client.training import dp_sgd, local_round
from shared.config import RunConfig
from shared.errors import LedgerError, RolledBack, WrongKey
from shared.privacy.audit import verify
from shared.privacy.findings import Status, Verification
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.receipts import SignedReceipt, read_receipts, receipts_text
from shared.privacy.signing import SigningPair, event_message
from tests.client.training import planted_bugs as bugs
from tests.client.training import planted_in_steps as in_steps
from tests.shared.privacy.bookshop import STRANGER, by_force, write_anew

pytestmark = pytest.mark.slow

CONFIG = RunConfig()
TAU = 1e-3
RUNS = 20
TABLE: list[tuple[str, str, str]] = []

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


@pytest.fixture(scope="module", autouse=True)
def _table() -> Iterator[None]:
    yield
    print(f"\n{'planted':48} {'caught by':28} measured")
    for row in TABLE:
        print(f"{row[0]:48} {row[1]:28} {row[2]}")


# --- the code ---


def put(module: Any, name: str, value: object) -> Plant:
    return lambda patch: patch.setattr(module, name, value)


def around(module: Any, name: str, wrapper: Callable[[Any], Any]) -> Plant:
    return lambda patch: patch.setattr(module, name, wrapper(getattr(module, name)))


def optimizer(bug: type[dp_sgd.PublicOptimizer]) -> Plant:
    return put(dp_sgd, "PublicOptimizer", bug)


def _examples_in_the_reply(patch: Patch) -> None:
    train, update = bugs.with_number_of_examples()
    patch.setattr(local_round, "train", train)
    patch.setattr(local_round, "TransferUpdate", update)


def _serving_head(patch: Patch) -> None:
    run, start = bugs.starts_from_the_serving_head(local_round.run, local_round.initial_model)
    patch.setattr(local_round, "run", run)
    patch.setattr(local_round, "initial_model", start)


def _misread_layer(patch: Patch) -> None:
    def encoder(config: RunConfig, _: object) -> bugs.PositionTableWithoutBatch:
        return bugs.PositionTableWithoutBatch(config.model.dimension, config.training.history_decay)

    patch.setattr(residual, "make_encoder", encoder)


EMPTY, TWICE, ONE_USER, MESSAGE = "noise on an empty batch", "noise used twice", "one user more or less", "the rest of the message"
BATCHES, GRADIENTS, BOOKED = "Poisson batches", "per-user gradients", "what is booked, and when"
ELSE_READ = "the serving folder and earlier runs"

ROWS = (
    ("half noise", put(local_round, "SystemNoise", bugs.HalfNoise), EMPTY, "T1 noise"),
    ("noise of another law", put(local_round, "SystemNoise", bugs.HeavyTails), EMPTY, "T1 noise"),
    ("a skipped empty batch", optimizer(bugs.SkippedEmptyBatch), EMPTY, "T1 noise"),
    ("division by the private N", put(local_round, "train", bugs.divided_by_the_private_number), EMPTY, "T1 noise"),
    ("division by the size of the batch", optimizer(bugs.DividedByThisBatch), EMPTY, "T1 noise"),
    ("noise in the first step of a round only", optimizer(in_steps.NoiseInTheFirstStepOnly), EMPTY, "T1 noise"),
    ("noise divided by the root of the step", optimizer(in_steps.noise_of_a_round(in_steps.FainterNoise)), EMPTY, "T1 noise"),
    ("half noise after the first round", put(local_round, "_noise", in_steps.half_noise_after_the_first_round), EMPTY, "T1 noise"),
    ("noise reused after resume", put(local_round, "_noise", bugs.named_noise), TWICE, "T2 after a crash"),
    ("one seed for all rounds", put(local_round, "SystemNoise", bugs.OneSeedForAll), TWICE, "T2 rounds"),
    ("same seed at two partners", put(local_round, "_noise", bugs.noise_without_domain), TWICE, "T2 domains"),
    ("one draw of noise for all steps of a round", optimizer(in_steps.noise_of_a_round(in_steps.OneDraw)), TWICE, "T2 steps"),
    ("noise that comes back with another sign", put(local_round, "SystemNoise", in_steps.AntitheticNoise), TWICE, "T2 tensors"),
    ("the same noise in two tensors", put(local_round, "SystemNoise", bugs.OneNoiseForAllTensors), TWICE, "T2 tensors"),
    ("missing clip", optimizer(bugs.NoClip), ONE_USER, "T3 sensitivity"),
    ("clip per tensor", optimizer(bugs.ClipPerTensor), ONE_USER, "T3 sensitivity"),
    ("clip in the first step of a round only", optimizer(in_steps.ClipInTheFirstStepOnly), ONE_USER, "T3 sensitivity"),
    ("a gradient that is no number is kept", optimizer(bugs.NonFiniteKept), ONE_USER, "T3 sensitivity"),
    ("private popularity in the loss", put(local_round, "Examples", bugs.PopularNegatives), ONE_USER, "T3 sensitivity"),
    ("private idf in the loss", put(local_round, "Examples", bugs.PrivateIdf), ONE_USER, "T3 sensitivity"),
    ("users' draws from one stream", put(local_round, "Examples", bugs.OneStreamForAllUsers), ONE_USER, "T3 sensitivity"),
    ("number of examples in a reply", _examples_in_the_reply, MESSAGE, "T3 other bytes"),
    ("a step that is paid and not taken", put(local_round, "train", bugs.trained_on_one_step_less), BATCHES, "T4 steps"),
    ("fixed-size batches", put(local_round, "PoissonSampler", bugs.FixedSizeBatches), BATCHES, "T4 batch sizes"),
    ("small batches drawn again", put(local_round, "PoissonSampler", bugs.SkipsSmallBatches), BATCHES, "T4 batch sizes"),
    ("batches of friends", put(local_round, "PoissonSampler", bugs.RightSizesWrongUsers), BATCHES, "T4 who is in a batch"),
    ("the serving head as a starting point", _serving_head, ELSE_READ, "T5 serving folder"),
    ("a new run on the last run's state", around(local_round, "_train", bugs.goes_on_from_the_last_run), ELSE_READ, "T5 new run"),
    ("encoder trained without DP", put(local_round, "make_model", bugs.EncoderTrainedWithoutPrivacy), ELSE_READ, "T5 parameters"),
    ("something of the data kept in the state", around(local_round, "_arrays", bugs.keeps_what_it_saw), ELSE_READ, "T5 state"),
    ("other arrays sent than trained", around(local_round, "_shared_arrays", bugs.sends_something_else), ELSE_READ, "T5 reply"),
    ("a layer whose gradients are misread", _misread_layer, GRADIENTS, "T6 per-user gradients"),
    ("in-batch negatives", put(local_round, "make_model", bugs.InBatchNegatives), GRADIENTS, "T6 one user's gradient"),
    ("a debit after training instead of before", put(local_round, "Ledger", bugs.DebitAfterTraining), BOOKED, "T7 debit first"),
    ("a per-user event in the ledger", around(local_round, "run", bugs.per_user_events), BOOKED, "T7 events"),
)
"""A bug, how it is planted, the group of checks that is run, and the check that has to refute."""


@pytest.mark.parametrize(("bug", "plant", "test", "caught_by"), ROWS, ids=[row[0] for row in ROWS])
def test_a_bug_in_the_code_is_caught_by_its_check(
    bug: str, plant: Plant, test: str, caught_by: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    plant(monkeypatch)
    bench = conformance.Bench(config=synthetic.shrunk(CONFIG)[0], workspace=tmp_path)
    found = {check.name: check for check in dict(conformance.TESTS)[test](bench)}
    caught = found[caught_by]
    measured = f"p = {caught.p:.2g}" if caught.p is not None else f"{caught.value:.3g} > {caught.limit:.3g}"
    TABLE.append((bug, caught_by, measured))
    assert not caught.passed, caught


def test_the_same_seed_in_every_process_is_caught(tmp_path: Path, monkeypatch: Patch) -> None:
    plant = "from client.training import local_round; from tests.client.training.planted_bugs import OneSeedForAll as Bug; "
    monkeypatch.setattr(synthetic, "CHILD", plant + "local_round.SystemNoise = Bug; " + synthetic.CHILD)
    bench = conformance.Bench(config=synthetic.shrunk(CONFIG)[0], workspace=tmp_path)
    with conformance.other_processes(bench, 2) as elsewhere:
        (caught,) = conformance.noise_in_other_processes(bench, elsewhere())
    TABLE.append(("same seed in every process", caught.name, f"p = {caught.p:.2g}"))
    assert not caught.passed


def test_every_check_of_tier_1_is_the_one_that_catches_some_bug(tmp_path: Path) -> None:
    names = {check.name for check in conformance.check(CONFIG, tmp_path, processes=False)}
    assert names == {row[3] for row in ROWS}


@pytest.mark.parametrize(
    ("bug", "plant"),
    [
        ("half noise", put(local_round, "SystemNoise", bugs.HalfNoise)),
        ("noise reused", put(local_round, "SystemNoise", bugs.OneSeedForAll)),
        ("missing clip", optimizer(bugs.in_each_micro_batch(bugs.NoClip))),
        ("clip per tensor", optimizer(bugs.in_each_micro_batch(bugs.ClipPerTensor))),
        ("clip in the first step of a round only", optimizer(in_steps.ClipInTheFirstStepOnly)),
        ("noise in the first step of a round only", optimizer(in_steps.NoiseInTheFirstStepOnly)),
        ("one draw of noise for all steps of a round", optimizer(in_steps.noise_of_a_round(in_steps.OneDraw))),
    ],
)
def test_the_one_run_audit_catches_it_too(bug: str, plant: Plant, tmp_path: Path, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    found = one_run.audit(CONFIG, tmp_path)
    TABLE.append((bug, "one-run audit", f"epsilon {found.audited_epsilon:.3g} > {found.claimed_epsilon:.3g}"))
    assert found.refuted
    assert found.audited_epsilon > found.claimed_epsilon


@pytest.mark.parametrize("number", range(RUNS))
def test_nothing_fires_on_correct_code(number: int, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    found = conformance.check(CONFIG, tmp_path / "1", processes=number == 0)
    audited = one_run.audit(CONFIG, tmp_path)
    smallest = min(check.p for check in found if check.p is not None)
    TABLE.append((f"nothing, run {number + 1}", "", f"smallest p {smallest:.2g}; epsilon {audited.audited_epsilon:.3g}"))
    assert [check for check in found if not check.passed] == []
    assert audited.p_value > TAU
    assert audited.audited_epsilon < audited.claimed_epsilon


# --- the records ---


@dataclass(frozen=True, kw_only=True)
class Books:
    """The ledger of a partner that trained three rounds, its copy after the second, and the coordinator's last receipt."""

    folder: Path
    partner: synthetic.Partner

    @property
    def ledger(self) -> Path:
        return self.folder / "home" / "ledger.sqlite"

    @property
    def receipt(self) -> SignedReceipt:
        return read_receipts(self.folder / "receipts.json")[self.partner.domain]

    def verify(self, *, receipts: bool = True, ledger: Path | None = None) -> Verification:
        return verify(
            ledger or self.ledger, key=self.partner.signer.verify_key, receipts=self.folder / "receipts.json" if receipts else None
        )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Books:
    folder = tmp_path_factory.mktemp("books")
    config = synthetic.with_privacy(synthetic.shrunk(CONFIG)[0], noise="system", sampling_rate=0.1)
    partner = synthetic.partner(folder / "home", config, synthetic.people(24, config.model.dimension))
    partner.update(1)
    partner.update(2)
    shutil.copytree(folder / "home", folder / "backup")
    receipt = partner.update(3).receipt
    (folder / "receipts.json").write_text(receipts_text([receipt]))
    return Books(folder=folder, partner=partner)


@pytest.fixture
def books(kept: Books, tmp_path: Path) -> Books:
    shutil.copytree(kept.folder, tmp_path / "books")
    home = tmp_path / "books" / "home"
    return Books(folder=tmp_path / "books", partner=dataclasses.replace(kept.partner, home=home))


def caught(bug: str, found: Verification, status: Status, code: str) -> None:
    """Asserts the verdict, and that a finding of this kind leads to it."""
    TABLE.append((bug, f"verify: {code}", f"{found.status}: {found.findings[0].what[:60]}"))
    assert found.status is status
    assert code in {finding.code for finding in found.findings if finding.status is status}


def test_nothing_fires_on_a_ledger_that_nobody_touched(books: Books) -> None:
    found = books.verify()
    assert found.status is Status.INTACT
    assert found.complete_to == found.events == 8  # genesis, schedule, three intents and commits


def test_a_ledger_restored_from_a_backup_is_caught_by_the_receipt(books: Books) -> None:
    backup = books.folder / "backup" / "ledger.sqlite"
    caught("a ledger restored from a backup", books.verify(ledger=backup), Status.ROLLED_BACK, "receipt")
    restored = dataclasses.replace(books.partner, home=books.folder / "backup")
    with pytest.raises(RolledBack):  # and the client itself stops, when the coordinator shows the receipt
        restored.update(3, last_receipt=books.receipt.to_json())


@pytest.mark.parametrize(
    "statement",
    ["UPDATE events SET time_utc = '2020-01-01T00:00:00.000000Z' WHERE seq = 5", "UPDATE events SET payload = replace(payload, '1', '2')"],
    ids=["time", "payload"],
)
def test_an_edited_event_is_caught_by_the_chain(books: Books, statement: str) -> None:
    by_force(books.ledger, statement)
    caught("an edited event", books.verify(), Status.BROKEN, "chain")


def test_an_edited_event_with_a_new_chain_is_caught_by_the_signatures(books: Books) -> None:
    def cheaper(seq: int, said: dict[str, Any]) -> dict[str, Any]:
        return {**said, "code_version": "another"} if seq == 3 else said

    write_anew(books.ledger, cheaper, STRANGER)
    caught("an edited event, all hashes computed again", books.verify(), Status.BROKEN, "signature")


def test_a_truncated_ledger_is_caught_by_the_receipt_and_without_it_is_not_provably_whole(books: Books) -> None:
    by_force(books.ledger, "DELETE FROM events WHERE seq = 8")
    caught("a truncated ledger", books.verify(), Status.ROLLED_BACK, "receipt")
    alone = books.verify(receipts=False)
    assert alone.complete_to is None
    assert "completeness" in {finding.code for finding in alone.findings}


def test_a_ledger_signed_anew_with_another_key_is_caught_by_the_key(books: Books) -> None:
    def stolen(seq: int, said: dict[str, Any]) -> dict[str, Any]:
        return {**said, "verify_key": STRANGER.verify_key} if seq == 1 else said

    write_anew(books.ledger, stolen, STRANGER)
    caught("a ledger signed anew with another key", books.verify(), Status.BROKEN, "signature")
    with pytest.raises(WrongKey):  # also without the coordinator's receipts
        books.verify(receipts=False)


def test_another_key_without_a_key_event_is_caught_by_the_signatures(books: Books) -> None:
    signature = STRANGER.sign(event_message(read_events(books.ledger)[5].hash))
    by_force(books.ledger, ("UPDATE events SET signature = ? WHERE seq = 6", (signature,)))
    caught("another key without a key event", books.verify(), Status.BROKEN, "signature")


@pytest.mark.parametrize(
    ("bug", "kind", "field", "value"),
    [
        ("NaN sigma", "intent", "noise_multiplier", "nan"),
        ("subnormal sigma", "intent", "noise_multiplier", "0x0.0000000000001p-1022"),
        ("subnormal epsilon", "genesis", "ceiling_epsilon", "0x0.0000000000001p-1022"),
        ("NaN epsilon", "genesis", "ceiling_epsilon", "nan"),
    ],
)
def test_a_number_without_meaning_is_caught_though_its_owner_signed_it(books: Books, bug: str, kind: str, field: str, value: str) -> None:
    numbers = {1: "genesis", 3: "intent"}

    def edit(seq: int, said: dict[str, Any]) -> dict[str, Any]:
        if numbers.get(seq) != kind:
            return said
        return {**said, "mechanism": {**said["mechanism"], field: value}} if "mechanism" in said else {**said, field: value}

    write_anew(books.ledger, edit, books.partner.signer)
    caught(bug, books.verify(), Status.BROKEN, "chain")


@pytest.mark.parametrize("value", [float("nan"), 5e-324, -1.0, 0.0, float("inf")])
def test_no_number_without_meaning_is_ever_written(books: Books, value: float) -> None:
    sound = local_round.round_mechanism(books.partner.config)
    with pytest.raises(LedgerError):
        dataclasses.replace(sound, noise_multiplier=value)
    path = books.folder / "new.sqlite"
    with pytest.raises(LedgerError):
        Ledger.create(path, signer=SigningPair.generate(), domain="arts", ceiling_epsilon=value, delta=1e-6, set_by="a test")
    assert not path.exists()
