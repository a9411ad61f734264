"""The officer's report: what it says, what it refuses to say, and that nothing in a file can speak with the page's own voice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import AuditError, ConfigError, MixedDeltas, StorageError
from shared.privacy import report, report_words
from shared.privacy.accountant import Epsilons
from shared.privacy.audit import verify
from shared.privacy.ledger_schema import NO_HASH
from shared.privacy.recompute import recompute
from shared.privacy.report_domain import domain_record
from tests.shared.privacy.reported import CODE, OTHER_CODE, Partner, built, one_round
from tests.shared.privacy.tampering import cut_off


def blocking(made: dict[str, Any]) -> set[str]:
    return {one["code"] for one in made["reasons"] if one["leads_to"] == "NOT VERIFIED"}


@pytest.fixture
def partner(tmp_path: Path) -> Partner:
    """A bookshop whose ledger is signed, tested, receipted and complete."""
    return Partner(folder=tmp_path).begun().ran().tested()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report on such a bookshop."""
    return built(Partner(folder=tmp_path_factory.mktemp("whole")).begun().ran().tested().evidence())


@pytest.fixture(scope="module")
def page(whole: dict[str, Any]) -> str:
    return report.render(whole)


# --- the status --------------------------------------------------------------------------------------------------------------------------
def test_a_ledger_with_all_its_evidence_and_tested_code_is_within_budget(whole: dict[str, Any]) -> None:
    assert whole["status"] == "WITHIN BUDGET"
    assert [one for one in whole["reasons"] if one["leads_to"]] == []


@pytest.mark.parametrize(("missing", "code"), [({"key": False}, "key"), ({"receipts": False}, "skipped"), ({"manifest": False}, "skipped")])
def test_a_check_that_could_not_be_made_is_a_reason(partner: Partner, missing: dict[str, bool], code: str) -> None:
    made = built(partner.evidence(**missing))
    assert made["status"] == "NOT VERIFIED"
    assert blocking(made) == {code}


def test_a_commit_without_a_line_in_the_manifest_is_a_gap(partner: Partner) -> None:
    made = built(partner.evidence(without=1))
    assert (made["status"], blocking(made)) == ("NOT VERIFIED", {"gap"})
    assert made["domains"][0]["egress"]["commits_without_a_line"] == [10]  # genesis, schedule, then 4 x (intent, commit)


@pytest.mark.parametrize("tiers", [(), (1,), (2,)])
def test_code_that_trained_and_was_not_tested_by_both_tiers_is_a_reason(tmp_path: Path, tiers: tuple[int, ...]) -> None:
    partner = Partner(folder=tmp_path).begun().ran()
    made = built((partner.tested(*tiers) if tiers else partner).evidence())
    assert (made["status"], blocking(made)) == ("NOT VERIFIED", {"code-untested"})
    [said] = [one["what"] for one in made["reasons"] if one["code"] == "code-untested"]
    assert f"never tested by tier {' or '.join(tier for tier in '12' if int(tier) not in tiers)}:" in said


def test_a_test_of_other_code_says_nothing_about_the_code_that_trained(tmp_path: Path) -> None:
    partner = Partner(folder=tmp_path).begun().ran(code=CODE).tested(code=OTHER_CODE)
    assert blocking(built(partner.evidence())) == {"code-untested"}


def test_the_last_verdict_on_code_counts(partner: Partner) -> None:
    assert blocking(built(partner.tested(1, verdict="refuted").evidence())) == {"code-refuted"}
    assert built(partner.tested(1).evidence())["status"] == "WITHIN BUDGET"


def test_a_raised_ceiling_is_said_with_who_and_why(partner: Partner) -> None:
    made = built(partner.raised(12.0).evidence())
    assert made["status"] == "WITHIN RAISED BUDGET"
    first, second = made["domains"][0]["guarantee"]["ceilings"]
    assert (first["epsilon"], first["by"], second["epsilon"], second["by"]) == (
        8.0,
        "the bookshop's board",
        12.0,
        "privacy board, minute 14",
    )
    text = report.render(made)
    for said in ("genesis ceiling 8", "raised to 12", "a second season was agreed", "WITHIN RAISED BUDGET"):
        assert said in text


