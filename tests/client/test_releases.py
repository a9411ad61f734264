"""DP releases: paid before anything is read, the same bytes when asked again, and the price in one accountant with training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy import stats

from client import release_sums
from client.data.histories import Histories
from client.passport_exchange import own_keys
from client.preparation import prepare
from client.releases import COUNT, HIT_RATE, METRIC, POPULARITY, Ask, price, release
from client.serving_state import ServingFolder
from client.settings import ClientSettings
from client.state import StateFolder
from client.training.noise import SeededNoise, SystemNoise
from shared.errors import BudgetExhausted, DataError, LedgerError, RolledBack, StateError, UsageError, WrongKey
from shared.privacy.accountant import epsilon_pld
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.manifest import read_manifest
from shared.privacy.mechanism import Mechanism
from tests.client.partner_world import CONFIG, ITEMS, World, people

POPULAR = Ask(purpose=POPULARITY, noise_multiplier=30.0, max_items=4)
USERS = Ask(purpose=COUNT, noise_multiplier=30.0)
RATE = Ask(purpose=METRIC, noise_multiplier=30.0, public_users=50)
EVERY = pytest.mark.parametrize("ask", [POPULAR, USERS, RATE], ids=lambda ask: ask.purpose)


def spoil(settings: ClientSettings) -> None:
    """Whoever reads the interactions now, fails. Interest spaces are public, and stay."""
    for folder in settings.at_home("prepared").iterdir():
        if folder.name != "spaces":
            shutil.rmtree(folder)
    settings.path(settings.data.interactions).write_text("not a table at all\n")


def releases_in(settings: ClientSettings) -> list[str]:
    return [event.payload["release_id"] for event in read_events(settings.ledger_path) if event.kind == "release"]


def vector(document: dict[str, dict[str, object]]) -> np.ndarray:
    values = document["values"]
    found = values.get("counts") or {"only": values.get("users", values.get("hits"))}
    return np.array(list(found.values()), dtype=np.float64)  # type: ignore[attr-defined]


@EVERY
def test_the_debit_comes_before_any_data_and_a_refusal_reads_nothing(done: World, ask: Ask) -> None:
    settings = done["books"]
    spoil(settings)
    with pytest.raises(BudgetExhausted, match="release"):
        release(settings, dataclasses.replace(ask, noise_multiplier=0.1))
    assert releases_in(settings) == []
    assert read_events(settings.ledger_path)[-1].kind == "refused"
    with pytest.raises(DataError):
        release(settings, ask)
    assert len(releases_in(settings)) == 1  # paid: the files were opened after


@EVERY
def test_asked_again_it_is_the_same_bytes_and_costs_nothing(done: World, tmp_path: Path, ask: Ask) -> None:
    settings = done["books"]
    first = release(settings, ask, out=tmp_path / "first.json")
    spent = settings.ledger_path.read_bytes()
    spoil(settings)
    again = release(settings, ask, out=tmp_path / "second.json")
    assert (first.new, again.new) == (True, False)
    assert first.data == again.data == (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    assert len(releases_in(settings)) == 1
    assert settings.ledger_path.read_bytes() == spent


def test_a_release_says_what_it_is_and_what_it_cost(done: World, tmp_path: Path) -> None:
    settings = done["books"]
    said = release(settings, POPULAR, out=tmp_path / "out.json").document
    event = next(event for event in read_events(settings.ledger_path) if event.kind == "release")
    assert said["ledger_event"] == event.hash
    assert said["mechanism"]["sensitivity_l2"] == 2.0
    assert said["mechanism"]["noise_standard_deviation"] == 60.0
    assert Mechanism.from_record(said["mechanism"]["record"]) == Mechanism.from_record(event.payload["mechanism"])
    assert said["epsilon_of_this_release"] == pytest.approx(gaussian_epsilon(30.0, said["delta"]), rel=1e-3)
    assert list(said["values"]["counts"]) == [f"b{n:02d}" for n in range(ITEMS)]
    assert all(type(value) is int for value in said["values"]["counts"].values())
    assert said["private"] is True
    with Ledger.open(settings.ledger_path, read_only=True) as ledger:
        assert said["epsilon_of_the_ledger_after_it"] == ledger.epsilon_spent()
        assert ledger.adaptive
    rate = release(settings, RATE).document["values"]
    assert rate[HIT_RATE] == rate["hits"] / 50


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8, solved by bisection."""
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        left = stats.norm.cdf(0.5 / sigma - middle * sigma) - math.exp(middle) * stats.norm.cdf(-0.5 / sigma - middle * sigma)
        low, high = (middle, high) if left > delta else (low, middle)
    return high


