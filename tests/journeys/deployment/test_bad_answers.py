"""Partners that answer badly or not at all, and runs that must not be: each ends as it should, and no debit is lost or stands twice.

One federation of real processes for all of it. Its bundle is this checkout's, with `bad_answers_app` around the app.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from client.allowed import AllowList
from server import report
from server.contract_key import CoordinatorKey
from server.receipts import ReceiptsFile
from server.runs import find
from shared import bundle as bundles
from shared import wire
from shared.bundle import Bundle
from shared.config import RunConfig
from tests.journeys.coordinated import Coordinated, federation, tiny_run
from tests.journeys.deployment.what_must_hold import lost_attempts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

BOOKS, FILMS, MUSIC = DOMAINS = ("books", "films", "music")
APP = Path(__file__).with_name("bad_answers_app.py")
HELLO = wire.HELLO


def checkout(folder: Path, repository: Path, *, project: str = "", comment: str = "") -> Path:
    """A copy of this checkout whose app answers badly on demand.

    Args:
        project: another name than ours.
        comment: further words in a module, which change nothing but the digest.
    """
    for room in ("client", "server", "shared"):
        shutil.copytree(repository / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    text = (repository / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(text.replace('name = "isthmus"', f'name = "{project}"', 1) if project else text)
    shutil.copy(APP, folder / "client" / "bad_answers.py")
    with (folder / "client" / "app.py").open("a") as module:
        module.write(f"\nfrom .bad_answers import Switch  # noqa: E402\n\napp = Switch(app)\n{comment}")
    return folder


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended: what `isthmus-server status` shows of it, and its report."""

    status: Mapping[str, Any]
    report: Mapping[str, Any]
    said: str

    @property
    def left_out(self) -> dict[str, str | None]:
        return {one["domain"]: one["left_out"] for one in self.report["domains"] if one["left_out"]}

    @property
    def replies(self) -> list[list[str]]:
        return [one["replies"] for one in self.report["rounds"]]


class Bad:
    """The federation, and what its partners do wrong."""

    def __init__(self, ours: Coordinated, folder: Path, repository: Path) -> None:
        self.ours, self._folder, self._repository = ours, folder, repository

    def faults(self, domain: str, **asked: Sequence[str]) -> None:
        """What a partner does with its next messages; ``train_1`` is round 1."""
        names = {name.replace("_", "/"): list(faults) for name, faults in asked.items()}
        self._at(domain, "faults.log").unlink(missing_ok=True)
        self._at(domain, "faults.json").write_text(json.dumps({HELLO if name == "hello" else name: one for name, one in names.items()}))

    def done(self, domain: str) -> list[str]:
        """What it did: a line each."""
        return self._at(domain, "faults.log").read_text().splitlines()

    def run(self, config: RunConfig, *more: str, code: int = 0, meanwhile: Callable[[Path], None] | None = None) -> Ended:
        """Submits a run and waits until it ended."""
        if meanwhile is not None:
            self.submit(config, *more, "--detach")
            meanwhile(find(self.ours.home, "last"))
            self.ours.wait(lambda: self.now()["state"] not in ("waiting", "running"), "the run did not end", 1800)
            assert (self.now()["state"] == "finished") == (code == 0)
            return self.ended("")
        return self.ended(self.submit(config, *more, code=code))

    def submit(self, config: RunConfig, *more: str, code: int = 0) -> str:
        """`isthmus-server run`; what it said."""
        toml = self._folder / "run.toml"
        toml.write_text(config.to_toml())
        more = more if "--bundle" in more else (*more, "--bundle", self.ours.bundle.digest)
        return self.ours.command("run", self.ours.home.root, toml, "--wait-for", "all", *more, code=code, timeout=1800).stderr

    def resume(self, code: int = 0) -> Ended:
        return self.ended(self.ours.command("resume", self.ours.home.root, "last", code=code, timeout=1800).stderr)

    def now(self) -> Mapping[str, Any]:
        from server.runs import status

        return status(find(self.ours.home, "last")).to_json()

    def ended(self, said: str) -> Ended:
        shown = self.ours.status()["runs"][-1]
        found = report.build(self.ours.home, find(self.ours.home, "last"))
        assert shown["left_out"] == {one["domain"]: one["left_out"] for one in found["domains"] if one["left_out"]}
        return Ended(shown, found, said)

    def holds(self, rounds: int | Mapping[str, int], reserve: int = 0) -> dict[str, int]:
        """What must hold after every run; lost attempts of each domain in this run."""
        run_id = json.loads((find(self.ours.home, "last") / "run_id.json").read_text())["run_id"]
        each = {domain: rounds if isinstance(rounds, int) else rounds[domain] for domain in DOMAINS}
        return lost_attempts(self.ours, rounds=each, reserve=reserve, run_id=run_id)

    def bundle(self, name: str, **how: str) -> tuple[Path, Bundle]:
        made = bundles.build(checkout(self._folder / name, self._repository, **how))
        return bundles.save(made, self._folder), made

    def allow(self, made: Bundle, *domains: str) -> None:
        for domain in domains:
            AllowList(self._at(domain, "allowed.json")).decide(made.digest, allowed=True, by="A. Officer", code_digest=made.code_digest())

    def agreed(self, domain: str, before: str, after: str) -> None:
        """Changes a line of a partner's settings; they are read at each message."""
        path = self.ours.toml(domain)
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))

    def hand_over_receipt(self, of: str, to: str) -> None:
        self._at(to, "receipt_of_another.json").write_text(ReceiptsFile(self.ours.home.receipts).load()[of].to_json())

    def refused_bundles(self, domain: str) -> list[str]:
        path = self._at(domain, "refused.jsonl")
        return [json.loads(line)["digest"] for line in path.read_text().splitlines()] if path.is_file() else []

    def _at(self, domain: str, name: str) -> Path:
        return self.ours.partners[domain].at_home(name)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Bad]:
    folder = tmp_path_factory.mktemp("bad")
    project = checkout(folder / "checkout", repository)
    with federation(folder / "world", project, domains=DOMAINS) as ours:
        yield Bad(ours, folder, repository)


