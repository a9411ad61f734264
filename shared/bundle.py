"""A bundle: the zip file in which Flower ships an app's code, its sha256, and what may be inside.

The coordinator builds one with Flower's own builder and submits that very file; partners allow it by the digest of the file. Flower stores
the files uncompressed and with a fixed date, so the same checkout gives the same bytes. Nothing here unpacks to disk or imports what is
inside.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import tempfile
import tomllib
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .errors import ConfigError, DataError, StorageError

MAX_BYTES = 10 * 1024 * 1024
"""Flower's own limit for the file."""
MAX_UNPACKED_BYTES = 64 * 1024 * 1024
MAX_FILES = 2_000
RUNNING = "ISTHMUS_BUNDLE_DIGEST"
"""Environment variable of an app process: digest of the bundle it runs. Set by the partner's guard, never by a message."""

_PYPROJECT = "pyproject.toml"
_LISTING = ".info/CONTENT"
_MODULE = re.compile(r"(client|server|shared)(/[A-Za-z_][A-Za-z0-9_]*)*/[A-Za-z_][A-Za-z0-9_]*\.py")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_APP = re.compile(r"(client|server)(\.[A-Za-z_][A-Za-z0-9_]*)+:[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle whose form was checked; not one line of it has run.

    Args:
        digest: sha256 of the file, in hex: what partners allow.
        size: of the file, in bytes.
        name, version: of the project, from its pyproject.toml.
        server_app, client_app: where Flower finds the apps, as ``module:attribute``.
        data: the file itself.
        contents: path inside the bundle -> bytes; modules and pyproject.toml.
    """

    digest: str
    size: int
    name: str
    version: str
    server_app: str
    client_app: str
    data: bytes = field(repr=False)
    contents: Mapping[str, bytes] = field(repr=False)

    def code_digest(self) -> str:
        """Digest of the modules of ``client`` and ``shared``, as `source_digest` computes it for installed ones."""
        return _digest_of({path: data for path, data in self.contents.items() if _is_client_code(path)})

    def differences(self, root: Path) -> tuple[str, ...]:
        """Modules of ``client`` and ``shared`` that are not byte for byte those under ``root``, on either side; sorted paths."""
        here = _sources(root)
        inside = {path: data for path, data in self.contents.items() if _is_client_code(path)}
        return tuple(sorted(path for path in here.keys() | inside.keys() if here.get(path) != inside.get(path)))


def project_folder() -> Path:
    """Where the packages lie that run here: the checkout, or the folder of installed packages."""
    return Path(__file__).resolve().parent.parent


def source_digest(root: Path) -> str:
    """SHA-256 over the modules of ``client`` and ``shared`` under ``root``: names code that runs outside a bundle."""
    return _digest_of(_sources(root))


def running_digest() -> str | None:
    """Digest of the bundle that this process runs, as the partner's guard said; None outside a guarded app process."""
    said = os.environ.get(RUNNING, "")
    return said if _DIGEST.fullmatch(said) else None


def is_digest(text: str) -> bool:
    """Whether a text is a sha256 in 64 small hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def build(project: Path) -> Bundle:
    """Builds the bundle of a checkout with Flower's own builder; twice the same files give the same bytes.

    Args:
        project: folder with pyproject.toml beside ``client``, ``server`` and ``shared``.
    Raises:
        ConfigError: there is no such project, or Flower does not accept it.
        DataError: something beyond our modules would be shipped.
    """
    if not (project / _PYPROJECT).is_file():
        raise ConfigError(
            f"there is no {_PYPROJECT} in {project}: a bundle is built from a checkout of isthmus",
            do="Name the folder of the checkout; packages that were installed from a wheel hold no pyproject.toml.",
        )
    from flwr.cli.build import build_fab_from_disk

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Flower 1.41 calls pathspec by an old name
            data = build_fab_from_disk(project)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"Flower cannot bundle {project}: {error}", do="Correct [tool.flwr.app] in pyproject.toml.") from None
    return read(data)


def save(bundle: Bundle, folder: Path) -> Path:
    """Keeps a bundle as ``DIGEST.fab``; one that is there already stays as it is.

    Raises:
        StorageError: no space left, or the folder cannot be written.
    """
    path, data = folder / f"{bundle.digest}.fab", bundle.data
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_file() and path.read_bytes() == data:
            return path
        handle, name = tempfile.mkstemp(prefix=".bundle-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"cannot keep the bundle in {folder}: {error.strerror}", do="Check the folder and the space that is left."
        ) from None
    return path


def read_file(path: Path) -> Bundle:
    """The bundle in a file.

    Raises:
        DataError: there is no such file, or it is no bundle of ours.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _refused(f"the file is larger than {MAX_BYTES:,} bytes")
        return read(path.read_bytes())
    except OSError as error:
        raise DataError(f"the bundle {path} cannot be read: {error.strerror}", do="Name the .fab file that the coordinator sent.") from None


def read(data: bytes) -> Bundle:
    """Checks a bundle's form: modules of ``client``, ``server`` and ``shared``, pyproject.toml and Flower's listing of both; nothing else.

    Raises:
        DataError: anything else is inside, or the listing does not hold.
    """
    if len(data) > MAX_BYTES:
        raise _refused(f"the file is larger than {MAX_BYTES:,} bytes")
    if not data.startswith(b"PK\x03\x04"):
        raise _refused("the file is no zip archive")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            contents = _unpacked(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OverflowError, OSError, ValueError):
        raise _refused("the archive is damaged") from None
    listing = contents.pop(_LISTING, None)
    if listing is None or _PYPROJECT not in contents:
        raise _refused(f"{_PYPROJECT} or {_LISTING} is missing")
    if sorted(listing.splitlines()) != sorted(_listed(path, content) for path, content in contents.items()):
        raise _refused(f"{_LISTING} does not list what is inside")
    name, version, server_app, client_app = _project(contents[_PYPROJECT])
    for app in (server_app, client_app):
        if app.partition(":")[0].replace(".", "/") + ".py" not in contents:
            raise _refused("an app that pyproject.toml names is not inside")
    return Bundle(
        digest=hashlib.sha256(data).hexdigest(),
        size=len(data),
        name=name,
        version=version,
        server_app=server_app,
        client_app=client_app,
        data=data,
        contents=contents,
    )


def _unpacked(archive: zipfile.ZipFile) -> dict[str, bytes]:
    entries = archive.infolist()
    if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
        raise _refused("it is too large when unpacked")
    contents: dict[str, bytes] = {}
    seen: set[str] = set()
    for entry in entries:
        path = entry.filename
        if path not in (_PYPROJECT, _LISTING) and _MODULE.fullmatch(path) is None:
            raise _refused(f"it holds {path[:120]!r}, and may hold nothing but modules of client, server and shared, and {_PYPROJECT}")
        if path.casefold() in seen:
            raise _refused(f"it holds {path!r} twice")
        if entry.flag_bits & 1 or stat.S_ISLNK(entry.external_attr >> 16):
            raise _refused(f"{path!r} is encrypted, or a link")
        seen.add(path.casefold())
        contents[path] = archive.read(entry)
    return contents


def _listed(path: str, content: bytes) -> bytes:
    return f"{path},{hashlib.sha256(content).hexdigest()},{len(content) * 8}".encode()


def _project(pyproject: bytes) -> tuple[str, str, str, str]:
    """Name, version and the two apps of a project."""
    try:
        values = tomllib.loads(pyproject.decode("utf-8"))
        project, components = values["project"], values["tool"]["flwr"]["app"]["components"]
        found = project["name"], project["version"], components["serverapp"], components["clientapp"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError):
        raise _refused(f"{_PYPROJECT} does not describe a Flower app") from None
    if not all(isinstance(value, str) for value in found):
        raise _refused(f"{_PYPROJECT} does not describe a Flower app")
    if any(_APP.fullmatch(app) is None for app in found[2:]):
        raise _refused("an app lies outside of client and server")
    return found


def _is_client_code(path: str) -> bool:
    return path.endswith(".py") and path.startswith(("client/", "shared/"))


def _sources(root: Path) -> dict[str, bytes]:
    found = (path for room in ("client", "shared") for path in (root / room).rglob("*.py"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def _digest_of(sources: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for path in sorted(sources, key=PurePosixPath):
        digest.update(path.encode() + b"\0" + sources[path] + b"\0")
    return digest.hexdigest()


def _refused(why: str) -> DataError:
    return DataError(
        f"this is no bundle of isthmus: {why}", do="Do not allow it. Ask the coordinator for the file that `isthmus-server` built."
    )
