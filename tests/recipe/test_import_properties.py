"""Whatever a file says with keys that a tool knows: a recipe that loads and a full account of the keys, or mistakes with lines.

    python -m pytest tests/recipe/test_import_properties.py
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.recipe.foreign.convert import TOOLS, import_recipe
from tunesmith.recipe.foreign.rules import Copy, Joint
from tunesmith.recipe.load import parse

FILES = sorted((Path(__file__).parent / "foreign").glob("*.yaml"))
NESTED = ("datasets", "test_datasets")
NEEDED = {
    "axolotl": {"base_model": "owner/name", "learning_rate": 1e-4, "adapter": "lora", "datasets": [{"path": "a/b", "type": "alpaca"}]},
    "llamafactory": {"model_name_or_path": "owner/name", "dataset": "x", "stage": "sft"},
}
SCALARS = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 2, 64, -1, 0.1, 1e-4, 1.5, 10**30, float("inf"), float("nan"), "", "auto", "cosine",
                     "constant", "none", "epoch", "no", "steps", "lora", "sft", "2e-4", "a, b", "./x", "owner/name", "~", "é\x85\u2028",
                     "# x", "a: b", "{{ x }}"]),
    st.text(max_size=8), st.integers(), st.floats())
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                      max_leaves=5)
DATASET = st.dictionaries(st.sampled_from(["path", "type", "split", "data_files", "field_messages", "revision", "roles_to_train", "shards",
                                           "chat_template", "message_property_mappings", "ds_type", "nonsense"]), VALUES, max_size=5)


def keys_of(values: dict[str, Any]) -> Counter:
    """What has to be accounted for: every key, and every key of every dataset."""
    found: Counter = Counter()
    for key, value in values.items():
        if key in NESTED and isinstance(value, list) and value:
            found.update(f"{key}[{i}].{k}" for i, entry in enumerate(value) for k in entry)
        else:
            found[key] += 1
    return found


def accounted(made: dict) -> Counter:
    return Counter([m["from"] for m in made["mapped"]] + [u["key"] for u in made["unsupported"] if u["line"] is not None] +
                   [i["key"] for i in made["ignored"]])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_key_of_a_fixture_is_in_exactly_one_list(path):
    assert accounted(import_recipe(path)) == keys_of(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", TOOLS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_values_of_known_keys_give_a_recipe_or_mistakes_with_lines(name, data, tmp_path):
    keys = sorted(TOOLS[name].rules())
    joint = sorted(k for k, r in TOOLS[name].rules().items() if isinstance(r, Joint | Copy))
    more = data.draw(st.dictionaries(st.one_of(st.sampled_from(joint), st.sampled_from(keys)), VALUES, max_size=6))
    if name == "axolotl" and data.draw(st.booleans()):
        more["datasets"] = data.draw(st.lists(DATASET.map(lambda d: {"path": "o/n", **d}), min_size=1, max_size=2))
    values = NEEDED[name] | more
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8", errors="backslashreplace")
    try:
        made = import_recipe(path, tool=name)
    except RecipeError as error:
        assert error.exit_code == 2 and error.where and (error.problems or error.fix)
        assert all(p.where and p.where.startswith(str(path)) and p.message for p in error.problems)
        json.dumps(error.as_dict(), allow_nan=False).encode()
        return
    parse(made["recipe"])
    json.dumps(made, allow_nan=False).encode()
    assert accounted(made) == keys_of(values)
    assert all(u["why"] and u["consequence"] and u["fix"] for u in made["unsupported"])


@pytest.mark.parametrize("name", TOOLS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_key_that_is_not_known_is_never_passed_over(name, data, tmp_path):
    key = data.draw(st.text(st.characters(categories=["L", "Nd"], include_characters="_"), min_size=1, max_size=30).filter(
        lambda k: k not in TOOLS[name].rules() and yaml.safe_load(f"{k}: 1") == {k: 1}))
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(NEEDED[name] | {key: 1}, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (told,) = [u for u in import_recipe(path, tool=name)["unsupported"] if u["key"] == key]
    assert "no such key" in told["why"] and told["line"] == path.read_text(encoding="utf-8").count("\n")


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("value", [None, False, True, 1, 0.5, "x", ["x"], {"x": 1}], ids=repr)
def test_all_keys_of_the_tables_at_once_are_accounted_for(name, value, tmp_path):
    """Keys of their own cannot make a file wrong, whatever they say."""
    path = tmp_path / "theirs.yaml"
    alone = [k for k, r in TOOLS[name].rules().items() if not isinstance(r, Joint | Copy)]
    values = NEEDED[name] | dict.fromkeys(alone, value)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    assert len(alone) > 100 and accounted(import_recipe(path, tool=name)) == keys_of(values)


@pytest.mark.parametrize("name", TOOLS)
def test_each_key_that_a_recipe_has_a_word_for_is_accounted_for_with_usual_values(name, tmp_path):
    path = tmp_path / "theirs.yaml"
    keys = [k for k, r in TOOLS[name].rules().items() if isinstance(r, Joint | Copy)]
    imported = 0
    for key in keys:
        for value in (None, False, True, 1, 0.5, "cosine"):
            values = NEEDED[name] | {key: value}
            path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
            try:
                made = import_recipe(path, tool=name)
            except RecipeError as error:
                assert all(p.where.startswith(str(path)) for p in error.problems)
                continue
            imported += 1
            assert accounted(made) == keys_of(values), key
    assert imported > 2 * len(keys)
