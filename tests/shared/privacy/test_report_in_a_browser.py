"""The officer's page in a real browser: silent, alone, whole, and readable on a desk, on a phone and on paper.

Without a browser on the machine (one of `browser.NAMES`) these tests skip and say so; `test_report_page` checks the file itself everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.privacy import report
from tests.shared.privacy import browser
from tests.shared.privacy.reported import OTHER_CODE, Partner, built

pytestmark = pytest.mark.journey

DESK, PHONE, SMALL_PHONE = 1280, 375, 320
A4_PIXELS = 680  # 210 mm less twice 15 mm, at 96 pixels to 25.4 mm: 680.3
OVERFLOWING = """
[...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width > 1 && (box.right > document.documentElement.clientWidth + 1 || box.left < -1) && !e.closest(".scroll");
}).map(e => e.outerHTML.slice(0, 120))
"""
SCROLLING = (
    '[...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.getAttribute("aria-label"))'
)
CUT_TABLES = """
[...document.querySelectorAll("table")].filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.caption.innerText)
"""
SMALLEST = """
Math.min(...[...document.querySelectorAll("body *")]
  .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.getBoundingClientRect().width > 1)
  .filter(e => !e.closest("thead")).map(e => e.closest("svg[role=img]")
    ? parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getBoundingClientRect().width / e.ownerSVGElement.viewBox.baseVal.width
    : parseFloat(getComputedStyle(e).fontSize)))
"""
CONTRAST = """
[...document.querySelectorAll("body *")].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).map(e => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  let under = e;
  while (under && getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)") under = under.parentElement;
  const style = getComputedStyle(e), ink = e.closest("svg[role=img]") ? style.fill : style.color;
  const [a, b] = [light(ink), light(under ? getComputedStyle(under).backgroundColor : "rgb(255, 255, 255)")].sort((x, y) => y - x);
  return [(a + .05) / (b + .05), e.outerHTML.slice(0, 120)];
}).filter(([ratio]) => ratio < 4.5)
"""


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Page]:
    found = browser.find()
    if found is None:
        pytest.skip(f"no browser on this machine ({', '.join(browser.NAMES)}): the page was not looked at in one")
    with browser.running(found) as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page on one domain in order, one on two of which one has run twice, and one on a ledger that was changed."""
    folder = tmp_path_factory.mktemp("pages")
    homes = {name: folder / name for name in ("one", "two", "broken")}
    for home in homes.values():
        home.mkdir()
    one = Partner(folder=homes["one"]).begun().ran().tested()
    books = Partner(folder=homes["two"]).begun().ran(3, lost=1).tested().refused().raised().ran(2, run_id="winter", code=OTHER_CODE)
    long_name = "d" * 64  # as long as a name may be, and nowhere to break it
    films = Partner(folder=homes["two"], domain=long_name, name="films", set_by="y" * 300).begun().ran()
    broken = Partner(folder=homes["broken"]).begun().ran()
    evidence = broken.evidence()
    broken.path.write_bytes(broken.path.read_bytes().replace(b"the bookshop's", b"The bookshop's"))
    made = {
        "one": built(one.evidence()),
        "two": built(books.evidence(), films.evidence(without=1)),
        "broken": built(evidence),
    }
    assert [one["status"] for one in made.values()] == ["WITHIN BUDGET", "NOT VERIFIED", "NOT VERIFIED"]
    found = {}
    for name, record in made.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(report.render(record), encoding="utf-8")
    return found


NAMES = ("one", "two", "broken")


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_silent_and_asks_nobody(tab: browser.Page, pages: dict[str, Path], name: str) -> None:
    tab.open(pages[name], width=DESK)
    assert tab.said == []
    assert tab.asked == [pages[name].resolve().as_uri()]


@pytest.mark.parametrize("name", NAMES)
def test_every_section_is_there_and_can_be_seen(tab: browser.Page, pages: dict[str, Path], name: str) -> None:
    tab.open(pages[name], width=DESK)
    seen = tab.evaluate('[...document.querySelectorAll("h2")].filter(e => e.getBoundingClientRect().height > 0).map(e => e.innerText)')
    said = "\n".join(seen)
    fixed = ("In plain words", "A person in several domains", "The claim in full", "Identity", "Deployment model", "What is not protected")
    for words in (*fixed, "Implementation and security", "Utility", "Residual risk, and people's rights", "Check it yourself"):
        assert words in said
    assert sum(heading.startswith("Domain ") for heading in seen) == (2 if name == "two" else 1)
    letters = tab.evaluate('[...new Set([...document.querySelectorAll(".letter")].map(e => e.innerText))].sort().join("")')
    assert letters == "ABCDEFGHI"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [PHONE, SMALL_PHONE])
def test_the_page_is_read_on_a_phone_without_moving_it_sideways(tab: browser.Page, pages: dict[str, Path], name: str, width: int) -> None:
    tab.open(pages[name], width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(OVERFLOWING) == []
    assert tab.evaluate(SCROLLING) == [], "tables become cards"
    assert tab.evaluate(SMALLEST) >= (9.0 if width == PHONE else 7.5)


@pytest.mark.parametrize("name", NAMES)
def test_text_stands_out_from_its_ground(tab: browser.Page, pages: dict[str, Path], name: str) -> None:
    tab.open(pages[name], width=DESK)
    assert tab.evaluate(CONTRAST) == []


@pytest.mark.parametrize(("name", "least", "most"), [("one", 5, 10), ("two", 9, 18), ("broken", 3, 7)])
def test_the_page_is_printed_on_a4_whole(
    tab: browser.Page, pages: dict[str, Path], tmp_path: Path, name: str, least: int, most: int
) -> None:
    tab.open(pages[name], width=A4_PIXELS, height=1000)
    tab.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert tab.evaluate("document.documentElement.scrollWidth") <= A4_PIXELS
        assert tab.evaluate(OVERFLOWING) == []
        assert tab.evaluate(CUT_TABLES) == [], "no table is cut at the right"
        heads = '[...document.querySelectorAll("thead")].every(e => getComputedStyle(e).display === "table-header-group")'
        assert tab.evaluate(heads), "they repeat on the next sheet"
        rows = '[...document.querySelectorAll("tr, figure, .status")].every(e => getComputedStyle(e).breakInside === "avoid")'
        assert tab.evaluate(rows), "no row and no plot is cut in two"
    finally:
        tab.call("Emulation.setEmulatedMedia", media="")
    pdf = tab.pdf(tmp_path / "page.pdf")
    sizes = {tuple(round(float(size)) for size in found) for found in re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)}
    assert sizes == {(595, 842)}
    assert least <= len(re.findall(rb"/Type /Page\b", pdf)) <= most


def test_what_these_tests_look_for_would_be_seen(tab: browser.Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><body style='margin:0'>"
        "<div style='width:900px'>wide</div><p style='font-size:5px;color:#ddd'>faint</p>"
        "<div class=scroll aria-label=table style='overflow-x:auto;width:99px'><div style='width:200px'>x</div></div>"
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('no'); nobody()</script>"
    )
    tab.open(bad, width=PHONE)
    assert "http://127.0.0.1:9/x.png" in tab.asked
    assert any("nobody" in line for line in tab.said)
    assert any("console" in line or '"no"' in line for line in tab.said)
    assert tab.evaluate("document.documentElement.scrollWidth") > PHONE
    assert len(tab.evaluate(OVERFLOWING)) == 1
    assert tab.evaluate(SCROLLING) == ["table"]
    assert tab.evaluate(SMALLEST) == 5
    assert any("faint" in text for _, text in tab.evaluate(CONTRAST))
