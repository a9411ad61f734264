"""`isthmus-client canary`: a verdict for people, for machines and for the ledger; nothing spent, nothing opened."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from client.allowed import FILE, AllowList
from client.app import code_digest
from client.canary.verdict import code_of
from client.cli import main
from client.key_rotation import own_keys
from client.settings import ClientSettings
from client.training import local_round
from shared.config import PrivacyConfig, RunConfig
from shared.errors import WrongKey
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.signing import SigningPair
from tests.client.training import planted_bugs as bugs

CONFIG = RunConfig(name="autumn", privacy=PrivacyConfig(noise_multiplier=1.3, clip_norm=0.37))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClientSettings:
    """A domain with keys and a ledger, and without a single file of data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "partner.toml").write_text('domain = "books"\n')
    (tmp_path / "run.toml").write_text(CONFIG.to_toml())
    settings = ClientSettings.read(tmp_path / "partner.toml")
    settings.ledger_path.parent.mkdir()
    Ledger.create(
        settings.ledger_path, signer=own_keys(settings), domain="books", ceiling_epsilon=8.0, delta=1e-6, set_by="the bookshop"
    ).close()
    return settings


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["canary", *arguments])
    return int(left.value.code or 0)


def files_of(settings: ClientSettings) -> set[str]:
    return {str(path.relative_to(settings.base)) for path in settings.base.rglob("*") if path.is_file()}


@pytest.mark.journey
def test_a_good_verdict_is_printed_written_and_signed_into_the_ledger(shop: ClientSettings, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(shop)
    assert call("partner.toml", "--config", "run.toml") == 0

    said = capsys.readouterr()
    assert "PASSED" in said.out
    assert "T1 noise" in said.out
    assert "noise with multiplier 1.3" in said.out
    assert "at least epsilon" in said.out
    assert "Not being refuted is no proof" in said.out
    assert files_of(shop) - before == {"books.canary.json"}
    written = shop.base / "books.canary.json"
    verdict: dict[str, Any] = json.loads(written.read_text())
    assert (verdict["format"], verdict["verdict"], verdict["config_hash"]) == ("isthmus-canary-1", "passed", CONFIG.config_hash)
    assert all(check["passed"] for check in verdict["tier_1"]["checks"])
    assert verdict["tier_2"]["audited_epsilon"] < verdict["tier_2"]["claimed_epsilon"]

    audits = [event.payload for event in read_events(shop.ledger_path) if event.kind == "audit"]
    assert [(audit["tier"], audit["verdict"], audit["code_digest"]) for audit in audits] == [
        (1, "passed", code_digest()),
        (2, "passed", code_digest()),
    ]
    assert {audit["report_sha256"] for audit in audits} == {hashlib.sha256(written.read_bytes()).hexdigest()}
    assert json.loads(audits[1]["summary"])["canaries"] == 4000
    with Ledger.open(shop.ledger_path, read_only=True) as ledger:
        assert ledger.epsilon_spent() == 0.0


@pytest.mark.journey
def test_a_bad_verdict_is_signed_too_and_leaves_with_a_code_of_its_own(
    shop: ClientSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_round, "SystemNoise", bugs.HalfNoise)
    assert call("partner.toml", "--out", "verdict.json", "--json") == 35

    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "refuted"
    assert [check["name"] for check in answer["tier_1"]["checks"] if not check["passed"]] == ["T1 noise"]
    assert answer["tier_2"]["audited_epsilon"] > answer["tier_2"]["claimed_epsilon"]
    assert json.loads((shop.base / "verdict.json").read_text())["verdict"] == "refuted"
    audits = [event.payload for event in read_events(shop.ledger_path) if event.kind == "audit"]
    assert [audit["verdict"] for audit in audits] == ["refuted", "refuted"]
    assert json.loads(audits[0]["summary"])["refuted"] == ["T1 noise"]


@pytest.mark.parametrize("privacy", [PrivacyConfig(noise="seeded"), PrivacyConfig(epsilon=float("inf"), noise="none")])
def test_a_run_that_promises_nothing_is_not_tested(
    shop: ClientSettings, capsys: pytest.CaptureFixture[str], privacy: PrivacyConfig
) -> None:
    (shop.base / "run.toml").write_text(RunConfig(privacy=privacy).to_toml())
    assert call("partner.toml", "--config", "run.toml") == 3
    assert "promises no privacy" in capsys.readouterr().err


def test_a_configuration_that_is_not_there_is_said_before_anything_is_tested(
    shop: ClientSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("partner.toml", "--config", "nowhere.toml") == 3
    assert "nowhere.toml" in capsys.readouterr().err


def test_without_a_ledger_nothing_is_tested_and_no_keys_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "partner.toml").write_text('domain = "books"\n')
    assert call("partner.toml") == 7
    assert [path.name for path in tmp_path.iterdir()] == ["partner.toml"]


def test_a_ledger_of_another_key_is_said_before_anything_is_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "partner.toml").write_text('domain = "books"\n')
    (tmp_path / "home").mkdir()
    Ledger.create(
        tmp_path / "home" / "ledger.sqlite",
        signer=SigningPair.generate(),
        domain="books",
        ceiling_epsilon=8.0,
        delta=1e-6,
        set_by="somebody else",
    ).close()
    assert call("partner.toml") == WrongKey.exit_code


def test_the_code_is_named_as_the_intents_of_this_partner_name_it(shop: ClientSettings) -> None:
    assert code_of(shop) == code_digest()
    allowed = AllowList(shop.at_home(FILE))
    allowed.decide("b" * 64, allowed=True, by="an officer", code_digest=code_digest())
    allowed.decide("d" * 64, allowed=True, by="an officer", code_digest="e" * 64)  # of other code
    assert code_of(shop) == "b" * 64  # behind the guard an intent names the bundle
    allowed.decide("b" * 64, allowed=False, by="an officer")
    assert code_of(shop) == code_digest()
