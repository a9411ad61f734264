"""README.md's way from nothing to an audited run: its commands and its table, read from the text, and shells that type them."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

COORDINATOR = "coordinator"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOT_LENT = re.compile(r"isthmus|__editable__|__pycache__|pip$|pip-|(client|server|shared|simulations)$|.*\.pth$", re.IGNORECASE)
_PAUSE_S = 0.1


# --- what README.md says ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """A row of the table: after which command who gives which file, and where the receiver keeps it."""

    after: str
    giver: str
    file: str
    receiver: str
    kept: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """The section of README.md: the lines of each side's block, remarks included, and the table."""

    coordinator: tuple[str, ...]
    partner: tuple[str, ...]
    handed: tuple[Handed, ...]


def read(readme: Path, title: str = "Deployment") -> Said:
    """The section's two blocks and its table, which have to be there."""
    section = readme.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    blocks = [
        tuple(line for line in block.splitlines() if line.strip()) for block in re.findall(r"^```sh\n(.*?)^```", section, re.S | re.M)
    ]
    assert len(blocks) == 2, "a block for the coordinator, and one for a partner"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    names = ("after", "giver", "file", "receiver", "kept")
    handed = [Handed(**{name: cell.strip("`") for name, cell in zip(names, row, strict=True)}) for row in rows[2:]]
    assert handed, "nothing goes from one to another"
    return Said(coordinator=blocks[0], partner=blocks[1], handed=tuple(handed))


def commands(lines: Sequence[str]) -> list[str]:
    """Lines that are typed: all but remarks."""
    return [line for line in lines if not line.startswith("#")]


def spoken_by(text: str, me: str, other: str) -> str:
    """README.md speaks for 'books'; another partner types the same with its own name, and hands to whoever is the other one."""
    names = {"books": me, "films": other}
    return re.sub("books|films", lambda match: names[match[0]], text)


