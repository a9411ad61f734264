"""isthmus-audit as an auditor meets it: words, JSON, exit codes, and nothing else than the files it was given."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.privacy.cli import EXIT_WORDS, main
from shared.privacy.findings import Status
from shared.privacy.ledger import Ledger
from tests.shared.privacy.bookshop import KEYS, STRANGER, by_force, bytes_of
from tests.shared.privacy.tampering import cut_off

Make = Callable[..., Any]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Make:
    """Runs a command: exit code, standard output, standard error."""

    def act(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(one) for one in arguments])
        out = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, out.out, out.err

    return act


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A public-key file as the client writes it."""
    file = tmp_path / "books.keys.json"
    file.write_text(json.dumps({"partner": "books", "verify_key": KEYS.verify_key, "box_key": "0" * 64}))
    return file


def test_verify_says_what_holds(call: Make, written: Path, key: Path) -> None:
    code, said, _ = call("verify", written, "--key", key)
    assert code == 0
    assert "domain 'books': INTACT" in said
    assert "not provable" in said
    assert KEYS.verify_key in said


def test_the_key_may_be_its_digits(call: Make, written: Path) -> None:
    assert call("verify", written, "--key", KEYS.verify_key)[0] == 0


def test_verify_as_json(call: Make, written: Path, key: Path) -> None:
    code, said, _ = call("verify", written, "--key", key, "--json")
    document = json.loads(said)
    assert document["status"] == "INTACT"
    assert document["exit_code"] == code == 0
    assert document["events"] == 5
    assert "completeness" in [one["code"] for one in document["findings"]]
    assert all(one["status"] == "INTACT" for one in document["findings"])


def test_a_broken_ledger_names_its_first_bad_event(call: Make, written: Path, key: Path) -> None:
    by_force(written, "UPDATE events SET time_utc = replace(time_utc, 'T', 'U') WHERE seq = 3")
    code, said, _ = call("verify", written, "--key", key)
    assert code == 30
    assert "BROKEN" in said
    assert "first bad event   3" in said
    assert json.loads(call("verify", written, "--key", key, "--json")[1])["first_bad_event"] == 3


def test_what_is_infinite_is_null_in_json(call: Make, path: Path, new_ledger: Make, gaussian: Make, admit: Make, intend: Make) -> None:
    nothing = gaussian(kind="none", sampling_rate=0.0, noise_multiplier=0.0, clip_norm=0.0, grid=0.0)
    with new_ledger(private=False, ceiling_epsilon=float("inf")) as ledger:
        admit(ledger, mechanism=nothing)
        intend(ledger, mechanism=nothing)
    code, said, _ = call("verify", path, "--key", KEYS.verify_key, "--json")
    assert code == 34
    assert json.loads(said)["epsilon_spent"] is None
    code, said, _ = call("recompute", path, "--json")
    assert code == 34
    assert json.loads(said)["ledgers"][0]["epsilon"] is None


def test_recompute_in_words_and_as_json(call: Make, written: Path) -> None:
    code, said, _ = call("recompute", written, "--time-limit", 0)
    assert code == 0
    assert "second PLD" in said
    assert "REPLACE_ONE" in said
    assert "k = 5" in said
    document = json.loads(call("recompute", written, "--time-limit", 0, "--copies", 2, "--json")[1])
    assert document["hypothetical"]
    assert [row["k"] for row in document["persons"]] == [1, 2]
    assert document["ledgers"][0]["epsilon"] == document["ledgers"][0]["accountants"]["pld"] == document["persons"][0]["epsilon"]


def test_no_number_is_printed_where_accountants_disagree(call: Make, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.privacy.second_pld.MOST_CELLS", 100)
    code, said, _ = call("recompute", written, "--time-limit", 0)
    assert code == 34
    assert "NOT VERIFIED" in said
    assert "epsilon" not in said


def test_a_report_is_a_page_and_a_status(call: Make, written: Path, key: Path, tmp_path: Path) -> None:
    page, data = tmp_path / "books.html", tmp_path / "books.json"
    code, said, _ = call("report", written, "--key", key, "--out", page, "--json-out", data, "--time-limit", 0)
    assert code == 34  # without receipts and manifest nothing is vouched for
    assert said.startswith("NOT VERIFIED")
    assert "receipts" in said
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")
    assert json.loads(data.read_text())["status"] == "NOT VERIFIED"


def test_keys_and_ledgers_must_be_as_many(call: Make, written: Path, key: Path, tmp_path: Path) -> None:
    code, _, said = call("report", written, "--key", key, "--key", key, "--out", tmp_path / "books.html")
    assert code == 2
    assert "--key once for each ledger" in said


def test_every_reason_to_refuse_has_its_exit_code(call: Make, written: Path, key: Path, tmp_path: Path, forge: Make) -> None:
    letter, empty, unknown = tmp_path / "letter.txt", tmp_path / "empty.sqlite", tmp_path / "unknown.sqlite"
    letter.write_text("Dear auditor, " * 400)
    empty.touch()
    shutil.copy(written, unknown)
    forge(unknown, "donation", {"text": "unknown"})
    other = tmp_path / "films.sqlite"
    Ledger.create(other, signer=KEYS, domain="films", ceiling_epsilon=8.0, delta=1e-6, set_by="the cinema").close()
    given = {
        7: ("verify", tmp_path / "nothing", "--key", key),
        18: ("verify", letter, "--key", key),
        19: ("verify", empty, "--key", key),
        21: ("verify", unknown, "--key", key),
        23: ("verify", written, "--key", letter),
        24: ("verify", written, "--key", STRANGER.verify_key),
        26: ("recompute", written, other, "--time-limit", 0),
        2: ("verify", written),
    }
    for expected, arguments in given.items():
        code, said, reason = call(*arguments)
        assert code == expected, (arguments, reason)
        assert said == ""
        assert reason
        assert "Traceback" not in reason


def test_refusals_are_json_too(call: Make, written: Path) -> None:
    code, said, _ = call("verify", written, "--key", STRANGER.verify_key, "--json")
    assert json.loads(said)["error"]["exit_code"] == code == 24


def test_every_verdict_and_its_exit_code_stand_on_the_help_page(call: Make) -> None:
    for command in ("verify", "recompute", "report"):
        code, said, _ = call(command, "--help")
        assert code == 0
        for status in Status:
            assert str(status.exit_code) in said
    assert {status.exit_code for status in Status} <= set(EXIT_WORDS)


def test_nothing_beside_the_ledger_is_written(call: Make, written: Path, key: Path, tmp_path: Path) -> None:
    before = bytes_of(tmp_path)
    call("verify", written, "--key", key)
    call("recompute", written, "--time-limit", 0)
    assert bytes_of(tmp_path) == before


def test_a_cut_off_ledger_on_another_machine_needs_shared_alone(written: Path, key: Path, tmp_path: Path) -> None:
    """In a process of its own that has nothing of the client, the server, Flower or torch."""
    cut_off(written)
    forbidden = ("client", "server", "simulations", "flwr", "torch", "opacus")
    program = (
        "import sys\n"
        f"class No:\n    def find_spec(self, name, *_):\n        if name.split('.')[0] in {forbidden!r}: raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "from shared.privacy.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, "verify", str(written), "--key", str(key)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    assert "not provable" in done.stdout
