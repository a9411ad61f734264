"""`isthmus-client`: two partners exchange passports with nothing but files, and what is wrong with a file is said by exit code."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client import cli, passport_exchange
from client.settings import ClientSettings
from tests.client.partner_world import ITEMS, LINKED, World


def command(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A real process."""
    root = Path(cli.__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-m", "client.cli", *words],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERMINAL_WIDTH": "160"},
    )


def call(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The same entry point in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(words))
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return int(str(end.value.code)), shown.out, shown.err


@pytest.fixture
def sealed(world: World, capsys: pytest.CaptureFixture[str]) -> Path:
    """A file from books to films, as it lies in the outbox of books."""
    code, out, _ = call("passport", "export", world.toml("books"), "--to", "films", "--json", capsys=capsys)
    assert code == 0
    return Path(json.loads(out)["file"])


@pytest.mark.journey
def test_two_partners_exchange_passports_with_nothing_but_files(world: World, tmp_path: Path) -> None:
    for domain, other in (("books", "films"), ("films", "books")):
        made = command("passport", "keys", world.toml(domain), cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        shutil.rmtree(world[other].path("partners"))
        world[other].path("partners").mkdir()
        shutil.copy(tmp_path / f"{domain}.keys.json", world[other].path("partners"))

    exported = command("passport", "export", world.toml("books"), "--to", "films", "--json")
    document = json.loads(exported.stdout)
    imported = command("passport", "import", world.toml("films"), document["file"], "--json")
    listed = [json.loads(command("passport", "list", world.toml(d), "--json").stdout)["passports"] for d in ("books", "films")]

    assert (exported.returncode, imported.returncode) == (0, 0)
    assert document["passports"] == json.loads(imported.stdout)["new"] == LINKED
    assert "shows the items themselves" in " ".join(exported.stderr.split())
    assert [(row["direction"], row["partner"], row["passports"], row["expired"]) for rows in listed for row in rows] == [
        ("out", "films", LINKED, False),
        ("in", "books", LINKED, False),
    ]


def test_the_same_file_twice_changes_nothing(world: World, sealed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = call("passport", "import", world.toml("films"), str(sealed), capsys=capsys)
    second = call("passport", "import", world.toml("films"), str(sealed), capsys=capsys)

    assert (first[0], second[0]) == (0, 0)
    assert "no passport is new" in second[1]


@pytest.mark.parametrize("what", ["garbage", "cut short", "missing", "empty"])
def test_a_file_that_is_no_passport_file_is_refused_with_code_12(
    world: World, sealed: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "books-to-films.passports"
    content = {"garbage": b"\x00\xff" * 5000, "cut short": sealed.read_bytes()[:-7], "empty": b""}
    if what in content:
        file.write_bytes(content[what])

    code, out, err = call("passport", "import", world.toml("films"), str(file), capsys=capsys)

    assert (code, out) == (12, "")
    assert err.startswith("PassportError: ")
    assert not world["films"].at_home("register.sqlite").exists()


def test_a_file_for_somebody_else_is_refused_with_code_12(world: World, sealed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call("passport", "import", world.toml("books"), str(sealed), "--json", capsys=capsys)

    assert code == json.loads(out)["error"]["exit_code"] == 12
    assert "not sealed to this partner's key" in err


def test_an_expired_file_is_refused_with_code_12(
    world: World, sealed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = time.time() + 181 * 86_400
    monkeypatch.setattr(passport_exchange.time, "time", lambda: later)

    code, _, err = call("passport", "import", world.toml("films"), str(sealed), capsys=capsys)

    assert code == 12
    assert "expired" in err


def test_a_file_of_a_stranger_is_refused_with_code_12(world: World, sealed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world["films"].path("partners") / "books.json").unlink()

    code, _, err = call("passport", "import", world.toml("films"), str(sealed), capsys=capsys)

    assert code == 12
    assert "not among the partners" in err


def test_an_export_to_a_partner_without_keys_is_refused_before_a_file_is_made(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call("passport", "export", world.toml("books"), "--to", "music", capsys=capsys)

    assert (code, out) == (12, "")
    assert "no public keys of partner 'music'" in err
    assert not world["books"].path("outbox").exists()


def test_without_a_run_there_is_no_export_and_no_data_are_opened(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(world["books"].at_home("run"))
    (world.root / "books/interactions.csv").unlink()

    assert call("passport", "export", world.toml("books"), "--to", "films", capsys=capsys)[0] == 17


def test_a_misspelt_setting_is_named_with_the_nearest_and_code_3(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(world.toml("books"))
    path.write_text(path.read_text().replace("valid_days", "valid_day"))

    code, out, err = call("passport", "list", str(path), capsys=capsys)

    assert (code, out) == (3, "")
    assert "Did you mean 'passports.valid_days'?" in err


def test_a_settings_file_that_is_not_there_is_code_3_and_a_folder_code_6(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("passport", "list", str(tmp_path / "partner.toml"), capsys=capsys)[0] == 3
    assert call("passport", "list", str(tmp_path), capsys=capsys)[0] == 6


def test_keys_are_made_once_and_only_their_owner_can_read_the_private_half(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "books.json")
    first = call("passport", "keys", world.toml("books"), "--out", out, "--json", capsys=capsys)
    second = call("passport", "keys", world.toml("books"), "--out", out, "--json", capsys=capsys)
    private = world["books"].at_home("keys") / "partner.keys"

    assert first == second
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert json.loads(private.read_text())["signing"] not in Path(out).read_text()


def test_public_keys_never_replace_another_file(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(world.toml("books")).read_text()

    assert call("passport", "keys", world.toml("books"), "--out", world.toml("books"), capsys=capsys)[0] == 2
    assert Path(world.toml("books")).read_text() == before


def test_an_empty_home_lists_nobody_and_makes_no_register(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("passport", "list", world.toml("films"), capsys=capsys)

    assert (code, out) == (0, "keys of: books\nno passports yet\n")
    assert not world["films"].at_home("register.sqlite").exists()


def test_no_item_and_no_link_is_printed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    shown = [
        call("passport", *words, capsys=capsys)
        for words in (("export", world.toml("books"), "--to", "films"), ("list", world.toml("books")))
    ]
    text = "".join(out + err for _, out, err in shown)
    person, _, token = (world.root / "books/links.csv").read_text().split()[1].split(",")
    items = {f"b{n:02d}" for n in range(ITEMS)}

    assert person not in text
    assert token not in text
    assert items.isdisjoint(re.findall(r"[0-9A-Za-z]+", text))  # whole words: a digest may hold b07 by chance


def test_an_interrupted_command_ends_with_130_and_a_defect_with_1_and_a_log(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, expected in ((KeyboardInterrupt(), 130), (RuntimeError("p001"), 1)):

        def broken(path: Path, error: BaseException = error) -> ClientSettings:
            raise error

        monkeypatch.setattr(ClientSettings, "read", broken)
        code, _, err = call("passport", "list", world.toml("books"), capsys=capsys)
        assert code == expected
        assert "p001" not in err


def test_a_disk_that_is_full_is_code_6(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("passport", "keys", world.toml("books"), "--out", "/dev/full/keys.json", capsys=capsys)[0] == 6


def test_help_answers_at_once_and_loads_no_heavy_library() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import sys, client.cli; print({'torch', 'polars', 'numpy', 'flwr', 'nacl'} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(cli.__file__).parent.parent,
    )
    assert found.stdout == "set()\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["canary"],
        ["forget"],
        *(["passport", *name] for name in ((), ("keys",), ("export",), ("import",), ("list",))),
        *(
            ["ledger", *name]
            for name in ((), ("create",), ("show",), ("export",), ("raise-ceiling",), ("rotate-key",), ("restart",), ("upgrade",))
        ),
        *(["release", *name] for name in ((), ("popularity",), ("count",), ("metric",))),
    ],
)
def test_every_help_page_documents_its_exit_codes(words: list[str]) -> None:
    page = " ".join(CliRunner().invoke(cli.app, [*words, "--help"], prog_name="isthmus-client").output.split())

    assert "12 passport or key" in page
    if words == ["passport", "export"]:
        assert "for a short history it shows the items themselves" in page
