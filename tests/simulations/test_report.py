import math
import re
from html.parser import HTMLParser

import pytest

from shared.errors import RunFolderError
from simulations import tables
from simulations.bootstrap import Interval
from simulations.comparison import FinishedRun, compare
from simulations.findings import finding
from simulations.metrics import DomainPrivacy
from simulations.ranks import METHODS
from simulations.report import render, write_report
from simulations.run_folder import RunFolder
from simulations.tensorboard import write_tensorboard

from .run_folder_fixture import DOMAINS, STRENGTH, planted_folder

WITHOUT_EFFECT = dict.fromkeys(STRENGTH, 0.15)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return planted_folder(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def page(folder):
    return write_report(folder).read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element with its attributes, and what was left open."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def test_the_page_is_one_file_that_asks_no_network(page):
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    assert "<script" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_the_page_is_well_formed_and_accessible(page):
    elements = Elements(page)
    assert not elements.open
    assert elements.all("html") == [{"lang": "en"}]
    assert "<title>isthmus report: planted, seed 0</title>" in page
    figures = elements.all("svg")
    assert len(figures) == 4  # two directions, epsilon, bytes
    assert all(one["role"] == "img" and one["aria-label"] for one in figures)
    assert len(elements.all("caption")) == len(elements.all("table"))
    ids = [attrs["id"] for _, attrs in elements.found if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_names_every_method_domain_and_status(page):
    for word in (*METHODS, *DOMAINS, "BENCHMARK", "NOT FOR RELEASE", "query.moments", "ceiling 8", "add or remove one user", "delta 1e-06"):
        assert word in page
    assert "NOT PRIVATE.</span>" not in page


def test_the_page_says_what_the_federation_brought(page):
    assert "The federation beat popularity in both directions, at epsilon 8 per domain. The gain is personal." in page


def test_a_federation_that_brought_nothing_is_said_to_have_brought_nothing(tmp_path):
    text = render(RunFolder(planted_folder(tmp_path / "run", strength=WITHOUT_EFFECT, seed=3)))
    assert "The federation brought nothing over popularity in any of 2 directions" in text
    assert "personal gain" not in text


def test_a_harmful_federation_is_said_to_be_worse(tmp_path):
    text = render(RunFolder(planted_folder(tmp_path / "run", strength=STRENGTH | {"federated": 0.02})))
    assert "In 2 it did worse than popularity." in text
    assert "The federation is worse than popularity" in text


@pytest.mark.parametrize(("epsilon", "noise"), [(math.inf, "none"), (8.0, "seeded"), (8.0, "none")])
def test_a_run_that_is_not_private_says_so_and_shows_no_budget_plot(tmp_path, epsilon, noise):
    text = render(RunFolder(planted_folder(tmp_path / "run", epsilon=epsilon, noise=noise)))
    assert '<span class="stop">NOT PRIVATE.</span>' in text
    assert "<li>NOT PRIVATE</li>" in text
    assert "Epsilon spent, by round" not in text


@pytest.mark.parametrize("missing", ["config.toml", "metrics.json", "rounds.jsonl"])
def test_a_partial_folder_is_refused_by_the_name_of_what_it_lacks(tmp_path, missing):
    folder = planted_folder(tmp_path / "run")
    (folder / missing).unlink()
    with pytest.raises(RunFolderError, match=re.escape(f"{missing} missing")):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="not a folder"):
        write_report(tmp_path / "nowhere")


def test_without_ranks_and_manifests_the_page_says_that_they_are_not_there(tmp_path):
    folder = planted_folder(tmp_path / "run")
    for path in [*(folder / "ranks").rglob("*.npz"), *(folder / "clients").rglob("egress.jsonl")]:
        path.unlink()
    text = render(RunFolder(folder))
    assert "there are no ranks of held-out items in this folder" in text
    assert "egress manifests are not in this folder" in text


def test_a_text_that_looks_like_html_stays_a_text(tmp_path):
    folder = planted_folder(tmp_path / "run")
    metrics = folder / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"1.41.0"', '"<script>alert(1)</script>"'))
    text = render(RunFolder(folder))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_line_that_a_crash_cut_short_is_passed_over(tmp_path):
    folder = planted_folder(tmp_path / "run")
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "seco')
    assert "<dt>rounds</dt><dd>3</dd>" in render(RunFolder(folder))


def test_tensorboard_reads_what_was_written_once_and_only_once(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_tensorboard(folder)
    write_tensorboard(folder)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("epsilon/books")] == [1, 2, 3]
    assert events.Scalars("epsilon/books")[-1].value == pytest.approx(7.2)
    assert "books to films: hr@10/federated" in events.Tags()["scalars"]


@pytest.mark.parametrize(
    ("pld", "prv", "rdp", "verdict"),
    [
        (4.766, 4.770, 5.1, "agree"),
        (4.766, 4.82, 5.1, "NOT VERIFIED"),  # .054 apart, more than .02 and 1 %
        (4.766, 4.766, 4.7, "NOT VERIFIED"),
        (4.766, math.nan, 5.1, "NOT VERIFIED"),
    ],
)
def test_no_number_is_called_verified_unless_the_accountants_agree(pld, prv, rdp, verdict):
    assert tables.accountants(DomainPrivacy(epsilon=pld, delta=1e-5, ceiling=8.0, pld=pld, prv=prv, rdp=rdp, events=1)) == verdict


def test_rows_say_what_protects_their_users():
    said = {method: tables.guarantee(method, epsilon=2.0, private=True) for method in METHODS}
    assert said["federated"] == said["target-only"] == said["federated-shuffled"] == "epsilon 2"
    assert said["pooled-ridge"] == "NOT PRIVATE"
    assert said["popularity"] == "exact, stays at home"
    assert tables.guarantee("federated", epsilon=math.inf, private=False) == "NOT PRIVATE"
    assert tables.guarantee("something new", epsilon=2.0, private=True) == "NOT PRIVATE"


def test_a_figure_that_does_not_exist_is_a_dash():
    nothing = Interval(mean=math.nan, low=math.nan, high=math.nan)
    assert (tables.metric_number("hr@10", nothing.mean), tables.interval_text("hr@10", nothing)) == ("-", "")


def test_runs_of_several_seeds_are_pooled_by_person(tmp_path, generator):
    folders = [planted_folder(tmp_path / f"run-{seed}", seed=seed) for seed in (0, 1, 2)]
    found = compare(folders, generator=generator)
    values = found.to_json()
    first = next(r for r in found.results if r.source == "books")
    assert (first.n_seeds, first.n_users) == (3, 900)
    one = FinishedRun.read(folders[0]).metrics.direction("books", "films").methods["federated"]["hr@10"]
    pooled = first.methods["federated"]["hr@10"]
    assert pooled.high - pooled.low < one.high - one.low
    assert finding(first).verdict == "personal gain"
    assert set(values["directions"][0]["methods"]["federated"]["hr@10"]) == {"mean", "low", "high", "n_seeds"}
    assert {"a", "b", "mean", "low", "high"} <= set(values["differences"][0])
    assert [run["seed"] for run in values["runs"]] == [0, 1, 2]


def test_methods_without_an_effect_beat_nothing(tmp_path, generator):
    folders = [planted_folder(tmp_path / f"run-{seed}", seed=seed, strength=WITHOUT_EFFECT) for seed in (0, 1)]
    [first, *_] = compare(folders, generator=generator).results
    assert all(difference.does_not_beat for difference in first.differences["hr@10"])


def test_the_same_run_twice_is_refused(tmp_path, generator):
    folders = [planted_folder(tmp_path / name) for name in ("a", "b")]
    with pytest.raises(RunFolderError, match="repeats"):
        compare(folders, generator=generator)


def test_runs_with_other_methods_are_not_pooled(tmp_path, generator):
    fewer = {method: chance for method, chance in STRENGTH.items() if method != "pooled-ridge"}
    folders = [planted_folder(tmp_path / "a"), planted_folder(tmp_path / "b", seed=1, strength=fewer)]
    with pytest.raises(RunFolderError, match="different methods"):
        compare(folders, generator=generator)


@pytest.fixture
def generator():
    import numpy as np

    return np.random.default_rng(0)
