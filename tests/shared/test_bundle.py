"""A bundle is its bytes, and holds our modules and nothing else: tried with ways in which an archive may say one thing and be another."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from shared import bundle
from shared.errors import ConfigError, DataError, StorageError

PYPROJECT = b"""
[project]
name = "isthmus"
version = "0.1.0"
description = "an app for a test"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "isthmus"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
"""
FILES = {"pyproject.toml": PYPROJECT, "client/app.py": b"app = 1\n", "server/app.py": b"app = 2\n", "shared/wire/kinds.py": b""}


def listed(files: Mapping[str, bytes]) -> bytes:
    return "\n".join(f"{path},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for path, data in files.items()).encode()


def packed(files: Mapping[str, bytes], listing: bytes | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", compression) as archive:
        for path, data in {**files, ".info/CONTENT": listed(files) if listing is None else listing}.items():
            entry = zipfile.ZipInfo(path)  # with a fixed date
            entry.compress_type = compression
            archive.writestr(entry, data)
    return held.getvalue()


def with_entry(entry: zipfile.ZipInfo, data: bytes = b"") -> bytes:
    held = io.BytesIO(packed({**FILES, entry.filename: data}))
    out = io.BytesIO()
    with zipfile.ZipFile(held) as old, zipfile.ZipFile(out, "w") as new:
        for each in old.infolist():
            new.writestr(entry if each.filename == entry.filename else each, old.read(each))
    return out.getvalue()


def link() -> bytes:
    entry = zipfile.ZipInfo("client/secrets.py")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return with_entry(entry, b"/etc/passwd")


def twice() -> bytes:
    held = io.BytesIO(packed(FILES))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(held, "a") as archive:
        archive.writestr("client/app.py", b"app = 3\n")
    return held.getvalue()


def test_the_project_is_built_into_the_same_bytes_twice_and_holds_the_code_that_is_here(repository: Path) -> None:
    first, second = bundle.build(repository), bundle.build(repository)

    assert first.digest == second.digest == hashlib.sha256(first.data).hexdigest()
    assert (first.name, first.client_app, first.server_app) == ("isthmus", "client.app:app", "server.app:app")
    assert {path.partition("/")[0] for path in first.contents} == {"client", "server", "shared", "pyproject.toml"}
    assert first.differences(repository) == ()
    assert first.code_digest() == bundle.source_digest(repository)


def test_a_module_that_differs_from_the_one_here_is_named_on_either_side(tmp_path: Path) -> None:
    for path, data in {"client/app.py": b"app = 0\n", "client/extra.py": b"", "server/app.py": b"another"}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)

    read = bundle.read(packed(FILES))

    assert read.differences(tmp_path) == ("client/app.py", "client/extra.py", "shared/wire/kinds.py")  # a client runs no module of server
    assert read.code_digest() != bundle.source_digest(tmp_path)


def test_a_bundle_of_our_modules_is_read_compressed_or_not() -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        read = bundle.read(packed(FILES, compression=compression))

        assert dict(read.contents) == FILES
        assert read.size == len(read.data)


@pytest.mark.parametrize(
    "path",
    [
        "data/private.json",
        "client/private.json",
        "client/native.so",
        "client/app.pyc",
        "sitecustomize.py",
        "flwr/__init__.py",
        "numpy.py",
        "client/../sitecustomize.py",
        "../client/app.py",
        "/client/evil.py",
        "client//app2.py",
        "client\\app2.py",
        "client/a b.py",
        "Client/app2.py",
        "client/__pycache__/app.cpython-311.pyc",
        ".info/MORE",
        "tests/client.py",
    ],
)
def test_anything_but_modules_of_the_three_rooms_is_refused_by_name(path: str) -> None:
    with pytest.raises(DataError, match="may hold nothing but modules"):
        bundle.read(packed({**FILES, path: b""}))


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (link, "encrypted, or a link"),
        (twice, "twice"),
        (lambda: packed({**FILES, "client/APP.py": b""}), "twice"),
        (lambda: packed(FILES, listed({**FILES, "client/app.py": b"another"})), "does not list"),
        (lambda: packed(FILES, listed({path: FILES[path] for path in list(FILES)[:-1]})), "does not list"),
        (lambda: packed(FILES, listed({**FILES, "client/more.py": b""})), "does not list"),
        (lambda: packed({path: data for path, data in FILES.items() if path != "pyproject.toml"}), "is missing"),
        (lambda: packed({path: data for path, data in FILES.items() if path != "client/app.py"}), "not inside"),
        (lambda: packed({**FILES, "pyproject.toml": PYPROJECT.replace(b"client.app:app", b"os:system")}), "outside of client"),
        (lambda: packed({**FILES, "pyproject.toml": b"[project"}), "does not describe"),
        (lambda: packed({**FILES, "pyproject.toml": b"project = 3"}), "does not describe"),
        (lambda: packed({**FILES, "client/zeros.py": bytes(bundle.MAX_UNPACKED_BYTES)}, compression=zipfile.ZIP_DEFLATED), "too large"),
        (lambda: packed({**FILES, **{f"client/m{n}.py": b"" for n in range(bundle.MAX_FILES)}}), "too large"),
        (lambda: b"#!/bin/sh\n" + packed(FILES), "no zip archive"),
        (lambda: packed(FILES)[:-30], "damaged"),
        (lambda: packed(FILES).replace(b"app = 1\n", b"app = 4\n"), "damaged"),
        (lambda: b"", "no zip archive"),
        (lambda: bytes(bundle.MAX_BYTES + 1), "larger than"),
    ],
)
def test_an_archive_that_is_not_what_it_says_is_refused(made: Callable[[], bytes], why: str) -> None:
    with pytest.raises(DataError, match=why):
        bundle.read(made())


def test_every_byte_of_a_small_bundle_matters_to_its_digest_and_none_makes_it_crash() -> None:
    data = packed({path: FILES[path] for path in ("pyproject.toml", "client/app.py", "server/app.py")})
    known = hashlib.sha256(data).hexdigest()
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 0x15]) + data[place + 1 :]
        try:
            assert bundle.read(changed).digest != known
        except DataError:
            continue


def test_a_folder_without_a_project_cannot_be_built_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no pyproject\.toml"):
        bundle.build(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\n')
    with pytest.raises(ConfigError, match="Flower cannot bundle"):
        bundle.build(tmp_path)


def test_a_bundle_is_kept_under_its_digest_once(tmp_path: Path) -> None:
    read = bundle.read(packed(FILES))
    path = bundle.save(read, tmp_path / "bundles")
    before = path.stat().st_mtime_ns

    assert bundle.save(read, tmp_path / "bundles") == path
    assert (path.name, path.stat().st_mtime_ns) == (f"{read.digest}.fab", before)
    assert bundle.read_file(path).digest == read.digest
    assert os.listdir(path.parent) == [path.name]


def test_what_cannot_be_read_or_kept_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(bundle.MAX_BYTES + 1))
    with pytest.raises(DataError, match="larger than"):
        bundle.read_file(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be read"):
        bundle.read_file(tmp_path / "nothing.fab")
    with pytest.raises(StorageError, match="cannot keep"):
        bundle.save(bundle.read(packed(FILES)), tmp_path / "file")


@pytest.mark.parametrize(("said", "known"), [("a" * 64, "a" * 64), ("A" * 64, None), ("a" * 63, None), ("", None)])
def test_the_running_digest_is_a_whole_digest_or_none(said: str, known: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bundle.RUNNING, said)
    assert bundle.running_digest() == known