def short(rounds: int = 1, reserve: int = 0, *, timeout_s: float = 240.0) -> RunConfig:
    config = tiny_run(rounds=rounds, reserve_rounds=reserve, epsilon=0.8)
    return dataclasses.replace(config, aggregation=dataclasses.replace(config.aggregation, round_timeout_s=timeout_s))


@contextlib.contextmanager
def greeting_in_another_ones_name(bad: Bad) -> Iterator[dict[str, str]]:
    for domain in (BOOKS, MUSIC):  # before and behind the other in every order
        bad.faults(domain, hello=[f"named {FILMS}"])
    yield {BOOKS: "domain", MUSIC: "domain"}


@contextlib.contextmanager
def narrower_agreements(bad: Bad) -> Iterator[dict[str, str]]:
    """Tighter than the cards that the coordinator holds."""
    for domain in (BOOKS, FILMS):
        bad.agreed(domain, "max_sampling_rate = 0.5", "max_sampling_rate = 0.2")
    try:
        yield {BOOKS: "refused-range", FILMS: "refused-range"}
    finally:
        bad.agreed(FILMS, "max_sampling_rate = 0.2", "max_sampling_rate = 0.5")  # and books stays with it


@contextlib.contextmanager
def another_coordinators_key(bad: Bad) -> Iterator[dict[str, str]]:
    keys = bad.ours.home.coordinator_keys
    kept = keys.rename(keys.with_name("kept"))
    CoordinatorKey.create(keys)
    try:
        yield dict.fromkeys(DOMAINS, "refused-signature")
    finally:
        kept.replace(keys)


def test_a_run_that_is_refused_at_its_greeting_goes_on_once_what_was_wrong_is_mended(bad: Bad) -> None:
    file, made = bad.bundle("same_name", comment="# the same name and version\n")
    assert (made.name, made.version) == (bad.ours.bundle.name, bad.ours.bundle.version)
    ended = bad.run(short(), "--bundle", str(file), code=16)
    assert (ended.status["state"], ended.left_out) == ("failed", dict.fromkeys(DOMAINS, "refused-bundle"))
    assert [bad.refused_bundles(domain)[-1] for domain in DOMAINS] == [made.digest] * 3
    bad.allow(made, *DOMAINS)

    for wrong in (another_coordinators_key, greeting_in_another_ones_name, narrower_agreements):
        with wrong(bad) as codes:
            ended = bad.resume(code=16)
            assert (ended.status["state"], ended.left_out) == ("failed", codes)
            assert f"hello: {len(DOMAINS) - len(codes)} of at least 2 clients can go on" in ended.said
            assert bad.holds(0) == dict.fromkeys(DOMAINS, 0)

    ended = bad.resume()
    assert (ended.status["state"], ended.left_out) == ("finished", {BOOKS: "refused-range"})
    assert ended.replies == [[FILMS, MUSIC]]
    assert bad.holds({BOOKS: 0, FILMS: 1, MUSIC: 1}) == dict.fromkeys(DOMAINS, 0)
    bad.agreed(BOOKS, "max_sampling_rate = 0.2", "max_sampling_rate = 0.5")


