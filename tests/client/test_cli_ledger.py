"""`isthmus-client ledger`: real processes, their exit codes, what they print, and what a killed one leaves to the next."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client import cli
from client.key_rotation import own_keys
from client.keys import PublicKeys
from client.settings import ClientSettings
from shared.privacy.ledger import Ledger, read_events
from tests.client import ledger_home as home

ROOT = Path(cli.__file__).parent.parent
OFFICER = ("--by", "A. Officer", "--why", "a second season")
Run = Callable[..., tuple[int, str, str]]


def process(*words: str, folder: Path, fault: str = "", answer: str = "") -> subprocess.CompletedProcess[str]:
    """A real process in a partner's folder.

    Args:
        fault: Python that runs before anything else in it, from a `sitecustomize`.
        answer: what is typed.
    """
    path = str(ROOT)
    if fault:
        (folder / "fault").mkdir(exist_ok=True)
        (folder / "fault" / "sitecustomize.py").write_text(fault)
        path = f"{folder / 'fault'}:{ROOT}"
    return subprocess.run(
        [sys.executable, "-m", "client.cli", *words],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        input=answer,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERMINAL_WIDTH": "160"},
    )


@pytest.fixture
def partner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with settings, keys and a ledger, in which commands are given."""
    home.settle(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The same entry point in this process: exit code, standard output, standard error."""

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["ledger", words[0], "partner.toml", *words[1:]])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return int(str(end.value.code)), shown.out, shown.err

    return call


@pytest.mark.journey
def test_a_life_in_real_processes(tmp_path: Path) -> None:
    (tmp_path / "partner.toml").write_text('domain = "books"\n\n[ceiling]\nepsilon = 8.0\ndelta = 1e-5\nset_by = "the bookshop"\n')
    officer = ("--by", "A. Officer", "--why", "the disk died", "--yes")
    steps: list[tuple[int, tuple[str, ...]]] = [
        (7, ("show",)),
        (0, ("create",)),
        (7, ("create",)),
        (0, ("export", "--out", "first.sqlite")),
        (2, ("export", "--out", "first.sqlite")),
        (0, ("raise-ceiling", "--epsilon", "10", *officer)),
        (7, ("raise-ceiling", "--epsilon", "10", *officer)),
        (0, ("rotate-key", "--yes")),
        (0, ("upgrade",)),
        (7, ("restart", "--no-receipt", "--epsilon", "12", *officer)),
    ]
    for code, words in steps:
        made = process("ledger", words[0], "partner.toml", *words[1:], folder=tmp_path)
        assert made.returncode == code, (words, made.stderr)
        assert "Traceback" not in made.stderr
    (tmp_path / "home/ledger.sqlite").write_bytes(b"\x00\xff" * 5000)
    assert process("ledger", "show", "partner.toml", folder=tmp_path).returncode == 18
    again = ("ledger", "restart", "partner.toml", "--no-receipt", "--booked-epsilon", "10", "--epsilon", "12", *officer, "--json")
    document = json.loads(process(*again, folder=tmp_path).stdout)
    shown = json.loads(process("ledger", "show", "partner.toml", "--json", folder=tmp_path).stdout)

    assert (document["booked_epsilon"], document["ceiling_epsilon"], len(document["aside"])) == (10.0, 12.0, 2)
    assert (shown["spent_epsilon"], shown["remaining_epsilon"], shown["claimed_delta"]) == (10.0, 2.0, 2e-5)
    assert [event.kind for event in read_events(tmp_path / "first.sqlite")] == ["genesis"]


def test_create_says_what_was_promised_and_under_which_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "partner.toml").write_text('domain = "books"\n\n[ceiling]\nepsilon = 3.5\n')

    code, out, _ = run("create", "--json")

    document = json.loads(out)
    public = own_keys(home.at(tmp_path)).public("books")
    assert code == 0
    assert (document["ceiling_epsilon"], document["verify_key"]) == (3.5, public.verify_key)
    assert document["fingerprint"] == public.fingerprint
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "home").rglob("*") if path.is_file()} == {0o600}


def test_show_is_a_table_for_people_and_a_document_for_machines(partner: Path, run: Run) -> None:
    home.admit(home.at(partner))
    home.answer(home.at(partner), 1)

    _, table, _ = run("show")
    document = json.loads(run("show", "--json")[1])

    assert "autumn: 1 of 3 rounds, 1 of 4 attempts" in table
    assert f"spent       {document['spent_epsilon']:10.2f}\n" in table
    assert document["runs"] == [{"run_id": "autumn", "rounds": 3, "reserve": 1, "permitted": 4, "attempts": 1, "committed": 1}]
    assert document["ceiling_epsilon"] - document["reserved_epsilon"] == document["remaining_epsilon"]
    assert document["audits"] == []
    assert "never tested" in table


def test_raising_a_ceiling_says_what_it_means_and_asks(partner: Path) -> None:
    words = ("ledger", "raise-ceiling", "partner.toml", "--epsilon", "10", *OFFICER)
    refused = [process(*words, folder=partner, answer=answer) for answer in ("n\n", "")]
    agreed = process(*words, folder=partner, answer="y\n")

    assert [made.returncode for made in refused] == [2, 2]
    assert all("nothing was changed" in made.stderr and made.stdout == "" for made in refused)
    for made in (*refused, agreed):
        assert "WITHIN RAISED BUDGET" in made.stderr
        assert "Renyi filter decides" in made.stderr
    assert agreed.returncode == 0
    assert "8 before, 10 now" in agreed.stdout
    assert [event.kind for event in read_events(partner / "home/ledger.sqlite")] == ["genesis", "ceiling"]


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("raise-ceiling", "--epsilon", "8", *OFFICER, "--yes"), 7, "LedgerError"),
        (("raise-ceiling", "--epsilon", "nan", *OFFICER, "--yes"), 7, "LedgerError"),
        (("raise-ceiling", "--epsilon", "9", "--by", " ", "--why", "x", "--yes"), 2, "UsageError"),
        (("raise-ceiling", "--epsilon", "nine", *OFFICER, "--yes"), 2, "BadParameter"),
        (("restart", "--epsilon", "9", *OFFICER, "--yes"), 2, "UsageError"),
        (("restart", "--epsilon", "9", *OFFICER, "--yes", "--no-receipt", "--receipt", "receipts.json"), 2, "UsageError"),
        (("restart", "--epsilon", "9", *OFFICER, "--yes", "--receipt", "receipts.json"), 23, "AuditError"),
        (("export", "--out", "missing/books.sqlite"), 6, "StorageError"),
        (("export", "--out", "partner.toml"), 2, "UsageError"),
        (("rotate-key", "--out", "partner.toml", "--yes"), 2, "UsageError"),
    ],
)
def test_what_is_wrong_is_said_by_exit_code_and_changes_nothing(
    partner: Path, run: Run, words: tuple[str, ...], code: int, kind: str
) -> None:
    passing = ("-shm", "-wal", ".keys.lock")  # what a reader leaves beside a ledger, and a lock without content
    before = {path: path.read_bytes() for path in partner.rglob("*") if path.is_file() and not path.name.endswith(passing)}

    found, out, err = run(*words, "--json")

    error = json.loads(out)["error"]
    assert (found, error["kind"], error["exit_code"]) == (code, kind, code)
    assert err
    after = {path: path.read_bytes() for path in partner.rglob("*") if path.is_file() and not path.name.endswith(passing)}
    assert after == before


def test_a_ledger_that_a_run_holds_is_code_8_for_all_that_write(partner: Path, run: Run) -> None:
    settings = home.at(partner)
    with Ledger.open(settings.ledger_path, signer=own_keys(settings)):
        found = [
            run(*words)[0]
            for words in (
                ("show",),
                ("export", "--out", "books.sqlite"),
                ("raise-ceiling", "--epsilon", "9", *OFFICER, "--yes"),
                ("rotate-key", "--yes"),
                ("restart", "--no-receipt", "--epsilon", "9", *OFFICER, "--yes"),
            )
        ]
    assert found == [0, 8, 8, 8, 8]


def test_a_ledger_signed_by_another_is_code_24(partner: Path, run: Run) -> None:
    (partner / "home/keys/partner.keys").unlink()

    assert run("show")[0] == 0
    assert run("raise-ceiling", "--epsilon", "9", *OFFICER, "--yes")[0] == 24
    assert run("rotate-key", "--yes")[0] == 24
    assert run("export", "--out", "books.sqlite")[0] == 24


def test_a_restart_cites_the_receipt_of_this_domain_only(partner: Path, run: Run) -> None:
    settings = home.at(partner)
    home.admit(settings)
    receipt = home.answer(settings, 1)
    settings.ledger_path.unlink()
    words = ("restart", "--epsilon", "12", "--booked-epsilon", "8", *OFFICER, "--yes", "--receipt", "receipts.json")

    home.receipts_file(partner)
    assert run(*words)[0] == 25
    forged = home.receipts_file(partner, receipt)
    forged.write_text(forged.read_text().replace('"count_of_intents": 1', '"count_of_intents": 0'))
    assert run(*words)[0] == 23
    home.receipts_file(partner, receipt)
    code, out, _ = run(*words, "--json")

    assert (code, json.loads(out)["intents"], json.loads(out)["receipt_of_this_key"]) == (0, 1, True)
    assert run("restart", "--epsilon", "12", *OFFICER, "--yes", "--receipt", "receipts.json")[0] == 7


def test_a_ledger_of_the_old_format_is_upgraded_by_command(partner: Path, run: Run) -> None:
    settings = home.at(partner)
    for path in settings.ledger_path.parent.glob("ledger.sqlite*"):
        path.unlink()
    home.old_format(settings.ledger_path)

    shown = run("show")
    raised = run("raise-ceiling", "--epsilon", "9", *OFFICER, "--yes")
    assert (shown[0], raised[0]) == (0, 7)
    assert all("isthmus-client ledger upgrade" in said for said in (shown[1], raised[2]))
    assert [json.loads(run("upgrade", "--json")[1])["changed"] for _ in range(2)] == [True, False]
    assert run("raise-ceiling", "--epsilon", "9", *OFFICER, "--yes")[0] == 0


def test_rotation_writes_the_new_public_file_over_the_old_one_and_says_who_needs_it(partner: Path, run: Run) -> None:
    code, out, _ = run("rotate-key", "--yes")
    first = PublicKeys.from_json((partner / "books.keys.json").read_text())
    again = json.loads(run("rotate-key", "--yes", "--json")[1])
    second = PublicKeys.from_json((partner / "books.keys.json").read_text())

    assert code == 0
    assert "can no longer be opened" in out
    assert "need the new public file" in out
    assert (again["old_verify_key"], again["new_verify_key"]) == (first.verify_key, second.verify_key)
    assert second == own_keys(home.at(partner)).public("books")


KILL = "import os, signal\nimport {module} as module\nold = module.{name}\n\ndef cut(*a, **k):\n    {body}\n\nmodule.{name} = cut\n"
DIE = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("name", "body", "changed"),
    [
        ("Ledger.rotate_key", DIE, False),  # the new keys are written, the event is not
        ("Ledger.rotate_key", f"old(*a, **k); {DIE}", True),  # the event is written, the old keys are still in their place
        ("os.replace", f"{DIE} if str(a[0]).endswith('.keys.next') else old(*a, **k)", True),
        ("os.replace", f"old(*a, **k); str(a[0]).endswith('.keys.next') and {DIE}", True),
    ],
)
def test_a_rotation_that_was_killed_is_settled_by_the_next_command(partner: Path, name: str, body: str, changed: bool) -> None:
    before = own_keys(home.at(partner)).verify_key
    fault = KILL.format(module="client.key_rotation", name=name, body=body)

    killed = process("ledger", "rotate-key", "partner.toml", "--yes", folder=partner, fault=fault)
    left = sorted(path.name for path in (partner / "home/keys").glob("partner.keys*") if path.suffix != ".lock")
    following = process("passport", "keys", "partner.toml", "--json", folder=partner)

    assert killed.returncode == -signal.SIGKILL
    assert following.returncode == 0, following.stderr
    assert left == (["partner.keys"] if "str(a[0])" in body and body.startswith("old") else ["partner.keys", "partner.keys.next"])
    assert [path.name for path in (partner / "home/keys").glob("partner.keys*") if path.suffix != ".lock"] == ["partner.keys"]
    settings: ClientSettings = home.at(partner)
    with Ledger.open(settings.ledger_path, signer=own_keys(settings)) as ledger:
        assert ledger.verify_key == own_keys(settings).verify_key
        assert (ledger.verify_key != before) == changed
    public = PublicKeys.from_json((partner / "books.keys.json").read_text())
    assert public == own_keys(settings).public("books")


def test_a_restart_that_was_killed_goes_on_with_the_same_command(partner: Path) -> None:
    (partner / "home/ledger.sqlite").write_bytes(b"\x00\xff" * 5000)
    words = ("ledger", "restart", "partner.toml", "--no-receipt", "--booked-epsilon", "8", "--epsilon", "12", *OFFICER, "--yes")
    body = f"old(*a, **k); {DIE}"
    fault = KILL.format(module="client.ledger_restart", name="os.rename", body=body)

    killed = process(*words, folder=partner, fault=fault)
    between = [process("ledger", word, "partner.toml", folder=partner).returncode for word in ("show", "create")]
    again = process(*words, folder=partner)

    assert killed.returncode == -signal.SIGKILL
    assert between == [7, 9]  # nothing to show; and no second first ledger beside what is left of the lost one
    assert again.returncode == 0, again.stderr
    assert (partner / "home/ledger.sqlite.lost-1").read_bytes() == b"\x00\xff" * 5000
    assert (partner / "home/ledger.sqlite.lost-1.lock").exists()


def test_help_pages_name_the_codes_of_ledgers_and_their_examples() -> None:
    for name in ("create", "show", "export", "raise-ceiling", "rotate-key", "restart", "upgrade"):
        page = " ".join(CliRunner().invoke(cli.app, ["ledger", name, "--help"], prog_name="isthmus-client").output.split())
        assert f"isthmus-client ledger {name} partner.toml" in page
        assert "8 another process holds the ledger" in page
        assert "22 ledger older than what was confirmed" in page
