import json

import pytest

from shared.errors import ConfigError, RunFolderError
from simulations.cli_options import varied_from
from simulations.compare_runs import Plan
from simulations.run_slots import Wanted, claim, finished_in, held, read_slot, slot_of, unfinished_in
from simulations.variants import ENCODER, METHOD, Variant, product, varied

BASE = {METHOD: "residual", ENCODER: "attention", "model.rank": 8}


def plan(tmp_path, **axes):
    return Plan(scenario="demo", folder=tmp_path, epsilons=(8.0,), seeds=(0,), axes=axes)


def test_a_combination_is_named_by_what_is_varied_and_nothing_else():
    maml, deep = Variant.of({METHOD: "maml", ENCODER: "attention"}), Variant.of({METHOD: "maml", ENCODER: "transformer"})
    assert varied([maml, deep]) == [ENCODER]
    assert [variant.words(varied([maml, deep])) for variant in (maml, deep)] == ["attention", "transformer"]
    assert (
        Variant.of({METHOD: "maml", "training.learning_rate": 0.1}).words([METHOD, "training.learning_rate"]) == "maml, learning_rate 0.1"
    )


def test_every_combination_of_the_axes_is_a_variant():
    found = product({METHOD: ["residual", "maml"], "model.rank": [4, 8, 16]})
    assert len(found) == 6
    assert {METHOD: "maml", "model.rank": 16} in found


def test_a_plan_resolves_every_variant_and_drops_what_is_named_twice(tmp_path):
    [one] = plan(tmp_path, **{METHOD: ["residual", "residual"]}).variants()
    assert (one.get(METHOD), one.get(ENCODER)) == ("residual", "attention")
    pair = plan(tmp_path, **{METHOD: ["residual", "maml"]}).variants()
    assert [variant.get(METHOD) for variant in pair] == ["residual", "maml"]


def test_as_many_seeds_are_run_together_as_there_are_jobs(tmp_path):
    several = Plan(scenario="demo", folder=tmp_path, epsilons=(8.0, 2.0), seeds=(0, 1, 2), axes={}, jobs=2)
    found = [(one.epsilon, one.seed) for one in several.wanted()]
    assert found == [(8.0, 0), (8.0, 1), (2.0, 0), (2.0, 1), (8.0, 2), (2.0, 2)]  # a seed's second run finds what its first one kept


def test_a_value_that_the_configuration_refuses_is_said_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.method"):
        plan(tmp_path, **{METHOD: ["resdual"]}).wanted()


def test_naming_a_default_makes_no_second_run(tmp_path):
    named = Wanted(epsilon=8.0, seed=0, variant=Variant.of(BASE))
    unnamed = Wanted(epsilon=8.0, seed=0)
    claim(slot_of(tmp_path, named, BASE), named)
    assert slot_of(tmp_path, unnamed, BASE) == slot_of(tmp_path, named, BASE)
    other = Wanted(epsilon=8.0, seed=0, variant=Variant.of(BASE | {METHOD: "maml"}))
    assert slot_of(tmp_path, other, BASE) != slot_of(tmp_path, named, BASE)
    assert slot_of(tmp_path, Wanted(epsilon=2.0, seed=0), BASE) != slot_of(tmp_path, named, BASE)


def test_a_slot_says_what_it_is_for(tmp_path):
    wanted = Wanted(epsilon=float("inf"), seed=3, variant=Variant.of(BASE | {METHOD: "maml"}))
    slot = slot_of(tmp_path, wanted, BASE)
    claim(slot, wanted)
    assert read_slot(slot) == wanted
    assert slot.name.startswith("maml-attention-rank-8-epsnone-seed3-")
    (slot / "slot.json").write_text(json.dumps({"epsilon": 8}))
    with pytest.raises(RunFolderError, match=r"slot\.json is not what isthmus wrote"):
        read_slot(slot)


def test_a_run_is_finished_when_its_metrics_are_there(tmp_path):
    for name, files in {"20260101-a": ("config.toml", "metrics.json"), "20260102-b": ("config.toml",), "20260103-c": ()}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("")
    assert [path.name for path in finished_in(tmp_path)] == ["20260101-a"]
    assert [path.name for path in unfinished_in(tmp_path)] == ["20260102-b"]


def test_two_processes_never_work_in_one_folder(tmp_path):
    with held(tmp_path), pytest.raises(RunFolderError, match="another process works"), held(tmp_path, wait_s=0.0):
        pytest.fail("the lock was given twice")
    with held(tmp_path, wait_s=0.0):
        pass  # and it is free again


def test_values_that_a_key_takes_in_turn_are_read_as_toml():
    assert varied_from(["model.rank=4,8", "model.sharing=shared"]) == {"model.rank": [4, 8], "model.sharing": ["shared"]}