def test_what_was_spent_above_the_ceiling_is_exceeded_whatever_else_is_missing(tmp_path: Path, forge: Callable[..., None]) -> None:
    partner = Partner(folder=tmp_path, ceiling=0.5).begun()
    run = {"run_id": "autumn", "mechanism": one_round().to_record(), "config_hash": "c" * 64}
    admitted = {"rounds": 3, "reserve": 1, "permitted_intents": 4, "decided_by": "pld"}
    forge(
        partner.path, "schedule", {**run, **admitted, "filter_order": (8.0).hex(), "epsilon_reserved": (1.5).hex(), "plan_signature": None}
    )
    for number, attempt in ((1, 1), (2, 1), (3, 1), (3, 2)):
        forge(partner.path, "intent", {**run, "round": number, "attempt": attempt, "bundle_digest": CODE, "code_version": "0.1.0"})
    made = built(partner.evidence(receipts=False))
    assert made["status"] == "EXCEEDED"
    assert made["reasons"][0]["leads_to"] == "EXCEEDED", "the gravest comes first"
    assert "skipped" in blocking(made)
    assert "MORE than it permits" in report.render(made)


def test_a_ledger_that_was_changed_has_no_number_and_claims_nothing(partner: Partner) -> None:
    evidence = partner.evidence()
    data = bytearray(partner.path.read_bytes())
    where = data.index(b'"set_by":"the bookshop')
    data[where + 12] ^= 1
    partner.path.write_bytes(bytes(data))
    made = built(evidence)
    assert made["status"] == "NOT VERIFIED"
    assert (made["domains"][0]["guarantee"]["epsilon"], made["persons"]["rows"], made["plain_words"]) == (None, [], [])
    text = report.render(made)
    assert "Nothing is claimed about what it sent" in text
    assert "nothing that it says of itself is repeated here" in text
    for said in ("<svg role", "Nothing was trained", "No run was admitted", "by its genesis", "lines without a commit", "never raised"):
        assert said not in text
    assert {made["domains"][0]["guarantee"][name] for name in ("ceiling", "delta", "genesis_ceiling", "private")} == {None}


def test_an_older_copy_of_a_ledger_has_no_number_because_more_was_spent(partner: Partner) -> None:
    evidence = partner.evidence()
    cut_off(partner.path, 3)  # two verdicts, and the commit that the receipt is about
    made = built(evidence)
    assert (made["status"], blocking(made) >= {"receipt"}) == ("NOT VERIFIED", True)
    assert made["domains"][0]["guarantee"]["epsilon"] is None
    assert made["persons"]["rows"] == []


def test_a_ledger_that_says_not_private_is_never_verified(tmp_path: Path) -> None:
    made = built(Partner(folder=tmp_path, private=False).begun().ran().tested().evidence())
    assert "not-private" in blocking(made)
    assert made["domains"][0]["guarantee"]["epsilon"] is None
    assert "NOT PRIVATE" in report.render(made)


def test_accountants_that_disagree_leave_no_number(partner: Partner) -> None:
    """The record is one that the accountants might have given; nothing else is changed."""
    evidence = partner.evidence()
    found = verify(evidence.ledger, key=evidence.key, receipts=evidence.receipts, manifest=evidence.manifest)
    [epsilons] = recompute([evidence.ledger], copies=1).ledgers
    apart = Epsilons(pld=2.5, prv=3.1, rdp=3.2, agree=False, why="NOT VERIFIED: two accountants disagree")
    made = domain_record(evidence, found, dataclasses.replace(epsilons, epsilons=apart), about={})
    assert made["status"] == "NOT VERIFIED"
    assert (made["guarantee"]["epsilon"], made["plain_words"], made["course"]["decides"]) == (None, [], [])
    assert made["guarantee"]["why_no_number"] == apart.why