def test_a_foreign_bundle_runs_nowhere_and_a_run_outside_every_agreement_does_not_begin(bad: Bad) -> None:
    file, foreign = bad.bundle("foreign", project="foreign")
    ended = bad.run(short(), "--bundle", str(file), code=16)
    assert (ended.status["state"], ended.left_out) == ("failed", dict.fromkeys(DOMAINS, "refused-bundle"))
    assert [bad.refused_bundles(domain)[-1] for domain in DOMAINS] == [foreign.digest] * 3

    before = len(list(bad.ours.home.runs.iterdir()))
    wide = dataclasses.replace(short(), privacy=dataclasses.replace(short().privacy, sampling_rate=0.9))
    assert "privacy.sampling_rate is above the agreed 0.5" in bad.submit(wide, code=3)
    assert len(list(bad.ours.home.runs.iterdir())) == before


def test_a_run_goes_on_without_a_partner_whose_reserve_is_used_up(bad: Bad) -> None:
    bad.faults(BOOKS, train_1=["lost", "lost"])
    bad.faults(FILMS, train_1=["nan"])  # so that the round is asked for again; this one answers from its disk
    ended = bad.run(short(2, reserve=0))

    assert ended.status["state"] == "finished"
    assert ended.left_out == {BOOKS: "refused-ceiling"}
    assert ended.status["refused"] == {BOOKS: {"unavailable": 2, "refused-ceiling": 1}, FILMS: {"malformed": 1}}
    assert ended.replies == [[FILMS, MUSIC]] * 2
    assert bad.holds({BOOKS: 0, FILMS: 2, MUSIC: 2}, reserve=2) == {BOOKS: 2, FILMS: 0, MUSIC: 0}


def test_a_run_whose_partners_used_up_their_reserve_ends_in_the_state_budget(bad: Bad) -> None:
    for domain in (BOOKS, FILMS):
        bad.faults(domain, train_1=["lost"])
    ended = bad.run(short(2, reserve=0), code=16)
    for once_more in (False, True):
        if once_more:
            ended = bad.resume(code=16)
        assert (ended.status["state"], ended.status["round"]) == ("budget", 1)
        assert "ended in the state budget; 1 of 2 rounds are done and kept" in ended.said
        assert ended.left_out == {BOOKS: "refused-ceiling", FILMS: "refused-ceiling"}
        assert bad.holds({BOOKS: 1, FILMS: 1, MUSIC: 2}, reserve=1) == {BOOKS: 1, FILMS: 1, MUSIC: 0}
    assert [one["code"] for one in ended.report["incidents"]].count("BudgetUsedUp") == 2


def test_each_bad_reply_is_dropped_by_its_code_and_the_run_reaches_its_last_round(bad: Bad) -> None:
    kinds = ["twice", "nan", "shape", "again", "receipt", "receipt for these arrays", "receipt in the own name"]
    bad.faults(BOOKS, **{f"train_{number}": [kind] for number, kind in enumerate(kinds, 1)})

    def receipts(folder: Path) -> None:
        bad.ours.wait(lambda: bad.now()["round"] >= 1, "round 1 did not end")
        bad.hand_over_receipt(FILMS, BOOKS)

    ended = bad.run(short(7), meanwhile=receipts)

    assert bad.done(BOOKS) == [f"train/{number} {kind}" for number, kind in enumerate(kinds, 1)]
    assert ended.status["state"] == "finished"
    codes = {"malformed": 2, "stale": 1, "digest": 1, "domain": 1, "signature": 1}
    assert ended.replies[1:] == [[FILMS, MUSIC]] * 6
    if BOOKS not in ended.replies[0]:
        codes["unavailable"] = 1  # of two answers to one message the first that arrives is taken, and no other
    assert ended.status["refused"] == {BOOKS: codes}
    assert next(one["refused"] for one in ended.report["domains"] if one["domain"] == BOOKS) == codes
    assert {one["attempts"] for one in ended.report["rounds"]} == {1}
    assert bad.holds(7) == dict.fromkeys(DOMAINS, 0)
    assert "refused replies of books: 1 x digest, 1 x domain, 2 x malformed" in bad.ours.command("status", bad.ours.home.root).stdout


def test_a_partner_that_never_answers_or_too_late_is_waited_for_once_a_round_and_comes_back(bad: Bad) -> None:
    bad.faults(BOOKS, train_1=["never"], train_2=["late"])
    ended = bad.run(short(4, timeout_s=90.0))

    assert bad.done(BOOKS) == ["train/1 never", "train/2 late"]
    assert ended.status["state"] == "finished"
    assert ended.replies[:2] == [[FILMS, MUSIC]] * 2
    assert ended.replies[3] == list(DOMAINS)
    assert set(ended.status["refused"]) == {BOOKS}
    assert set(ended.status["refused"][BOOKS]) <= {"no-reply", "error"}
    assert all(85 < one["seconds"] < 150 for one in ended.report["rounds"][:2])
    commits = 1 + [one["replies"] for one in ended.report["rounds"]][2:].count(list(DOMAINS))
    assert bad.holds({BOOKS: commits, FILMS: 4, MUSIC: 4}, reserve=1)[FILMS] == 0
