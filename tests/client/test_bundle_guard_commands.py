"""`isthmus-client allow` and `allowed`: who lets which code run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client import cli
from shared import bundle
from tests.shared.test_bundle import FILES, packed

DIGEST = "5" * 64


@pytest.fixture
def partner(tmp_path: Path) -> str:
    (tmp_path / "partner.toml").write_text('domain = "books"\n')
    return str(tmp_path / "partner.toml")


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def documents(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code, out, err = call(capsys, *words, "--json")
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


def test_a_digest_is_allowed_listed_and_taken_back(partner: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no bundle may run" in call(capsys, "allowed", partner)[1]
    said = documents(capsys, "allow", partner, DIGEST.upper(), "--by", "A. Officer")
    assert (said["digest"], said["allowed"], said["by"], said["differs_from_installed"]) == (DIGEST, True, "A. Officer", None)

    (listed,) = documents(capsys, "allowed", partner)["allowed"]
    assert (listed["digest"], listed["by"]) == (DIGEST, "A. Officer")
    assert f"{DIGEST}  (file not looked at)  allowed by A. Officer on 20" in call(capsys, "allowed", partner)[1]

    assert "no longer allowed" in call(capsys, "allow", partner, DIGEST, "--by", "B. Officer", "--withdraw")[1]
    assert documents(capsys, "allowed", partner)["allowed"] == []


def test_a_file_of_the_code_that_is_installed_here_says_so(
    partner: str, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = bundle.build(repository)
    path = bundle.save(built, tmp_path)

    code, out, _ = call(capsys, "allow", partner, str(path), "--by", "A. Officer")

    assert code == 0
    assert built.digest in out
    assert "its code is the code that is installed here, byte for byte" in out
    (listed,) = documents(capsys, "allowed", partner)["allowed"]
    assert listed["code_digest"] == bundle.source_digest(repository)


def test_a_file_of_other_code_is_compared_with_what_is_installed(partner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle.save(bundle.read(packed(FILES)), tmp_path)

    _, out, _ = call(capsys, "allow", partner, str(path), "--by", "A. Officer")

    assert "modules differ from the code that is installed here" in out
    assert "  client/allowed.py" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nothing.fab"], 2, "neither a file nor a sha256"),
        (["5" * 63], 2, "neither a file nor a sha256"),
        (["partner.toml"], 4, "no zip archive"),
        (["odd.fab"], 4, "may hold nothing but modules"),
    ],
)
def test_what_is_no_bundle_is_not_allowed(
    partner: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.fab").write_bytes(packed({**FILES, "client/private.json": b"{}"}))

    ended, out, err = call(capsys, "allow", partner, *words, "--by", "A. Officer")

    assert (ended, out) == (code, "")
    assert said in err
    assert not (tmp_path / "home" / "allowed.json").exists()


def test_nobody_decides_without_a_name(partner: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "allow", partner, DIGEST)[0] == 2
    assert call(capsys, "allow", partner, DIGEST, "--by", " ")[0] == 2
    assert documents(capsys, "allowed", partner)["allowed"] == []