def test_a_file_that_is_exchanged_during_the_audit_is_not_reported(partner: Partner, tmp_path: Path) -> None:
    evidence = partner.evidence()
    found = verify(evidence.ledger, key=evidence.key, receipts=evidence.receipts, manifest=evidence.manifest)
    [epsilons] = recompute([evidence.ledger], copies=1).ledgers
    (tmp_path / "other").mkdir()
    other = Partner(folder=tmp_path / "other").begun().ran().tested().evidence()
    with pytest.raises(AuditError, match="ledger of domain 'books' changed"):
        domain_record(dataclasses.replace(evidence, ledger=other.ledger), found, epsilons, about={})
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_bytes(b"".join(Path(str(evidence.manifest)).read_bytes().splitlines(keepends=True)[:3]))
    with pytest.raises(AuditError, match="manifest changed"):
        domain_record(dataclasses.replace(evidence, manifest=shorter), found, epsilons, about={})


# --- what it says ------------------------------------------------------------------------------------------------------------------------
def test_every_field_that_is_documented_is_there_and_no_other(whole: dict[str, Any]) -> None:
    documented = re.findall(r"^(\S[\w, ]*?)  +\S", (report.__doc__ or ""), re.MULTILINE)
    names = {name for line in documented for name in line.split(", ")}
    assert set(whole) == names
    inside = {name for line in re.findall(r"^  (\w[\w, ]*?)  +\S", (report.__doc__ or ""), re.MULTILINE) for name in line.split(", ")}
    assert set(whole["domains"][0]) | {"status_means"} == inside | {"status_means"}