def test_the_manifest_has_a_line_with_the_event_each_time_it_leaves(done: World, tmp_path: Path) -> None:
    settings = done["books"]
    for name in ("first", "second"):
        released = release(settings, POPULAR, out=tmp_path / name)
    release(settings, USERS)  # made, not handed over
    lines = [line for line in read_manifest(settings.at_home("egress.jsonl")).lines if line.kind == "release"]
    assert len(lines) == 2
    for line in lines:
        assert (line.event, line.schema, line.bytes) == ("left", "Release", len(released.data))
        assert line.sha256 == hashlib.sha256(released.data).hexdigest()
        assert line.ledger_event == released.document["ledger_event"]


def test_a_dry_run_shows_the_price_and_reads_and_books_nothing(done: World) -> None:
    settings = done["books"]
    before = read_events(settings.ledger_path)
    with Ledger.open(settings.ledger_path, read_only=True) as ledger:
        spent = ledger.epsilon_reserved()
    rows = settings.path(settings.data.interactions).read_text()
    spoil(settings)
    shown = {ask.purpose: price(settings, ask) for ask in (POPULAR, USERS, RATE)}
    assert all(found.fits and not found.made for found in shown.values())
    assert {found.before for found in shown.values()} == {spent}
    assert not price(settings, dataclasses.replace(POPULAR, noise_multiplier=0.1)).fits
    assert read_events(settings.ledger_path) == before
    settings.path(settings.data.interactions).write_text(rows)
    said = release(settings, POPULAR).document
    assert said["release_id"] == shown[POPULARITY].release_id
    assert said["epsilon_of_the_ledger_after_it"] == pytest.approx(shown[POPULARITY].after)
    assert said["epsilon_of_this_release"] == shown[POPULARITY].alone
    assert price(settings, POPULAR).made


def test_training_and_releases_add_up_in_one_accountant(done: World) -> None:
    settings = done["books"]
    for ask in (POPULAR, USERS, RATE, dataclasses.replace(USERS, release_id="users in spring", noise_multiplier=12.0)):
        release(settings, ask)
    privacy = CONFIG.privacy
    step = PoissonSampledDpEvent(privacy.sampling_rate, GaussianDpEvent(privacy.noise_multiplier))
    with Ledger.open(settings.ledger_path, read_only=True) as ledger:
        rdp = RdpAccountant(orders=[ledger.filter_order])
        pld = PLDAccountant()
        for accountant in (rdp, pld):
            accountant.compose(SelfComposedDpEvent(step, privacy.rounds * privacy.steps_per_round))
            for sigma in (30.0, 30.0, 30.0, 12.0):
                accountant.compose(GaussianDpEvent(sigma))
        assert ledger.epsilon_spent() == pytest.approx(rdp.get_epsilon(ledger.delta), rel=1e-9)
        assert epsilon_pld(ledger.spent_events(), ledger.delta, interval=1e-4) == pytest.approx(pld.get_epsilon(ledger.delta), rel=1e-3)
        assert ledger.epsilon_spent() > epsilon_pld(ledger.spent_events(), ledger.delta)


def test_another_release_under_the_same_id_is_refused(done: World) -> None:
    settings = done["books"]
    release(settings, dataclasses.replace(USERS, release_id="spring"))
    for other in (dataclasses.replace(USERS, noise_multiplier=31.0), POPULAR):
        with pytest.raises(LedgerError, match="another release was made under this id"):
            release(settings, dataclasses.replace(other, release_id="spring"))
    assert releases_in(settings) == ["spring"]


def test_lost_bytes_are_not_drawn_again_for_the_same_money(done: World) -> None:
    settings = done["books"]
    release(settings, USERS)
    shutil.rmtree(settings.at_home("released"))
    with pytest.raises(StateError, match="bytes are not here"):
        release(settings, USERS)
    assert len(releases_in(settings)) == 1
    assert release(settings, dataclasses.replace(USERS, release_id="another")).new
    assert len(releases_in(settings)) == 2


def test_a_ledger_older_than_a_kept_release_is_noticed(done: World) -> None:
    settings = done["books"]
    shutil.copytree(settings.ledger_path.parent, settings.base / "copy")
    release(settings, USERS)
    for path in settings.ledger_path.parent.glob("ledger*"):
        path.unlink()
    for path in (settings.base / "copy").glob("ledger*"):
        shutil.copy2(path, settings.ledger_path.parent)
    with pytest.raises(RolledBack, match="not in the ledger"):
        release(settings, USERS)
    assert releases_in(settings) == []


