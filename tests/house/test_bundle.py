"""What a run ships: the code of three rooms, the same bytes each time, and nothing that happened to lie about."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

FLOWERS_OWN = {"pyproject.toml", ".info/CONTENT"}
LARGEST_BYTES = 10 * 1024 * 1024


def build(folder: Path, command: Callable) -> Path:
    done = command("flwr", "build", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = folder.glob("*.fab")
    return bundle


@pytest.mark.journey
def test_a_bundle_from_a_clean_clone_holds_the_code_of_client_server_and_shared_only(
    clean_clone: Path, tracked: list[Path], command: Callable
) -> None:
    for lying_about in ("client/data/interactions.csv", "client/notes.json", "server/partners.toml", "shared/README.md", "secrets.yaml"):
        (clean_clone / lying_about).write_text("user_id: 1\n")

    bundle = build(clean_clone, command)

    code = {file.as_posix() for file in tracked if file.suffix == ".py" and file.parts[0] in ("client", "server", "shared")}
    with zipfile.ZipFile(bundle) as archive:
        assert set(archive.namelist()) - FLOWERS_OWN == code
    assert bundle.stat().st_size < LARGEST_BYTES


@pytest.mark.journey
def test_building_twice_gives_the_same_digest_because_partners_allow_a_digest(clean_clone: Path, command: Callable) -> None:
    digests = []
    for _ in range(2):
        bundle = build(clean_clone, command)
        digests.append(hashlib.sha256(bundle.read_bytes()).hexdigest())
        bundle.unlink()

    assert digests[0] == digests[1]


@pytest.mark.journey
def test_a_bundle_changes_its_digest_with_one_byte_of_code(clean_clone: Path, command: Callable) -> None:
    bundle = build(clean_clone, command)
    before = hashlib.sha256(bundle.read_bytes()).hexdigest()
    bundle.unlink()
    with (clean_clone / "shared/errors.py").open("a") as file:
        file.write("#\n")

    assert hashlib.sha256(build(clean_clone, command).read_bytes()).hexdigest() != before


@pytest.mark.journey
def test_both_apps_can_be_imported_from_the_bundle_alone(clean_clone: Path, tmp_path: Path, command: Callable) -> None:
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(build(clean_clone, command)) as archive:
        archive.extractall(unpacked)

    done = command("python", "-c", "import client.app, server.app; print(client.app.__file__); print(server.app.__file__)", cwd=unpacked)

    assert done.returncode == 0, done.stderr
    assert [Path(line) for line in done.stdout.split()] == [unpacked / "client/app.py", unpacked / "server/app.py"]