# --- a shell of one side ---------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Side:
    """One side at its desk: a checkout, a shell in it, and the lines that it has still to type.

    Args:
        name: `coordinator`, or a domain.
        desk: the folder that the shell begins in.
        scratch: for what the test keeps about it; outside the desk.
        lines: of the block, in its own name.
        inside: puts a command line into this side's network.
        hosts: what names mean here.
        lent: folder of Python packages, which stands for a package index.
    """

    name: str
    desk: Path
    scratch: Path
    lines: list[str]
    inside: Callable[[Sequence[str]], list[str]]
    hosts: Path
    lent: Path
    done: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _typing: str = ""
    _begun: float = 0.0
    _from: int = 0
    _count: int = 0

    def __post_init__(self) -> None:
        self.scratch.mkdir()
        fifo = self.scratch / "typed"
        os.mkfifo(fifo)
        programs = self.scratch / "bin"
        programs.mkdir()
        (programs / "python3").symlink_to(os.path.realpath(sys.executable))  # of no virtual environment
        environment = {
            "PATH": f"{programs}:{_SYSTEM_PATH}",
            "HOME": str(self.scratch),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "COLUMNS": "200",
            # pip asks nobody: what it needs is there already, or the test fails
            "PIP_NO_INDEX": "1",
            "PIP_QUIET": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        words = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec sh "$1"', str(self.hosts), str(fifo)]
        with self.log.open("ab") as log:
            self._shell = subprocess.Popen(
                self.inside(words), cwd=self.desk, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._keys = fifo.open("w")

    @property
    def log(self) -> Path:
        return self.scratch / "log"

    def needs(self, kept: Sequence[str]) -> list[str]:
        """Files among those handed over that the next line, or remark, names and that are not here."""
        words = {word.strip(",.;:()\"'") for word in self.lines[0].split()}
        return [name for name in kept if name in words and not (self.desk / name).exists()]

    def step(self, kept: Sequence[str]) -> None:
        """Types the next line if it can be typed, or looks whether the last one has ended."""
        if self._typing:
            self._look()
        elif self.lines and not self.needs(kept):
            line = self.lines.pop(0)
            if not line.startswith("#"):
                self._type(line)

    def type_now(self, line: str, limit_s: float = 120.0) -> str:
        """Types a line that is not of the block, and returns what it said."""
        self._type(line)
        until = time.monotonic() + limit_s
        while self._typing:
            assert time.monotonic() < until, f"{line}\n{self.words()}"
            self._look()
            time.sleep(_PAUSE_S)
        return self.done[line]

    def has_ended(self, command: str) -> bool:
        """Whether each line of the block that begins with a command was typed and has ended; yes where none does."""
        return not any(line.startswith(command) for line in (*self.lines, self._typing))

    @property
    def busy(self) -> bool:
        return bool(self._typing or self.lines)

    def words(self) -> str:
        return f"--- {self.name}\n{self.log.read_text(errors='replace')[-6000:]}"

    def end(self) -> None:
        """Ends the shell; what it left in the background is somebody else's affair."""
        with suppress(OSError):
            self._keys.close()
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()

    def _type(self, line: str) -> None:
        self._typing, self._begun, self._from, self._count = line, time.monotonic(), self.log.stat().st_size, self._count + 1
        self._keys.write(f"{line}\necho $? > {self._ended}.part; mv {self._ended}.part {self._ended}\n")
        self._keys.flush()

    @property
    def _ended(self) -> Path:
        return self.scratch / f"ended-{self._count}"

    def _look(self) -> None:
        assert self._shell.poll() is None, f"the shell ended\n{self.words()}"
        if not self._ended.exists():
            return
        line, self._typing = self._typing, ""
        with self.log.open("rb") as log:
            log.seek(self._from)
            self.done[line] = log.read().decode("utf-8", "replace")
        self.seconds[line] = time.monotonic() - self._begun
        code = int(self._ended.read_text())
        assert code == 0, f"'{line}' ended with {code}\n{self.words()}"
        if " -m venv " in line:
            self._lend()

    def _lend(self) -> None:
        """Lets the new environment see packages of this machine, and Flower's programs: what a newcomer gets from a package index."""
        environment = self.desk / ".venv"
        (place,) = (environment / "lib").glob("python*/site-packages")
        (place / "lent.pth").write_text(f"import sys; sys.path.insert(-1, {str(self.lent)!r})\n")  # before the environment's own
        for entry in importlib.metadata.distribution("flwr").entry_points.select(group="console_scripts"):
            program = environment / "bin" / entry.name
            program.write_text(
                f"#!{environment}/bin/python3\nimport sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n"
            )
            program.chmod(0o755)


def lend(folder: Path) -> Path:
    """A folder with everything that is installed beside this test, but for isthmus and pip."""
    folder.mkdir()
    for place in {Path(sysconfig.get_paths()[name]) for name in ("purelib", "platlib")}:
        for path in place.iterdir():
            if not _NOT_LENT.match(path.name):
                (folder / path.name).symlink_to(path)
    return folder


def checkout(repository: Path, folder: Path) -> Path:
    """What a clone would bring, as it is now: files that are under version control, or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=repository, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (repository / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, folder / name)
    return folder


# --- both in step ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """One file on its way from one desk to another."""

    after: str
    giver: Side
    source: str
    receiver: Side
    target: Path

    def run(self) -> bool:
        """Hands the file over if it is time; whether it is there now."""
        if self.target.exists():
            return True
        if not self.giver.has_ended(self.after.removeprefix("every ").strip("`")):
            return False
        found = sorted(self.giver.desk.glob(self.source))
        if not found:
            return False
        assert len(found) == 1, f"which of {[path.name for path in found]}?"
        part = self.target.with_name(f".{self.target.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found[0], part)
        part.rename(self.target)
        return True


def errands(handed: Sequence[Handed], sides: dict[str, Side]) -> Iterator[Errand]:
    """The table, for both partners."""
    domains = [name for name in sides if name != COORDINATOR]
    for me, other in (domains, domains[::-1]):
        for row in handed:
            places = {"coordinator": COORDINATOR, "partner": me, "the other partner": other}
            giver, receiver = sides[places[row.giver]], sides[places[row.receiver]]
            source, target = spoken_by(row.file, me, other), spoken_by(row.kept, me, other)
            yield Errand(after=row.after, giver=giver, source=source, receiver=receiver, target=receiver.desk / target)


def walk(sides: dict[str, Side], handed: Sequence[Handed], limit_s: float) -> None:
    """Every side types its lines as soon as the files that they name are there."""
    until = time.monotonic() + limit_s
    errand = list(errands(handed, sides))
    kept = {name: [str(one.target.relative_to(side.desk)) for one in errand if one.receiver is side] for name, side in sides.items()}
    while any(side.busy for side in sides.values()):
        assert time.monotonic() < until, "\n".join(side.words() for side in sides.values())
        for one in errand:
            one.run()
        for name, side in sides.items():
            side.step(kept[name])
        time.sleep(_PAUSE_S)
    assert all(one.run() for one in errand), [str(one.target) for one in errand if not one.target.exists()]