def test_another_file_is_not_overwritten_and_nothing_is_paid(done: World, tmp_path: Path) -> None:
    settings = done["books"]
    (tmp_path / "theirs").write_text("something else")
    with pytest.raises(UsageError, match="is not this release"):
        release(settings, USERS, out=tmp_path / "theirs")
    assert releases_in(settings) == []


def test_two_ids_of_the_same_question_have_noise_of_their_own(done: World) -> None:
    settings = done["books"]
    first, second = (vector(release(settings, dataclasses.replace(POPULAR, release_id=name)).document) for name in ("a", "b"))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    "wrong",
    [{"noise_multiplier": 0.0}, {"noise_multiplier": math.nan}, {"noise_multiplier": math.inf}, {"max_items": 0}, {"public_users": 0}],
)
def test_numbers_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(POPULAR, **wrong)  # type: ignore[arg-type]


def test_a_metric_needs_a_model_that_was_trained_with_privacy(world: World, done: World) -> None:
    with pytest.raises(StateError, match="nothing was trained"):
        release(world["books"], RATE)
    settings = done["books"]
    folder = StateFolder(settings.at_home("state"))
    state = folder.current()
    assert state is not None
    folder.replace(dataclasses.replace(state, meta={**state.meta, "private": 0}))
    with pytest.raises(StateError, match="without privacy"):
        release(settings, RATE)
    assert releases_in(settings) == []


def test_no_serving_state_is_in_reach(done: World) -> None:
    """Neither by import nor by result: replacing the whole serving folder leaves a release with the same noise the same."""
    code = "import sys, client.releases; sys.exit(any(n in sys.modules for n in ('client.serving_state', 'client.delivery')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(release_sums.__file__).parents[1]).returncode == 0
    found = []
    for domain_home in ("kept", "replaced"):
        copy = done.root.parent / domain_home
        shutil.copytree(done.root, copy)
        settings = ClientSettings.read(copy / "books/partner.toml")
        if domain_home == "replaced":
            serving = ServingFolder(settings.at_home("serving"))
            state = serving.current()
            assert state is not None
            serving.replace(dataclasses.replace(state, arrays={name: np.full_like(a, 3.0) for name, a in state.arrays.items()}))
        found.append([vector(release(settings, ask, noise=SeededNoise(ask.purpose)).document).tolist() for ask in (POPULAR, USERS, RATE)])
    assert found[0] == found[1]


# --- neighbouring data sets through the whole release, with the same noise on both sides ---


def released(world: World, folder: Path, ask: Ask, without: str | None) -> np.ndarray:
    shutil.copytree(world.root, folder)
    settings = ClientSettings.read(folder / "books/partner.toml")
    for name in ("interactions.csv", "links.csv"):
        path = settings.base / name
        path.write_text("".join(row for row in path.read_text().splitlines(keepends=True) if not row.startswith(f"{without},")))
    said = release(settings, ask, noise=SeededNoise("the same")).document
    assert said["stamp"] == "NOT PRIVATE"
    return vector(said)


def moves(world: World, tmp_path: Path, ask: Ask, names: list[str]) -> list[float]:
    whole = released(world, tmp_path / f"{ask.purpose}-whole", ask, None)
    return [float(np.linalg.norm(released(world, tmp_path / f"{ask.purpose}-{name}", ask, name) - whole)) for name in names]


@pytest.mark.journey
@EVERY
def test_one_user_less_moves_what_is_released_by_no_more_than_the_sensitivity(done: World, tmp_path: Path, ask: Ask) -> None:
    bound = math.sqrt(ask.max_items) if ask.purpose == POPULARITY else 1.0
    trained = prepare(done["books"], CONFIG)
    assert len(trained.training) < len(people("books"))  # held-out people count for nothing, so some of these move nothing
    found = moves(done, tmp_path, ask, ["p000", "p001", "p002", "books-000", "books-001", "books-002"])
    assert max(found) <= bound + 1e-9
    if ask.purpose != METRIC:
        assert max(found) == pytest.approx(bound)


def unbounded(histories: object, n_items: int, max_items: int) -> np.ndarray:
    return np.bincount(histories.items, minlength=n_items).astype(np.float64)  # type: ignore[attr-defined]


@pytest.mark.journey
def test_a_release_without_bounded_contributions_is_caught(done: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_sums, "popularity", unbounded)
    ask = dataclasses.replace(POPULAR, max_items=2)
    assert max(moves(done, tmp_path, ask, ["books-000", "books-001"])) > math.sqrt(2) * 1.2


