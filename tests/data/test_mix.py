"""Shares and caps of a mix: what is kept, and that the same rows are kept whatever their order.

    python -m pytest tests/data/test_mix.py
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.mix import mix, mix_all
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Mix


@pytest.fixture
def rows(chat):
    def make(**sizes):
        return [replace(chat(f"{task} {i}", "a", f"f:{i}"), meta={"task": task}) for task, n in sizes.items() for i in range(n)]

    return make


def kept(rows, seed=0, **config):
    numbers, table = mix(rows, Mix(**config), seed)
    assert {g: n for g, (_, n) in table.items() if n} == Counter(str(rows[i].meta["task"]) for i in numbers)
    return [rows[i].prompt for i in numbers]


def test_without_weights_and_caps_every_row_stays(rows):
    made = rows(a=30, b=10)
    assert kept(made, by="task") == [r.prompt for r in made]


@settings(max_examples=60, deadline=None, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.dictionaries(st.sampled_from("abcd"), st.integers(20, 80), min_size=2), data=st.data())
def test_weights_are_the_shares_and_the_scarcest_group_is_used_up(rows, sizes, data):
    weights = {g: float(data.draw(st.integers(1, 5))) for g in sizes}
    found = Counter(p.split()[0] for p in kept(rows(**sizes), by="task", weights=weights))
    scale = min(sizes[g] / w for g, w in weights.items())
    assert all(abs(found[g] - scale * w) <= 1 for g, w in weights.items())
    assert any(found[g] == sizes[g] for g in sizes)


def test_groups_without_a_weight_give_nothing(rows):
    assert Counter(p[0] for p in kept(rows(a=20, b=20, c=20), by="task", weights={"a": 3.0, "b": 1.0})) == {"a": 20, "b": 6}


def test_cap_holds_and_a_larger_one_keeps_what_a_smaller_one_kept(rows):
    made = rows(a=100, b=5)
    small, large = (set(kept(made, by="task", caps=n)) for n in (10, 40))
    assert Counter(p[0] for p in small) == {"a": 10, "b": 5} and small < large
    assert Counter(p[0] for p in kept(made, by="task", caps={"a": 7})) == {"a": 7, "b": 5}


def test_the_same_rows_stay_whatever_their_order_and_others_with_another_seed(rows):
    made = rows(a=100)
    assert set(kept(made, by="task", caps=10)) == set(kept(made[::-1], by="task", caps=10))
    assert set(kept(made, by="task", caps=10)) != set(kept(made, by="task", caps=10, seed=1))


def test_groups_by_file_source_and_length(chat):
    made = [chat("q", "a" * n, f"{f}.jsonl:{n}") for f in "xy" for n in (10, 300, 20000)]
    assert mix(made, Mix(), 0)[1] == {"x.jsonl": [3, 3], "y.jsonl": [3, 3]}
    named = [replace(r, meta={"source": "web"}) for r in made]
    assert mix(named, Mix(), 0)[1] == {"web": [6, 6]}
    assert mix(made, Mix(by="length", caps=1), 0)[1] == {"over 10000": [2, 1], "up to 200": [2, 1], "up to 500": [2, 1]}


@pytest.mark.parametrize("config, what", [({"weights": {"z": 1.0}}, "'z'"), ({"caps": {"z": 1}}, "'z'")])
def test_group_that_is_not_there_is_an_error(rows, config, what):
    with pytest.raises(DataError, match=what) as error:
        mix(rows(a=3), Mix(by="task", **config), 0)
    assert "by task there are a" in error.value.why


def test_row_without_the_key_is_named(rows, chat):
    with pytest.raises(DataError, match="a row without 'task'") as error:
        mix([*rows(a=3), chat("q", "a", "f:9")], Mix(by="task", caps=1), 0)
    assert error.value.where == "f:9"


def test_several_sections_are_applied_in_order_and_each_is_shown(chat):
    """Caps by task first, then shares of languages among what is left."""
    said = {"en": "The mill stood silent at the end of the lane, and the water ran past it all the same.",
            "de": "Die Mühle stand still am Ende des Weges, und das Wasser floss dennoch an ihr vorbei."}
    made = [replace(chat(f"{task} {i}", f"{text} {i}"), meta={"task": task}) for task, n in (("a", 30), ("b", 10))
            for i in range(n) for text in said.values()]
    numbers, table = mix_all(made, [Mix(by="task", caps={"a": 20}), Mix(by="language", weights={"en": 2, "de": 1})], 0)
    assert table["task: a"] == [60, 20] and table["task: b"] == [20, 20]
    there, kept_now = zip(table["language: en"], table["language: de"], strict=True)
    assert sum(there) == 40 and kept_now[0] // 2 == kept_now[1] > 0
    assert sum(kept_now) == len(numbers) and numbers == sorted(numbers)
    alone, _ = mix_all(made, [Mix(by="task", caps={"a": 20})], 0)
    assert set(numbers) < set(alone) and alone == mix(made, Mix(by="task", caps={"a": 20}), 0)[0] == mix_all(
        made, Mix(by="task", caps={"a": 20}), 0)[0]


def test_language_is_the_key_of_the_row_else_detected_in_answer_else_in_prompt(chat):
    english = "What is it that the old man said to the children when they came home late in the evening?"
    french = "Il leur a dit de rentrer plus tôt la prochaine fois, parce que la route est dangereuse."
    made = [replace(chat(english, french), meta={"language": "xx"}), chat(english, french),
            chat(english, "42"), chat("?", "42")]
    _, table = mix(made, Mix(by="language"), 0)
    assert {group: n for group, (n, _) in table.items()} == {"xx": 1, "fr": 1, "en": 1, "unknown": 1}
