"""The page of the officer's report: one file, well formed, in which nothing that stood in a file speaks with the page's own voice."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.privacy import report, report_page
from shared.privacy.report_about import FIELDS, read_about
from tests.shared.privacy.reported import Partner, built

HOSTILE = "<script>alert(1)</script><img src=x onerror=\"alert('2')\"> & co"
SECTIONS = ("words", "persons", "claim", "identity", "deployment", "unprotected", "implementation", "utility", "risk", "check")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report on a bookshop whose ledger is signed, tested, receipted and complete."""
    return built(Partner(folder=tmp_path_factory.mktemp("whole")).begun().ran().tested().evidence())


@pytest.fixture(scope="module")
def page(whole: dict[str, Any]) -> str:
    return report.render(whole)


class Elements(HTMLParser):
    """Every element with its attributes, and what was left open."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]


def test_the_page_is_one_file_that_asks_no_network(page: str) -> None:
    elements = Elements(page)
    assert not elements.all("script")
    assert not elements.all("img")
    loaded = [
        value for _, attrs in elements.found for name, value in attrs.items() if name in ("src", "href", "xlink:href", "data", "action")
    ]
    assert [value for value in loaded if not str(value).startswith(("#", "data:,"))] == []
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert {attrs.get("content") for attrs in elements.all("meta")} >= {"default-src 'none'; style-src 'unsafe-inline'; img-src data:"}


def test_the_page_is_well_formed_and_named_for_everybody(page: str) -> None:
    elements = Elements(page)
    assert not elements.open
    assert elements.all("html") == [{"lang": "en"}]
    drawn = [one for one in elements.all("svg") if one.get("role") == "img"]
    assert len(drawn) == 1
    assert "Epsilon spent in books over its events" in str(drawn[0]["aria-label"])
    assert len(elements.all("caption")) == len(elements.all("table"))
    ids = [attrs["id"] for _, attrs in elements.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert set(SECTIONS) <= set(ids)
    anchors = [str(attrs["href"])[1:] for attrs in elements.all("a")]
    assert set(anchors) <= set(ids)


def test_letters_of_a_plot_are_text_and_lines_are_named_beside(page: str) -> None:
    drawn = page[page.index('<svg role="img"') : page.index("</figure>")]
    assert re.findall(r"<text[^>]*>([^<]+)</text>", drawn)
    assert "genesis ceiling 8" in drawn
    assert "stroke-dasharray" in drawn  # told apart without colour


def test_a_page_from_its_json_is_the_same_page(whole: dict[str, Any], page: str) -> None:
    assert report.render(json.loads(json.dumps(whole, allow_nan=False))) == page


def test_texts_of_files_stay_texts(tmp_path: Path) -> None:
    partner = Partner(folder=tmp_path, domain=f"<b>{HOSTILE}</b>", set_by=HOSTILE, name="books").begun()
    partner.raised(by=HOSTILE, why=HOSTILE)
    about = tmp_path / "about.toml"
    about.write_text("".join(f"{name} = '''{HOSTILE}'''\n" for name in FIELDS))
    text = report.render(built(partner.evidence(receipts=False), about=read_about(about)))
    elements = Elements(text)
    assert not elements.open
    assert not [tag for tag in ("script", "img", "b") if elements.all(tag)]
    assert not [name for _, attrs in elements.found for name in attrs if name.startswith("on")]
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= len(FIELDS) + 3


def test_a_page_with_a_hundred_runs_and_tests_stays_short(tmp_path: Path, whole: dict[str, Any]) -> None:
    many = json.loads(json.dumps(whole))
    domain = many["domains"][0]
    domain["mechanism"]["runs"] *= 100
    domain["code"]["tests"] *= 100
    domain["code"]["trained"] *= 90
    text = report_page.page(many)
    assert f"the last {report_page.MOST_RUNS} of 100" in text
    assert f"the last {report_page.MOST_RUNS} of 90" in text
    assert f"the last {report_page.MOST_TESTS} of 200" in text


# --- what only people know ---------------------------------------------------------------------------------------------------------------
def test_what_nobody_stated_is_not_invented(whole: dict[str, Any], page: str) -> None:
    about = whole["domains"][0]["about"]
    assert {value for fields in about.values() for value in fields.values()} == {None}
    rows = "".join(re.findall(r'<dt>not stated</dt><dd class="missing">(.*?)</dd>', page))
    assert all(f">{name.replace('_', ' ')}</span>" in rows for name in FIELDS if name != "preprocessing")


def test_a_domain_speaks_for_itself_before_all_of_them(tmp_path: Path) -> None:
    about = tmp_path / "about.toml"
    about.write_text('contact = "everybody"\nretention = "two years"\n[domain.books]\ncontact = "the bookshop"\n')
    domain = built(Partner(folder=tmp_path).begun().ran().evidence(), about=read_about(about))["domains"][0]
    assert (domain["about"]["identity"]["contact"], domain["about"]["risk"]["retention"]) == ("the bookshop", "two years")
    assert domain["about"]["identity"]["purpose"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('contakt = "x"', "Did you mean 'contact'"),
        ("contact = 7", "'contact' is not a text"),
        ('contact = ""', "'contact' is not a text"),
        ('[domain.books]\ncontroler = "x"', "unknown field 'domain.books.controler'"),
        ('domain = "books"', "table of tables"),
        ("contact", "is not TOML"),
    ],
)
def test_a_file_about_the_domain_that_is_wrong_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "about.toml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_about(tmp_path / "about.toml")
    assert said in str(refused.value)


def test_a_domain_that_is_not_reported_cannot_be_spoken_for(tmp_path: Path) -> None:
    (tmp_path / "about.toml").write_text('[domain.films]\ncontact = "x"\n')
    with pytest.raises(ConfigError, match="speaks of 'films'"):
        built(Partner(folder=tmp_path).begun().ran().evidence(), about=read_about(tmp_path / "about.toml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_about(tmp_path / "nowhere.toml")
