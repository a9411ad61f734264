"""compare.json, compare.md, compare.html and the pictures of a comparison of planted runs, whose right answer is known."""

import json
import math
import re

import pytest

from shared.errors import RunFolderError
from simulations.compare_runs import Plan, compare_finished_runs, compare_runs
from simulations.console import Console
from simulations.console_watch import Silence
from simulations.curves import pictures
from simulations.results import write_results
from simulations.variants import METHOD

from .run_folder_fixture import STRENGTH, planted_folder
from .test_report import Elements

WEAK = STRENGTH | {"federated": 0.2}
STRONG = STRENGTH | {"federated": 0.45}
MISLED = STRENGTH | {"federated": 0.9}
"""Validation people of the weak method: whoever looked at them alone would choose it, and cold people must not change that."""


class Planted:
    """Stands for minutes of training: `maml` finds more than `residual`; counts what it was asked for."""

    def __init__(self, *, validation=None):
        self.calls, self.validation = [], validation or {}

    def __call__(self, name, *, out, seed, progress, epsilon=None, overrides=None, with_target_only=True, **how):
        method = (overrides or {}).get(METHOD, "residual")
        self.calls.append((method, epsilon, seed))
        strength = STRONG if method == "maml" else WEAK
        if not with_target_only:
            strength = {row: chance for row, chance in strength.items() if row != "target-only"}
        folder = out / f"run-{len(self.calls)}"
        planted_folder(
            folder, seed=seed, epsilon=epsilon, n_users=120, strength=strength, method=method, validation=self.validation.get(method)
        )
        (folder / "scenario.json").write_text(json.dumps({"split_seed": seed, "target_only": with_target_only}))
        return folder


def plan_of(folder, **changes) -> Plan:
    values = {"scenario": "demo", "folder": folder, "epsilons": (math.inf, 2.0), "seeds": (0, 1), "axes": {METHOD: ("residual", "maml")}}
    return Plan(**(values | {"command": "isthmus-simulate compare demo"} | changes))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    return compare_runs(plan_of(folder), run_scenario=Planted(), watch=Silence()), folder


@pytest.fixture(scope="module")
def values(compared):
    return json.loads((compared[1] / "compare.json").read_text())


def test_every_figure_says_of_which_variant_it_is(values):
    assert values["schema"] == 2
    assert [variant["name"] for variant in values["variants"]] == ["residual", "maml"]
    assert {(run["variant"], run["epsilon_target"], run["seed"]) for run in values["runs"]} == {
        (variant, epsilon, seed) for variant in (0, 1) for epsilon in (None, 2.0) for seed in (0, 1)
    }
    federated = {d["variant"]: d["methods"]["federated"]["hr@10"]["mean"] for d in values["directions"] if d["epsilon"] == 2.0}
    assert federated[1] > federated[0] + 0.1


def test_variants_are_compared_on_the_same_people_in_each_direction_and_in_the_mean(values):
    hits = [c for c in values["contrasts"] if c["metric"] == "hr@10" and c["epsilon"] == 2.0]
    assert [(c["source"], c["target"]) for c in hits] == [("books", "films"), ("films", "books"), (None, None)]
    for contrast in hits:
        assert (contrast["a"], contrast["b"], contrast["beats"], contrast["n_seeds"]) == (1, 0, True, 2)
    ways = [c["mean"] for c in hits[:2]]
    assert hits[2]["mean"] == pytest.approx(sum(ways) / 2, abs=1e-6)


def test_the_mean_over_directions_is_that_of_the_directions(values):
    for overall in values["mean_over_directions"]:
        of = [d for d in values["directions"] if (d["variant"], d["epsilon"]) == (overall["variant"], overall["epsilon"])]
        means = [d["methods"]["federated"]["hr@10"]["mean"] for d in of]
        assert overall["methods"]["federated"]["hr@10"]["mean"] == pytest.approx(sum(means) / 2, abs=1e-6)
        assert overall["target"] is None


def test_federated_minus_target_only_stands_for_every_direction_and_their_mean_with_a_verdict(values, compared):
    of = [d for d in values["differences"] if (d["b"], d["metric"], d["variant"], d["epsilon"]) == ("target-only", "hr@10", 1, 2.0)]
    assert {(d["source"], d["target"]) for d in of} == {("books", "films"), ("films", "books"), (None, None)}
    assert all(d["beats"] and d["non_inferior"] for d in of)
    text = (compared[1] / "compare.md").read_text()
    section = text.split("## Federated minus target-only")[1].split("##")[0]
    assert len(re.findall(r"^\| (?:residual|maml) \|", section, re.MULTILINE)) == 12  # 2 variants, 2 epsilons, 2 directions and their mean


def test_a_star_stands_where_a_gain_is_more_than_chance_in_each_direction(compared):
    text = (compared[1] / "compare.md").read_text()
    section = text.split("## Gains by direction")[1].split("##")[0]
    assert "federated minus popularity | federated minus federated-shuffled" in section
    rows = [line for line in section.splitlines() if line.startswith("| maml | 2 |")]
    assert len(rows) == 3  # the mean over directions, and two directions
    assert all(len(re.findall(r"\+0\.\d+ \[\+0\.\d+ to \+0\.\d+\] ★", row)) == 5 for row in rows)


def test_the_choice_is_made_by_validation_people_even_against_cold_ones(tmp_path):
    runner = Planted(validation={"residual": MISLED})
    found = compare_runs(plan_of(tmp_path, epsilons=(2.0,)), run_scenario=runner, watch=Silence())
    [choice] = found.choices
    assert found.words(found.variants[choice.positions[choice.chosen]]) == "residual"
    text = (tmp_path / "compare.md").read_text()
    assert "Cold people play no part in it" in text
    assert re.search(r"epsilon 2: \*\*residual\*\*, ahead of all others by more than chance.*on cold people -0\.\d+", text)
    section = text.split("## Between variants, cold people")[1]
    assert re.search(r"\| 2 \| mean over directions \| residual minus maml \| -0\.\d+ \| -0\.\d+ to -0\.\d+ \| does not beat \|", section)