def test_numbers_of_the_page_follow_from_the_records(whole: dict[str, Any]) -> None:
    """40 steps of q .05, sigma 1, and the numbers of dp-accounting for them."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    def price(steps: int) -> float:
        step = PoissonSampledDpEvent(0.05, GaussianDpEvent(1.0))
        return PLDAccountant().compose(SelfComposedDpEvent(step, steps)).get_epsilon(1e-5)

    said, sums = whole["domains"][0]["guarantee"], whole["domains"][0]["accounting"]
    assert said["epsilon"] == pytest.approx(price(40), abs=2e-3)
    assert (sums["steps"], sums["agree"], sums["groups"]) == (40, True, [{"sampling_rate": 0.05, "noise_multiplier": 1.0, "steps": 40}])
    assert sums["pld"] <= sums["second"] + 1e-3 <= sums["rdp"]
    assert [row["k"] for row in whole["persons"]["rows"]] == [1, 2]
    assert whole["persons"]["rows"][1]["epsilon"] == pytest.approx(price(80), abs=2e-3)
    assert said["replace_one_epsilon"] > said["epsilon"] == said["epsilon_spent"]
    assert (said["replace_one_why"], said["epsilon_is"]) == ("", "spent")
    course = whole["domains"][0]["course"]["decides"]
    assert [one["event"] for one in course] == [1, 3, 5, 7, 9]
    assert [one["epsilon"] for one in course[1:]] == pytest.approx([price(steps) for steps in (10, 20, 30, 40)], abs=2e-3)


def test_a_page_never_shows_less_than_was_spent() -> None:
    assert report_words.epsilon_text(4.7601) == "4.77"
    assert report_words.odds_factor_text(4.77) == "118"  # e^4.77 = 117.9
    assert report_words.percent_text(report_words.posterior(0.1, 4.77)) == "93 %"  # odds 1/9 x 117.9 = 13.1; 13.1 / 14.1


def test_plain_words_name_both_parts_of_the_guarantee(whole: dict[str, Any], page: str) -> None:
    [_, worlds, person, budget] = whole["plain_words"]
    shown = report_words.epsilon_text(whole["domains"][0]["guarantee"]["epsilon"])
    assert f"factor of at most e^{shown}" in worlds
    assert "except with probability 0.00001 (1 in 100,000)" in worlds
    assert "limit for the worst case, not a forecast" in person
    assert f"permits epsilon 8 for its whole life and has spent {shown}" in budget
    assert worlds in page


def test_what_lies_outside_the_claim_and_what_erasure_cannot_do_are_said(whole: dict[str, Any], page: str) -> None:
    assert {one["name"] for one in whole["unprotected"]} >= {"passports", "timing", "replies", "participation", "catalogue"}
    assert "It gives no epsilon back" in page
    assert "It does not unlearn" in page
    assert "cryptographically secure" not in page


def test_messages_that_left_are_added_up_by_kind_and_content(whole: dict[str, Any]) -> None:
    out = whole["domains"][0]["egress"]
    assert (out["left"], out["stopped"], out["bytes"]) == (6, 1, 47 + 1_183_197 + 4 * 19_034)
    update = next(one for one in out["kinds"] if one["schema"] == "TransferUpdate")
    assert (update["kind"], update["left"], update["bytes"]) == ("train", 4, 4 * 19_034)
    assert update["why"] == ["post-processing of the round's private steps; weight and receipt hold no data"]
    assert (out["broken_at_line"], out["commits_without_a_line"], out["lines_without_a_commit"]) == (None, [], 0)


def test_code_that_trained_stands_beside_the_last_test_of_it(tmp_path: Path) -> None:
    partner = Partner(folder=tmp_path).begun().ran(2).tested().ran(2, run_id="winter", code=OTHER_CODE)
    first, second = built(partner.evidence())["domains"][0]["code"]["trained"]
    assert (first["code_digest"], first["attempts"], first["tests"]["2"]["figures"]["audited_epsilon"]) == (CODE, 2, 2.37)
    assert (second["code_digest"], second["attempts"], second["tests"]) == (OTHER_CODE, 2, {"1": None, "2": None})


@pytest.mark.journey
def test_lost_attempts_releases_and_refusals_are_counted(tmp_path: Path) -> None:
    partner = Partner(folder=tmp_path).begun().ran(2, lost=2).tested().refused().released()
    domain = built(partner.evidence())["domains"][0]
    [run] = domain["mechanism"]["runs"]
    assert (run["intents"], run["commits"], run["lost_attempts"], run["steps"]) == (4, 2, 2, 40)
    assert [one["purpose"] for one in domain["mechanism"]["releases"]] == ["popularity"]
    assert len(domain["course"]["refused"]) == domain["ledger"]["refused"] == 1
    assert domain["accounting"]["decided_by"] == "rdp-filter"
    assert domain["course"]["information"], "PLD is shown as information"


def test_where_the_filter_decides_the_claim_is_the_ceiling_and_what_is_spent_is_information(partner: Partner) -> None:
    made = built(partner.ran(2, run_id="winter").evidence())
    assert made["status"] == "WITHIN BUDGET", made["reasons"]
    said, text = made["domains"][0]["guarantee"], report.render(made)
    assert (said["epsilon"], said["epsilon_is"], said["ceiling"]) == (8.0, "ceiling", 8.0)
    assert 0 < said["epsilon_spent"] < 8.0
    assert said["epsilon_means"].startswith("the ceiling: what may ever be known")
    assert (said["replace_one_epsilon"], "filter" in said["replace_one_why"]) == (None, True)
    assert f"no number ({said['replace_one_why']})" in text
    [_, worlds, _, budget] = made["plain_words"]
    spent = report_words.epsilon_text(said["epsilon_spent"])
    assert "will ever have received" in worlds
    assert "factor of at most e^8.00 = 2,990" in worlds
    assert f"Spent so far, as information: {spent} of 8." in budget
    assert "raised" not in budget
    assert f"e^{spent}" not in text
    assert "<dt>epsilon claimed</dt><dd>8.00<small>the ceiling, for life; spent so far" in text
    assert made["persons"]["rows"][0]["epsilon"] == 8.0
    assert "its ceiling permits" in made["persons"]["note"]


def test_a_claim_at_a_raised_ceiling_says_what_it_rests_on(partner: Partner) -> None:
    made = built(partner.raised(12.0).evidence())
    assert made["domains"][0]["guarantee"]["epsilon"] == 12.0
    assert "raised from 8. A limit that was set anew after results had been seen" in made["plain_words"][-1]


def test_a_filter_whose_ceiling_was_passed_vouches_for_nothing(partner: Partner) -> None:
    """The record is one that the accountants might have given; nothing else is changed."""
    evidence = partner.ran(2, run_id="winter").evidence()
    found = verify(evidence.ledger, key=evidence.key, receipts=evidence.receipts, manifest=evidence.manifest)
    [epsilons] = recompute([evidence.ledger], copies=1).ledgers
    made = domain_record(evidence, found, dataclasses.replace(epsilons, filter_epsilon=8.5), about={})
    said = made["guarantee"]
    assert (said["epsilon"], said["epsilon_is"], said["epsilon_spent"], made["plain_words"]) == (None, None, 8.5, [])
    assert "ceiling" in said["why_no_number"]


def test_several_ledgers_have_a_section_each_and_one_person_table(tmp_path: Path) -> None:
    books = Partner(folder=tmp_path).begun().ran().tested()
    films = Partner(folder=tmp_path, domain="films").begun().ran()
    made = built(books.evidence(), films.evidence())
    assert [one["status"] for one in made["domains"]] == ["WITHIN BUDGET", "NOT VERIFIED"]
    assert made["status"] == "NOT VERIFIED"
    alone, together = made["persons"]["rows"]
    assert (len(alone["domains"]), together["domains"]) == (1, ["books", "films"])
    assert together["epsilon"] > alone["epsilon"]
    text = report.render(made)
    assert [f'id="domain-{number}-{name}"' in text for number, name in ((1, "books"), (2, "films"))] == [True, True]


def test_ledgers_with_other_deltas_are_not_added_up(tmp_path: Path) -> None:
    books = Partner(folder=tmp_path).begun().ran(2)
    films = Partner(folder=tmp_path, domain="films", delta=1e-6).begun().ran(2)
    with pytest.raises(MixedDeltas):
        built(books.evidence(), films.evidence())


def test_a_ledger_without_a_run_has_a_report_too(tmp_path: Path) -> None:
    made = built(Partner(folder=tmp_path).begun().evidence(receipts=False, manifest=False))
    assert made["domains"][0]["guarantee"]["epsilon"] == 0.0
    assert "Nothing was trained." in report.render(made)


# --- files -------------------------------------------------------------------------------------------------------------------------------
def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_a_report_leaves_the_evidence_as_it_is_and_writes_two_files(tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    evidence = Partner(folder=home).begun().ran().evidence()
    before = digests(home)
    made = report.write([evidence], out=out / "report.html", json_out=out / "report.json", copies=1)
    assert digests(home) == before
    assert json.loads((out / "report.json").read_text()) == made
    assert (out / "report.html").read_text() == report.render(made)
    assert sorted(file.name for file in out.iterdir()) == ["report.html", "report.json"]


def test_a_report_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    evidence = Partner(folder=tmp_path).begun().ran().evidence()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        report.write([evidence], out=tmp_path / "file" / "report.html", copies=1)


def test_there_is_no_report_on_nothing_and_none_on_one_domain_twice(partner: Partner, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one ledger"):
        report.build([])
    shutil.copy(partner.path, tmp_path / "copy.sqlite")
    twice = dataclasses.replace(partner.evidence(), ledger=tmp_path / "copy.sqlite")
    with pytest.raises(AuditError, match="two of the ledgers"):
        built(partner.evidence(), twice)


def test_a_manifest_that_was_edited_is_named_by_its_line(partner: Partner) -> None:
    evidence = partner.evidence()
    assert evidence.manifest is not None
    evidence.manifest.write_bytes(evidence.manifest.read_bytes().replace(b'"bytes":47,', b'"bytes":48,'))
    made = built(evidence)
    assert made["status"] == "NOT VERIFIED"
    assert made["domains"][0]["egress"]["broken_at_line"] is not None
    assert made["domains"][0]["egress"]["head_hash"] != NO_HASH
