"""Every combination of values is a valid recipe of its own, and what makes none is refused before anything is trained.

pytest tests/recipe/test_combine.py
"""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import RecipeError, UsageError
from tunesmith.recipe.combine import MOST, combine

SAID = {"name": "tiny", "base": "pypi:nobody", "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "method": {"type": "lora", "rank": 4}, "train": {"learning_rate": 0.001}}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(SAID))
    return path


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 512), min_size=2, max_size=8, unique=True),
       st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8, unique=True))
def test_combinations_are_the_product_and_each_is_the_recipe_with_its_values(recipe, ranks, rates):
    original, made = combine(recipe, [f"method.rank={','.join(map(str, ranks))}",
                                      f"train.learning_rate={','.join(map(str, rates))}"])
    assert [tuple(m.values.values()) for m in made] == [(r, e) for r in ranks for e in rates]
    for one in made:
        rank, rate = one.values.values()
        assert one.said == SAID | {"method": SAID["method"] | {"rank": rank}, "train": {"learning_rate": rate}}
        expected = original.recipe.model_dump(mode="json")
        expected["method"]["rank"], expected["train"]["learning_rate"] = rank, rate
        assert one.recipe.model_dump(mode="json") == expected


@pytest.mark.parametrize(("given", "values"), [
    ("train.learning_rate=1e-4,2e-4", [1e-4, 2e-4]),
    ("method.targets=all-linear,[q_proj, v_proj]", ["all-linear", ["q_proj", "v_proj"]]),
    ("method={type: ia3},{type: lora, rank: 2}", [{"type": "ia3"}, {"type": "lora", "rank": 2}]),
    ("train.max_steps=null,5", [None, 5]),
    ("method.rslora=true,false", [True, False]),
    ("train.checkpoint.keep=1,2", [1, 2]),
])
def test_values_are_written_as_in_a_recipe(recipe, given, values):
    _, made = combine(recipe, [given])
    assert [next(iter(m.values.values())) for m in made] == values
    assert len({json.dumps(m.recipe.model_dump(mode="json"), sort_keys=True) for m in made}) == 2


@pytest.mark.parametrize(("given", "kind", "words"), [
    (["method.rnk=1,2"], RecipeError, "did you mean 'rank'"),
    (["metod.rank=1,2"], RecipeError, "did you mean 'method'"),
    (["method.rank=1,many"], RecipeError, "method.rank=many makes no valid recipe"),
    (["method.rank=0,2"], RecipeError, "greater than or equal to 1"),
    (["method.type=lora,ia3"], RecipeError, "method.rank: no such key"),
    (["base.size=1,2"], RecipeError, "base is pypi:nobody"),
    (["method.rank=4"], UsageError, "one combination"),
    ([], UsageError, "nothing is varied"),
    (["method.rank=4,4"], UsageError, "are the same"),
    (["train.learning_rate=1e-4,0.0001"], UsageError, "are the same"),
    (["method.rank"], UsageError, "is not KEY=VALUE,VALUE"),
    (["method.rank="], UsageError, "is not KEY=VALUE,VALUE"),
    (["method.rank=[1,2"], UsageError, "no list of values"),
    (["method.rank=1,2", "method.rank=4,8"], UsageError, "given twice"),
    (["eval.samples=1,2"], UsageError, "changes nothing of what is trained"),
    (["gates.target.metric=loss,exact_match"], UsageError, "changes nothing"),
    (["name=a,b"], UsageError, "changes nothing"),
    ([f"train.seed={','.join(map(str, range(MOST + 1)))}"], UsageError, "65 combinations are too many"),
    (["train.seed=1,2,3,4,5,6,7,8,9", "method.rank=1,2,3,4,5,6,7,8"], UsageError, "72 combinations are too many"),
])
def test_what_cannot_be_swept_is_refused_with_exit_code_2(recipe, given, kind, words):
    with pytest.raises(kind) as refused:
        combine(recipe, given)
    assert words in refused.value.render() and refused.value.exit_code == 2


def test_control_as_many_as_are_allowed_are(recipe):
    assert len(combine(recipe, [f"train.seed={','.join(map(str, range(MOST)))}"])[1]) == MOST
