"""A partner's settings: what is misspelt is named, what is out of range refused, and a run outside what was agreed opens nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from client import queries
from client.settings import AgreedRanges, CeilingSettings, ClientSettings, ConsentSettings, DataSettings
from client.settings_file import written
from shared import wire
from shared.config import PROTOCOL, PrivacyConfig, RunConfig
from shared.errors import ConfigError, Refusal
from shared.privacy.ledger import Ledger
from tests.client.partner_world import CONFIG, RUN, World


def changed(**privacy: Any) -> RunConfig:
    return dataclasses.replace(CONFIG, privacy=dataclasses.replace(CONFIG.privacy, **privacy))


def test_settings_written_and_read_back_are_equal(tmp_path: Path) -> None:
    settings = ClientSettings(domain="books", data=DataSettings(links="links.csv"), ceiling=CeilingSettings(epsilon=3.5))
    settings.write(tmp_path / "partner.toml")

    assert ClientSettings.read(tmp_path / "partner.toml") == settings


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[data]\nuser_colum = 'id'", "Did you mean 'data.user_column'?"),
        ("[celing]\nepsilon = 1.0", "Did you mean 'ceiling'?"),
        ("base = '/'", "unknown key 'base'"),
        ("[ceiling]\nepsilon = -1.0", "'ceiling.epsilon' is outside 0.001"),
        ("[ceiling]\nepsilon = nan", "'ceiling.epsilon' is outside"),
        ("[ceiling]\nepsilon = '8'", "'ceiling.epsilon' is a str, not a float"),
        ("[agreed]\nmax_sampling_rate = 1.5", "'agreed.max_sampling_rate' is outside 1e-06 to 1"),
        ("[data]\ntime = 'days'", "'data.time' is none of unix_s, order"),
        ("[agreed]\ntest_builds = 1", "'agreed.test_builds' is a int, not a bool"),
        ("data = 3", "'data' is a table of keys"),
        ("[data", "is not TOML"),
    ],
)
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "partner.toml"
    path.write_text("domain = 'books'\n" + text + "\n")

    with pytest.raises(ConfigError) as refused:
        ClientSettings.read(path)
    assert says in str(refused.value)


@pytest.mark.parametrize("name", ["", "Books", "-books", "books/..", "b\u00fccher", "b" * 65, "own history"])
def test_a_name_that_could_not_stand_in_a_message_or_a_path_is_no_domain(name: str) -> None:
    with pytest.raises(ConfigError, match="'domain'"):
        ClientSettings(domain=name)


def test_a_settings_file_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")

    for name in ("absent.toml", "binary.toml"):
        with pytest.raises(ConfigError, match=name):
            ClientSettings.read(tmp_path / name)


REFUSED = {
    "a test build": (changed(noise="seeded"), "range", "test build"),
    "no privacy": (changed(epsilon=float("inf")), "range", "test build"),
    "another delta": (changed(delta=1e-5), "range", "privacy.delta"),
    "a large sampling rate": (changed(sampling_rate=0.6), "range", "privacy.sampling_rate"),
    "a large clip norm": (changed(clip_norm=11.0), "range", "privacy.clip_norm"),
    "too many steps": (changed(rounds=20_000), "range", "steps"),
    "more than the ceiling": (changed(noise_multiplier=0.3, rounds=40), "ceiling", "does not fit below the ceiling"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_outside_what_was_agreed_is_refused_by_code_before_any_data_are_opened(world: World, case: str) -> None:
    config, code, why = REFUSED[case]
    settings = world["books"]
    for name in ("items.csv", "interactions.csv", "links.csv"):
        (world.root / "books" / name).unlink()  # whoever opens data now fails otherwise than with a refusal

    with pytest.raises(Refusal) as refused:
        queries.hello(settings, wire.Hello(run_id="run-2", config_toml=config.to_toml()))

    assert refused.value.code == code
    assert why in refused.value.what
    with Ledger.open(settings.ledger_path, read_only=True) as ledger:
        assert [event.kind for event in ledger.events()].count("schedule") == 1  # of the first run alone
    assert queries.CurrentRun(settings).run_id() == RUN


def test_another_protocol_is_refused_as_version(world: World) -> None:
    with pytest.raises(Refusal) as refused:
        queries.hello(world["books"], wire.Hello(run_id="run-2", config_toml=CONFIG.to_toml(), protocol=PROTOCOL + 1))
    assert refused.value.code == "version"


def test_an_agreed_test_build_still_never_writes_into_a_private_ledger(world: World) -> None:
    settings = dataclasses.replace(world["books"], agreed=AgreedRanges(test_builds=True))

    with pytest.raises(Refusal, match="test build") as refused:
        queries.hello(settings, wire.Hello(run_id="run-2", config_toml=changed(noise="none").to_toml()))
    assert refused.value.code == "range"


def test_a_run_within_the_ranges_is_admitted() -> None:
    ClientSettings(domain="books").admit(RunConfig(privacy=PrivacyConfig(noise_multiplier=1.0)))


def test_a_file_of_init_that_was_cut_off_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    """Cut between two lines it is TOML all the same, and the partner's own 'no' in a later line would count as the default 'yes'."""
    path = tmp_path / "partner.toml"
    whole = written(ClientSettings(domain="books", consent=ConsentSettings(catalogue_moments=False)))
    lines = whole.splitlines(keepends=True)
    for count in range(1, lines.index("[passports]\n") + 1):
        path.write_text("".join(lines[:count]))
        with pytest.raises(ConfigError, match=r"cut off: the table \[passports\]|is not TOML"):
            ClientSettings.read(path)
    path.write_text(whole)
    assert ClientSettings.read(path).consent.catalogue_moments is False


def test_a_file_that_somebody_wrote_by_hand_needs_no_table(tmp_path: Path) -> None:
    (tmp_path / "partner.toml").write_text('domain = "books"\n')
    assert ClientSettings.read(tmp_path / "partner.toml").domain == "books"