def with_the_serving_head(histories: Histories, coordinates: np.ndarray, encoder: object, *, length: int, cut: int) -> np.ndarray:
    """Ranks by exact popularity, as the prior of the serving head does."""
    counts = np.bincount(histories.items, minlength=len(coordinates)).astype(np.float64)
    hits = 0
    for user in range(len(histories)):
        own = histories.items[histories.offsets[user] : histories.offsets[user + 1]]
        scores = counts.copy()
        scores[own[:-1]] = -1.0
        hits += int(np.count_nonzero(scores > scores[own[-1]]) < cut)
    return np.array([float(hits)])


@pytest.mark.journey
def test_a_metric_that_reads_the_serving_head_is_caught(done: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_sums, "hits", with_the_serving_head)
    assert max(moves(done, tmp_path, RATE, ["books-000", "books-001", "books-002", "books-003"])) > 1.2


# --- the noise that was promised is the noise that is there ---


def residuals(settings: ClientSettings, draws: int) -> np.ndarray:
    """What releases differ from the exact histogram by, in standard deviations."""
    exact = release_sums.popularity(prepare(settings, CONFIG).training, ITEMS, POPULAR.max_items)
    found = []
    for number in range(draws):
        said = release(settings, dataclasses.replace(POPULAR, release_id=f"draw {number}")).document
        found.append((vector(said) - exact) / said["mechanism"]["noise_standard_deviation"])
    return np.concatenate(found)


def p_value(residual: np.ndarray) -> float:
    """Two-sided chi-square on the variance; rounding to whole numbers adds 1/12 to a variance of 3,600."""
    tail = stats.chi2.cdf((residual**2).sum(), len(residual))
    return float(2 * min(tail, 1 - tail))


def test_the_noise_has_the_variance_that_the_ledger_priced(done: World) -> None:
    found = residuals(done["books"], 10)
    assert p_value(found) > 1e-6
    assert stats.kstest(found, "norm").pvalue > 1e-6


def half(real: Callable[[SystemNoise, int], np.ndarray]) -> Callable[[SystemNoise, int], np.ndarray]:
    return lambda self, count: real(self, count) / 2


def none(real: Callable[[SystemNoise, int], np.ndarray]) -> Callable[[SystemNoise, int], np.ndarray]:
    return lambda self, count: np.zeros(count)


@pytest.mark.parametrize("bug", [half, none])
def test_an_exact_count_and_half_the_noise_are_caught(done: World, monkeypatch: pytest.MonkeyPatch, bug: Callable[..., object]) -> None:
    monkeypatch.setattr(SystemNoise, "normal", bug(SystemNoise.normal))
    assert p_value(residuals(done["books"], 6)) < 1e-6


def test_a_ledger_that_needs_another_key_books_nothing(done: World) -> None:
    settings = done["books"]
    (settings.at_home("keys") / "partner.keys").unlink()
    before = read_events(settings.ledger_path)
    with pytest.raises(WrongKey):
        release(settings, USERS)
    assert read_events(settings.ledger_path) == before


def test_the_kept_bytes_are_plain_json_for_whoever_gets_them(done: World, tmp_path: Path) -> None:
    release(done["books"], USERS, out=tmp_path / "users.json")
    said = json.loads((tmp_path / "users.json").read_text())
    assert said["format"] == "isthmus-release-1"
    assert set(said["values"]) == {"users"}


def test_a_release_from_a_ledger_that_promises_nothing_is_stamped(done: World) -> None:
    settings = done["books"]
    for path in settings.ledger_path.parent.glob("ledger*"):
        path.unlink()
    keys = own_keys(settings)
    said = {"domain": "books", "ceiling_epsilon": math.inf, "delta": settings.ceiling.delta, "set_by": "nobody"}
    Ledger.create(settings.ledger_path, signer=keys, private=False, **said).close()
    document = release(settings, USERS).document
    assert (document["private"], document["stamp"], document["ceiling_epsilon"]) == (False, "NOT PRIVATE", "inf")


def test_a_metric_whose_interest_space_is_gone_is_not_paid_for(done: World) -> None:
    settings = done["books"]
    shutil.rmtree(settings.at_home("prepared"))  # as a simulation does when it ends
    before = settings.ledger_path.read_bytes()
    for ask in (release, price):
        with pytest.raises(StateError, match="interest space"):
            ask(settings, RATE)
    assert releases_in(settings) == []
    assert settings.ledger_path.read_bytes() == before
    assert release(settings, USERS).new  # others need no space
