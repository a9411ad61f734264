"""Bad input to a whole scenario: a clear error of the right kind that names file, row and field and no value, and nothing lost."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.errors import (
    ConfigError,
    DataError,
    InvalidInteraction,
    InvalidItem,
    IsthmusError,
    LedgerLocked,
    RunFolderError,
    StorageError,
    UnreachableBudget,
    UsageError,
)
from shared.privacy.ledger import Ledger, read_events
from simulations.scenario import run_scenario
from tests.journeys.tiny_world import DOMAINS, layer, metrics, tiny, write_domain

pytestmark = pytest.mark.journey

FOLDER = {"data__kind": "folder", "data__set": "set", "privacy__rounds": 1}
SECRET = "zebrafish"  # in every value; no message may hold it


def run(tmp_path: Path, **how: Any) -> Path:
    overrides = how.pop("overrides", {})
    return run_scenario(how.pop("name", "demo"), out=tmp_path / "runs", overrides=tiny(**overrides), **how)


def shop(tmp_path: Path, items: int = 20, users: int = 6) -> dict[str, Path]:
    """Three small domains, everybody linked; every value holds the secret."""
    found = {}
    for shift, domain in enumerate(DOMAINS):
        catalogue = [(f"{SECRET}-{i}", f"{SECRET} {domain} of kind {i % 5}") for i in range(items)]
        histories = {f"{SECRET}-u{u}": [(u * 3 + shift + k) % items for k in range(4)] for u in range(users)}
        found[domain] = write_domain(tmp_path / "data" / "set" / domain, catalogue, histories)
    return found


# --- small worlds that still run ------------------------------------------------------------------------------------------------------


def test_nobody_is_linked_and_the_run_says_so(tmp_path: Path) -> None:
    folder = run(tmp_path, overrides={"synthetic__users_linked": 0, "privacy__rounds": 1})
    found = metrics(folder)
    assert found["directions"] == []
    assert sorted(found["warm"]) == list(DOMAINS)
    assert "no direction with held-out users" in (folder / "report.html").read_text()
    assert max(abs(array).max() for array in layer(folder).values()) > 0  # it trained on own histories


def test_ten_items_one_user_and_users_with_one_interaction_run_to_the_end(tmp_path: Path) -> None:
    base = tmp_path / "data" / "set"
    titles = [(f"i{n}", f"title of kind {n % 5}") for n in range(40)]
    people = {f"u{u:02d}": [(3 * u + k) % 40 for k in range(5)] for u in range(40)}
    write_domain(base / "books", titles[:10], {user: [item % 10 for item in taken] for user, taken in people.items()})
    write_domain(base / "films", titles, {"u00": [1, 2, 3, 4]})
    write_domain(base / "music", titles, {user: taken[:1] for user, taken in people.items()})
    folder = run(tmp_path, data=tmp_path / "data", overrides={**FOLDER, "privacy__rounds": 2})
    found = metrics(folder)
    assert {d["source"] for d in found["directions"]} == set() or all(d["n_users"] > 0 for d in found["directions"])
    for direction in found["directions"]:
        for figures in direction["methods"].values():
            assert all(0 <= figures[name]["mean"] <= 1 for name in ("hr@10", "ndcg@10", "recall@10", "mrr", "coverage@10"))
    assert [line["replies"] for line in map(json.loads, (folder / "rounds.jsonl").read_text().splitlines())] == [list(DOMAINS)] * 2
    print({(d["source"], d["target"]): d["n_users"] for d in found["directions"]}, {n: w["n_users"] for n, w in found["warm"].items()})


def test_without_privacy_it_runs_and_is_stamped(tmp_path: Path) -> None:
    folder = run(tmp_path, epsilon=math.inf, overrides={"privacy__rounds": 1})
    found = metrics(folder)
    assert (found["private"], found["epsilon_target"]) == (False, None)
    assert {spent["epsilon"] for spent in found["privacy"].values()} == {None}
    assert "NOT PRIVATE" in (folder / "report.html").read_text()
    for domain in DOMAINS:
        events = read_events(folder / "ledgers" / f"{domain}.sqlite")
        assert events[0].payload["private"] is False
        assert {event.payload["mechanism"]["kind"] for event in events if event.kind == "intent"} == {"none"}


# --- errors ---------------------------------------------------------------------------------------------------------------------------


def _cut(path: Path, at: int) -> None:
    path.write_bytes(path.read_bytes()[:at])


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _append(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line + "\n")


FAULTS: dict[str, tuple[Callable[[dict[str, Path]], object], type[IsthmusError], tuple[str, ...]]] = {
    "a missing domain file": (lambda d: (d["films"] / "items.csv").unlink(), DataError, ("films", "items.csv")),
    "an empty file": (lambda d: _cut(d["films"] / "interactions.csv", 0), DataError, ("interactions.csv", "empty")),
    "a file without rows": (
        lambda d: (d["films"] / "interactions.csv").write_text("user_id,item_id,timestamp\n"),
        DataError,
        ("interactions.csv",),
    ),
    "a misspelt column": (
        lambda d: _replace(d["films"] / "interactions.csv", "timestamp", "timestmap"),
        DataError,
        ("interactions.csv", "timestamp", "timestmap"),
    ),
    "a wrong time": (
        lambda d: _append(d["films"] / "interactions.csv", f"{SECRET}-u0,{SECRET}-1,{SECRET}"),
        InvalidInteraction,
        ("interactions.csv", "row 25", "timestamp"),
    ),
    "an item not in the catalogue": (
        lambda d: _append(d["films"] / "interactions.csv", f"{SECRET}-u0,{SECRET}-unheard,1600000000"),
        InvalidInteraction,
        ("interactions.csv", "row 25", "item_id"),
    ),
    "two items with one id": (
        lambda d: _append(d["films"] / "items.csv", f"{SECRET}-3,another {SECRET},"),
        InvalidItem,
        ("items.csv", "row 21", "item_id"),
    ),
    "no text at all": (
        lambda d: (d["films"] / "items.csv").write_text("item_id,title,categories\n" + "".join(f"{SECRET}-{i},,\n" for i in range(20))),
        DataError,
        ("items.csv",),
    ),
}


@pytest.mark.parametrize(("spoil", "kind", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_a_bad_file_is_named_by_row_and_field_and_never_quoted(
    tmp_path: Path, spoil: Callable[[dict[str, Path]], object], kind: type[IsthmusError], words: tuple[str, ...]
) -> None:
    domains = shop(tmp_path)
    spoil(domains)
    with pytest.raises(kind) as caught:
        run(tmp_path, data=tmp_path / "data", overrides=FOLDER, ledgers=tmp_path / "ledgers")
    text = str(caught.value)
    print(f"exit {caught.value.exit_code}: {text}")
    assert caught.value.exit_code == 4
    assert [word for word in words if word not in text] == []
    assert SECRET not in text
    for path in (tmp_path / "ledgers").glob("*.sqlite"):
        assert [event.kind for event in read_events(path)] == ["genesis"]  # nothing was reserved or spent


def test_a_missing_data_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no folder .*set") as caught:
        run(tmp_path, data=tmp_path / "nowhere", overrides=FOLDER)
    assert caught.value.exit_code == 4
    monkeypatch.delenv("ISTHMUS_DATA", raising=False)
    with pytest.raises(UsageError, match="no data folder was named"):
        run(tmp_path, overrides=FOLDER)
    assert not (tmp_path / "runs").exists()


def test_settings_that_cannot_be_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.round'.*\n.*privacy\.rounds"):
        run(tmp_path, overrides={"privacy__round": 3})
    with pytest.raises(ConfigError, match="outside"):
        run(tmp_path, overrides={"synthetic__items": 3})
    with pytest.raises(UsageError, match="Did you mean 'demo'"):
        run(tmp_path, name="demoo")
    assert not (tmp_path / "runs").exists()


def test_an_epsilon_no_noise_reaches_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    everybody = {"privacy__sampling_rate": 1.0, "privacy__steps_per_round": 100}
    with pytest.raises(UnreachableBudget, match="no noise reaches") as caught:
        run(tmp_path, epsilon=0.001, overrides={**everybody, "privacy__rounds": 100})
    print(caught.value)
    assert caught.value.exit_code == 11
    with pytest.raises(ConfigError, match="more than 10,000,000 steps"):
        run(tmp_path, overrides={**everybody, "privacy__rounds": 100_000})
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_that_exists_and_a_finished_one_are_left_alone(tmp_path: Path) -> None:
    shop(tmp_path)
    how = {"data": tmp_path / "data", "overrides": FOLDER}
    folder = run(tmp_path, **how)
    before = {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}
    with pytest.raises(RunFolderError, match="finished already") as caught:
        run(tmp_path, resume=folder)
    assert caught.value.exit_code == 5
    with pytest.raises(RunFolderError, match="not a run folder"):
        run(tmp_path, resume=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))} == before


# --- ledgers and disks ----------------------------------------------------------------------------------------------------------------

HOLD = """
import pathlib, sys
from client.keys import Keys
from shared.privacy.ledger import Ledger
path = pathlib.Path(sys.argv[1])
with Ledger.open(path, signer=Keys.load_or_create(path.parent / "keys" / path.stem)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_ledger_that_another_process_holds_stops_the_run_and_stays_as_it_was(tmp_path: Path, repository: Path) -> None:
    shop(tmp_path)
    ledgers = tmp_path / "ledgers"
    how = {"data": tmp_path / "data", "overrides": {**FOLDER, "ceiling__epsilon": 30.0}, "ledgers": ledgers}
    run(tmp_path, **how)
    before = [event.hash for event in read_events(ledgers / "films.sqlite")]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(ledgers / "films.sqlite")],
        cwd=repository,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LedgerLocked, match="films") as caught:
            run(tmp_path, seed=1, **how)
        assert caught.value.exit_code == 8
        assert holder.stdin is not None
        holder.stdin.close()
    assert [event.hash for event in read_events(ledgers / "films.sqlite")] == before
    assert [event.kind for event in read_events(ledgers / "books.sqlite")].count("schedule") == 1  # the others were not asked either


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """What a full disk is to a program: a write that comes back short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 20_000])  # the run folder, a ledger
def test_no_space_at_the_start_is_a_storage_error(tmp_path: Path, size: int) -> None:
    shop(tmp_path)
    with no_file_longer_than(size), pytest.raises(StorageError) as caught:
        run(tmp_path, data=tmp_path / "data", overrides=FOLDER)
    print(caught.value)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("size", "rank", "what"), [(2_000, 4, "the ledger"), (40_000, 64, "the training state"), (40_000, 4, "round-0002")]
)
def test_no_space_in_the_middle_is_a_storage_error_and_the_run_goes_on_later(tmp_path: Path, size: int, rank: int, what: str) -> None:
    """The disk fills up after round 1: the ledgers hold what was spent, and once there is room the run is resumed."""
    shop(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("train", 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    more = {"privacy__rounds": 2, "privacy__reserve_rounds": 3, "model__dimension": 64, "model__rank": rank}
    try:
        with pytest.raises(StorageError, match=what) as caught:
            run(tmp_path, data=tmp_path / "data", overrides={**FOLDER, **more}, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    print(caught.value)
    assert caught.value.exit_code == 6
    [folder] = (tmp_path / "runs").iterdir()
    spent = {}
    for domain in DOMAINS:
        kinds = [event.kind for event in read_events(folder / "ledgers" / f"{domain}.sqlite")]
        assert kinds[:4] == ["genesis", "schedule", "intent", "commit"]
        spent[domain] = kinds.count("intent")
    run(tmp_path, resume=folder)
    for domain in DOMAINS:
        with Ledger.open(folder / "ledgers" / f"{domain}.sqlite", read_only=True) as ledger:
            assert ledger.count_of_intents >= spent[domain]
            assert ledger.committed(next(ledger.intents()).payload["run_id"], 2) is not None
    assert metrics(folder)["privacy"]["films"]["events"] >= 2