def test_every_table_has_its_caption_and_its_stamps(compared):
    comparison, folder = compared
    assert not comparison.private  # there are runs without privacy among them
    for page in ("compare.md", "compare.html"):
        text = (folder / page).read_text()
        for words in (
            "NOT FOR RELEASE",
            "selection and metrics on public benchmark data, not debited",
            "delta 1e-06",
            "unit: one user with all their interactions in one domain",
            "adjacency: add or remove one user",
            "isthmus-simulate compare demo",
        ):
            assert words in text, (page, words)


def test_the_page_is_one_whole_file_that_asks_no_network(compared):
    page = (compared[1] / "compare.html").read_text()
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    assert "<script" not in page
    elements = Elements(page)
    assert elements.open == []
    drawn = [attributes["aria-label"] for attributes in elements.all("svg")]
    assert len(drawn) == 3
    assert "residual: 0." in drawn[0]
    assert "maml: 0." in drawn[0]
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_pictures_lie_beside_the_pages_and_are_the_same_for_the_same_figures(compared):
    comparison, folder = compared
    names = {"mean-over-directions", "books-films", "films-books"}
    assert {path.name for path in (folder / "pictures").iterdir()} == {f"{name}.{ending}" for name in names for ending in ("svg", "png")}
    text = (folder / "compare.md").read_text()
    for name in names:
        assert f"(pictures/{name}.svg)" in text
    before = (folder / "pictures" / "books-films.svg").read_bytes()
    for picture in pictures(comparison):
        picture.write(folder / "pictures")
    assert (folder / "pictures" / "books-films.svg").read_bytes() == before


def test_everything_that_is_finished_in_a_folder_is_compared_whatever_call_made_it(tmp_path):
    runner = Planted()
    compare_runs(plan_of(tmp_path, axes={METHOD: ("residual",)}, seeds=(0, 1)), run_scenario=runner, watch=Silence())
    compare_runs(plan_of(tmp_path, axes={METHOD: ("maml",)}, epsilons=(2.0,), seeds=(1,)), run_scenario=runner, watch=Silence())
    assert len(runner.calls) == 5
    found = compare_finished_runs(tmp_path, watch=Silence())
    assert [found.words(variant) for variant in found.variants] == ["residual", "maml"]
    assert len(found.runs) == 5
    [contrast] = [c for c in found.contrasts if c.metric == "hr@10" and c.target is None]
    assert (contrast.epsilon, contrast.n_seeds) == (2.0, 1)  # the one seed that both have
    write_results(found, tmp_path, tmp_path / "page" / "RESULTS.md")
    assert (tmp_path / "page" / "results" / "books-films.svg").is_file()
    assert "results/books-films.svg" in (tmp_path / "page" / "RESULTS.md").read_text()


def test_target_only_is_left_out_where_it_is_not_asked_for_and_made_where_it_is(tmp_path):
    runner = Planted()
    found = compare_runs(plan_of(tmp_path, epsilons=(2.0,), target_only=("maml",)), run_scenario=runner, watch=Silence())
    measured = {(found.words(r.variant), "target-only" in r.methods) for r in found.results if r.source}
    assert measured == {("residual", False), ("maml", True)}
    compare_runs(plan_of(tmp_path, epsilons=(2.0,)), run_scenario=runner, watch=Silence())
    assert [call[0] for call in runner.calls[4:]] == ["residual", "residual"]  # maml has it already


def test_a_run_that_fails_stops_no_other_and_is_told_at_the_end(tmp_path):
    class Failing(Planted):
        def __call__(self, name, *, seed, overrides=None, **how):
            if METHOD in (overrides or {}) and seed == 0:
                raise RunFolderError("this one cannot be made")
            return super().__call__(name, seed=seed, overrides=overrides, **how)

    told = []
    watch = Silence()
    watch.note = told.append
    runner = Failing()
    with pytest.raises(RunFolderError, match="this one cannot be made"):
        compare_runs(plan_of(tmp_path, epsilons=(2.0,)), run_scenario=runner, watch=watch)
    assert sorted(call[0] for call in runner.calls) == ["maml", "residual", "residual"]
    assert told[-1] == "1 of 4 runs failed; the comparison is of the others"
    assert len(json.loads((tmp_path / "compare.json").read_text())["runs"]) == 3


def test_a_folder_whose_scenario_changed_is_refused(tmp_path):
    scenario = tmp_path / "mine.toml"
    scenario.write_text('[data]\nkind = "synthetic"\n[run]\nname = "mine"\n')
    plan = plan_of(tmp_path / "out", scenario=str(scenario), epsilons=(2.0,), seeds=(0,), axes={})
    compare_runs(plan, run_scenario=Planted(), watch=Silence())
    scenario.write_text('[data]\nkind = "synthetic"\n[run]\nname = "mine"\n[run.model]\nrank = 4\n')
    with pytest.raises(RunFolderError, match=r"another model\.rank"):
        compare_runs(plan, run_scenario=Planted(), watch=Silence())


def test_the_terminal_shows_who_was_chosen_and_whether_training_together_pays(compared, capfd):
    comparison, folder = compared
    Console().comparison(comparison, folder)
    out = " ".join(capfd.readouterr().out.split())
    assert "chosen on validation people, epsilon 2: maml" in out
    assert "federated minus target-only" in out
    assert "NOT FOR RELEASE" in out
    assert str(folder / "compare.html") in out
