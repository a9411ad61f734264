"""What a run's ServerApp says while it works, and what its silence means."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from server import app as server_app
from server import journal
from server.journal import Journal, is_kept, keeping
from server.report import incidents
from server.run_record import RunRecord
from server.strategy import Coordinator, TooFewClients
from shared.errors import RunFolderError
from simulations.in_process_grid import InProcessGrid
from tests.server.tiny_clients import TEXT, small_config, tiny_app


def events(folder: Path) -> list[str]:
    return [line["event"] for line in Journal(folder).read()]


def test_a_run_that_ends_well_says_so_and_lets_go_of_its_folder(tmp_path: Path) -> None:
    with keeping(tmp_path, 7) as kept:
        assert is_kept(tmp_path)
        kept.progress("train", 1, 2)
    assert not is_kept(tmp_path)
    begun, stage, finished = Journal(tmp_path).read()
    assert (begun["event"], begun["flower_run"], finished["event"]) == ("begun", 7, "finished")
    assert (stage["stage"], stage["done"], stage["total"]) == ("train", 1, 2)


def test_a_run_that_fails_says_why_and_whom_it_lost(tmp_path: Path) -> None:
    with pytest.raises(TooFewClients), keeping(tmp_path, 7):
        raise TooFewClients("hello", 1, 2, [("films", "refused-range")])
    last = Journal(tmp_path).read()[-1]
    assert (last["event"], last["kind"], last["exit_code"]) == ("failed", "TooFewClients", 16)
    assert last["dropped"] == [{"domain": "films", "code": "refused-range"}]


def test_the_text_of_a_foreign_error_stays_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 12"), keeping(tmp_path, 7):
        raise ValueError("row 12 holds alice@example.org")
    assert Journal(tmp_path).read()[-1]["what"] == "ValueError"


def test_warnings_of_the_coordinator_are_noted_and_those_of_others_are_not(tmp_path: Path) -> None:
    with keeping(tmp_path, 7):
        logging.getLogger("isthmus.server").warning("hello: %s is left out (%s)", "films", "refused-range")
        logging.getLogger("elsewhere").warning("something else")
    assert [line["text"] for line in Journal(tmp_path).read() if line["event"] == "note"] == ["hello: films is left out (refused-range)"]


def test_a_second_serverapp_in_the_same_folder_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_PATIENCE_S", 0.1)
    with keeping(tmp_path, 1), pytest.raises(RunFolderError, match="another ServerApp"), keeping(tmp_path, 2):
        pass
    assert events(tmp_path) == ["begun", "finished"]


def test_a_killed_process_leaves_a_journal_without_an_end_and_no_lock(tmp_path: Path) -> None:
    script = "import os, pathlib, sys, server.journal as j\nwith j.keeping(pathlib.Path(sys.argv[1]), 3):\n    os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    assert not is_kept(tmp_path)
    assert events(tmp_path) == ["begun"]


def test_lines_that_a_crash_cut_short_are_left_out(tmp_path: Path) -> None:
    Journal(tmp_path).append("note", text="whole")
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"event": "no')
    assert events(tmp_path) == ["note"]


def test_the_app_works_in_a_prepared_folder_whose_parts_are_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Coordinator.__init__
    monkeypatch.setattr(Coordinator, "__init__", lambda self, **how: make(self, **({"text_dimension": TEXT} | how)))
    folder = tmp_path / "runs" / "tiny-1"
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text(small_config().to_toml())
    agreed = f'[arts]\ncatalogue_hash = "{"cd" * 32}"\n[books]\ncatalogue_hash = "{"ab" * 32}"\n[music]\n'
    (tmp_path / "partners.toml").write_text(agreed)
    for name in ("partners.toml", "receipts.json"):
        (folder / name).symlink_to(tmp_path / name)
    RunRecord(name="tiny-1", created_utc="", bundle_digest="0" * 64, expected_clients=2).write(folder)  # music is known to be away
    run = Context(run_id=5, node_id=1, node_config={}, state=RecordDict(), run_config={"run": str(folder)})
    server_app.app(grid=InProcessGrid(tiny_app(tmp_path), 2), context=run)

    assert (folder / "receipts.json").is_symlink()
    assert (tmp_path / "receipts.json").is_file()
    assert (folder / "federation.json").is_file()
    said = [(line["stage"], line["done"]) for line in Journal(folder).read() if line["event"] == "stage"]
    assert ("train", 3) in said
    assert events(folder)[0] == "begun"
    assert events(folder)[-1] == "finished"
    found = [(one["code"], "arts" in one["what"]) for one in incidents(Journal(folder).read(), [])]
    assert found == [("catalogue-changed", True)]  # books brought what it enrolled with
