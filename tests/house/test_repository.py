"""Rules of the repository itself: sizes, names, and what may not stand in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

LONGEST_FILE = 400
LONGEST_FUNCTION = 60
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "base", "manager", "helpers", "core", "misc"}

MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:work|opt|root|home|Users|mnt|srv|private)/\w")
INDEX_OPTION = re.compile(r"--(?:extra-)?index[-]url|--find[-]links|--trusted[-]host|file:/{3}")
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E|X[X]X|HA[C]K)\b")
OVERCLAIM = re.compile(r"cryptographically\s+secure\s+(?:DP|differential)", re.IGNORECASE)
HOST = re.compile(r"https?://([\w.-]+)")
# Everything that may be linked to. A package index is not among them: where packages come from is the reader's own choice.
HOSTS = {
    "127.0.0.1", "localhost",
    "flower.ai", "opacus.ai", "github.com", "keepachangelog.com", "semver.org", "www.apache.org", "arxiv.org", "doi.org",
    "www.w3.org", "csrc.nist.gov", "nvlpubs.nist.gov", "jmlr.org", "proceedings.mlr.press",
}  # fmt: skip


def texts(repository: Path, tracked: list[Path]) -> dict[Path, str]:
    return {file: (repository / file).read_text(encoding="utf-8") for file in tracked if file.suffix != ".png"}


@pytest.mark.parametrize(
    ("rule", "caught", "allowed"),
    [
        (MACHINE_PATH, "see /ho" + "me/ann/x", "the folder client/home/x, or /runs/"),
        (INDEX_OPTION, "pip install --index" + "-url x", "an index"),
        (UNFINISHED, "# TO" + "DO: later", "todos los libros"),
        (OVERCLAIM, "cryptographically" + " secure DP", "noise from the operating system"),
    ],
)
def test_a_forbidden_text_stands_nowhere(repository: Path, tracked: list[Path], rule: re.Pattern[str], caught: str, allowed: str) -> None:
    assert rule.search(caught), "the rule itself is blind"
    assert not rule.search(allowed), "the rule itself sees ghosts"
    found = [
        f"{file}:{number}"
        for file, text in texts(repository, tracked).items()
        for number, line in enumerate(text.splitlines(), 1)
        if rule.search(line)
    ]
    assert found == []


def test_links_go_to_known_hosts_only(repository: Path, tracked: list[Path]) -> None:
    found = {f"{file}: {host}" for file, text in texts(repository, tracked).items() for host in HOST.findall(text) if host not in HOSTS}
    # Names that a specification reserves for examples (RFC 2606) lead nowhere.
    assert {entry for entry in found if not re.search(r"\.(?:example|invalid|test)$", entry)} == set()


def test_no_file_of_code_is_longer_than_a_reader_can_hold(repository: Path, tracked: list[Path]) -> None:
    long = {str(f): n for f in tracked if f.suffix == ".py" and (n := len((repository / f).read_text().splitlines())) > LONGEST_FILE}
    assert long == {}


def test_no_function_is_longer_than_a_page(repository: Path, tracked: list[Path]) -> None:
    long = {}
    for file in (f for f in tracked if f.suffix == ".py"):
        for node in ast.walk(ast.parse((repository / file).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > LONGEST_FUNCTION:
                long[f"{file}:{node.lineno} {node.name}"] = body_lines(node)
    assert long == {}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def test_every_name_says_what_is_inside(tracked: list[Path]) -> None:
    assert [str(file) for file in tracked if {*file.parts[:-1], file.stem} & NAMES_THAT_SAY_NOTHING] == []


def test_the_top_level_is_the_one_that_was_agreed(tracked: list[Path]) -> None:
    assert {file.parts[0] for file in tracked} == {
        "client", "server", "shared", "simulations", "tests", ".ci", ".github", ".gitignore",
        "pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "NOTICE",
        "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "DECISIONS.md", "SECURITY.md",
    }  # fmt: skip


def test_no_data_set_and_no_binary_is_part_of_the_project(repository: Path, tracked: list[Path]) -> None:
    kinds = {".py", ".md", ".toml", ".txt", ".yml", ".j2", ".proto", ""}
    kit_kinds = {".service", ".timer", ".conf", ".nft"}  # what systemd and nftables read, in the kits of both sides and nowhere else
    old_formats = {Path("tests/shared/privacy/ledger_format_1.sql")}  # invented events, as text: what an upgrade must still read
    others = [file for file in tracked if file.suffix not in kinds and file.name != ".gitignore" and file not in old_formats]
    kits = (Path("client/deploy"), Path("server/deploy"))
    drawn = Path("simulations/results")  # the curves of RESULTS.md, as text
    strange = [
        str(file)
        for file in others
        if not (file.suffix in kit_kinds and file.parent in kits) and (file.suffix, file.parent) != (".svg", drawn)
    ]
    assert strange == []
    assert [str(file) for file in tracked if (repository / file).stat().st_size > 200_000] == []


def test_every_room_has_a_door_plate(repository: Path) -> None:
    for room in ("client", "server", "shared", "shared/privacy", "simulations", "tests"):
        assert (repository / room / "README.md").is_file(), room


def test_every_relative_link_of_a_page_leads_somewhere(repository: Path, tracked: list[Path]) -> None:
    broken = [
        f"{file} -> {target}"
        for file in tracked
        if file.suffix == ".md"
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (repository / file).read_text())
        if not (repository / file.parent / target).exists()
    ]
    assert broken == []


def test_each_silenced_check_says_which_one(repository: Path, tracked: list[Path]) -> None:
    blanket = re.compile(r"#\s*(?:type:\s*ignore(?!\[)|noqa(?!:\s*[A-Z]+\d+)|ruff:\s*noqa|mypy:\s*ignore-errors)")
    assert blanket.search("x  # no" + "qa")
    found = [
        f"{file}:{number}"
        for file in tracked
        if file.suffix == ".py"
        for number, line in enumerate((repository / file).read_text().splitlines(), 1)
        if blanket.search(line)
    ]
    assert found == []


def test_each_ignored_rule_and_each_excused_warning_has_its_reason_beside_it(repository: Path, project: dict[str, Any]) -> None:
    lines = (repository / "pyproject.toml").read_text().splitlines()
    for rule in project["tool"]["ruff"]["lint"]["ignore"]:
        (line,) = [line for line in lines if line.strip().startswith(f'"{rule}"')]
        assert re.search(r"#.*\w", line), rule
    warnings = project["tool"]["pytest"]["ini_options"]["filterwarnings"]
    assert warnings[0] == "error"
    start = next(number for number, line in enumerate(lines) if line.startswith("filterwarnings"))
    for warning in warnings[1:]:
        (number,) = [n for n, line in enumerate(lines[start:], start) if line.strip().strip("\"',").replace("\\\\", "\\") == warning]
        assert lines[number - 1].strip().startswith("#"), warning
