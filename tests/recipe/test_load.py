"""Everything that is wrong with a recipe, at once, each with its line and what to write instead.

    python -m pytest tests/recipe/test_load.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.recipe.load import load, parse
from tunesmith.recipe.methods import METHODS
from tunesmith.recipe.schema import Recipe

GOOD = "name: a\nbase: b\ndata: {train: x.jsonl}\n"
EXAMPLES = Path(__file__).parents[2] / "examples"


def mistakes(text):
    with pytest.raises(RecipeError) as error:
        parse(text, "r.yaml")
    assert error.value.exit_code == 2
    return [(p.where.removeprefix("r.yaml:"), p.message, p.fix) for p in error.value.problems]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/recipe*.yaml")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_examples_load_and_their_files_exist(path):
    loaded = load(path)
    tests = loaded.recipe.data.test
    for given_path in [loaded.recipe.data.train, *(tests.values() if isinstance(tests, dict) else [tests])]:
        for one in given_path if isinstance(given_path, list) else [given_path]:
            assert loaded.resolve(one).exists()


def test_example_recipes_are_there_to_be_loaded():
    assert len(sorted(EXAMPLES.glob("*/recipe*.yaml"))) >= 2


def test_defaults_are_real_values_and_the_whole_recipe_round_trips():
    recipe = parse(GOOD)
    assert (recipe.train.learning_rate, recipe.train.epochs, recipe.method.rank, recipe.data.max_tokens) == (2e-4, 3, 16, 1024)
    assert recipe.data.dedup.exact and recipe.data.dedup.near == 0.8 and recipe.gates.leak.max_rows == 0
    assert Recipe.model_validate(recipe.model_dump()) == recipe


def test_directory_and_byte_order_mark_are_fine_and_paths_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(GOOD, encoding="utf-8-sig")
    loaded = load(tmp_path)
    assert loaded.recipe == parse(GOOD) and loaded.path == tmp_path / "recipe.yaml"
    assert loaded.resolve("data/x.jsonl") == tmp_path / "data" / "x.jsonl"
    assert loaded.resolve("") == tmp_path
    assert loaded.resolve("/somewhere/else") == Path("/somewhere/else")


@pytest.mark.parametrize("lines, message, fix", [
    ("trian: {epochs: 1}", "trian: no such key", "did you mean 'train'?"),
    ("train: {epoch: 1}", "train.epoch: no such key", "did you mean 'epochs'?"),
    ("track: {zzz: 1}", "track.zzz: no such key", "known keys here: mlflow, experiment, tags, aliases"),
    ("gates: {target: {min_gian: 1}}", "gates.target.min_gian: no such key", "did you mean 'min_gain'?"),
    ("train: {epochs: many}", "train.epochs: Input should be a valid integer (got 'many')", None),
    ("train: {epochs: 1.5}", "train.epochs: Input should be a valid integer (got 1.5)", None),
    ("train: {epochs: true}", "train.epochs: Input should be a valid integer (got True)", None),
    ("train: {epochs: 0}", "train.epochs: Input should be greater than or equal to 1 (got 0)", None),
    ("train: {learning_rate: .inf}", "train.learning_rate: Input should be a finite number (got inf)", None),
    ("gates: {target: {min_gain: .nan}}", "gates.target.min_gain: Input should be a finite number (got nan)", None),
    ("method: {type: qlroa}", "method.type: Input should be 'lora', 'qlora', 'full', 'prompt', 'prefix', 'ia3', 'bottleneck' "
     "(got 'qlroa')", "did you mean 'qlora'?"),
    ("method: {type: [1]}", "method.type: Input should be 'lora', 'qlora', 'full', 'prompt', 'prefix', 'ia3', 'bottleneck' "
     "(got [1])", None),
    ("method: {type: prompt, rank: 8}", "method.rank: no such key", "known keys here: type, tokens, init, init_text"),
    ("method: {type: qlora, double_quand: true}", "method.double_quand: no such key", "did you mean 'double_quant'?"),
    ("method: {rnk: 8}", "method.rnk: no such key", "did you mean 'rank'?"),
    ("method: {type: full}\ntrain: {dtype: float32, epoch: 1}", "train.epoch: no such key", "did you mean 'epochs'?"),
    ("method: fast", "method: Input should be a valid dictionary or instance of Lora (got 'fast')", None),
    ("method: {type: bottleneck, after: [mlp, mlp]}", "method.after: names a place twice: keep one (got a list)", None),
    ("method: {targets: 5}", "method.targets: Input should be 'all-linear' or a valid list (got 5)", None),
    ("train: fast", "train: Input should be a valid dictionary or instance of Train (got 'fast')", None),
    ("eval: {baselines: [few_shot]}",
     "eval.baselines: must contain zero_shot: it is the base that the tuned model is compared with (got a list)", None),
    ("base: c", "base is given twice", "keep one of them"),
    ("5: x", "[5]: Keys should be strings (got 5)", None),
])
def test_mistake_is_named_with_its_line_and_a_way_out(lines, message, fix):
    (line, found, way_out), = mistakes(GOOD + "# a comment\n" + lines + "\n")
    assert (found, way_out) == (message, fix)
    assert line == ("1" if lines == "5: x" else str(5 + lines.count("\n")))


@pytest.mark.parametrize("method", ["{type: full}", "{modules_to_save: [norm]}", "{type: qlora, modules_to_save: [norm]}"])
def test_weights_that_are_trained_whole_are_not_trained_in_bfloat16(method):
    (line, message, _), = mistakes(GOOD + f"method: {method}\ntrain:\n  dtype: bfloat16\n")
    assert (line, message.split(":")[0]) == ("6", "train.dtype")
    assert parse(GOOD + f"method: {method}\ntrain:\n  dtype: auto\n").train.dtype == "auto"


@pytest.mark.parametrize("kind", [m.model_fields["type"].default for m in METHODS])
def test_every_method_round_trips_and_has_only_its_own_keys(kind):
    recipe = parse(GOOD + f"method: {{type: {kind}}}\n")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe and recipe.method.type == kind
    others = {name for m in METHODS for name in m.model_fields} - set(type(recipe.method).model_fields)
    for name in sorted(others):
        (_, message, _), = mistakes(GOOD + f"method: {{type: {kind}, {name}: 1}}\n")
        assert message == f"method.{name}: no such key"


@pytest.mark.parametrize("data, what", [
    ("filter: {drop: [html]}", "data.filter.drop[0]: Input should be 'mojibake'"),
    ("filter: {dorp: [html_residue]}", "data.filter.dorp: no such key"),
    ("filter: {drop: [secret, secret]}", "data.filter: drop names secret twice"),
    ("filter: {languages: [English]}", "data.filter.languages[0]: String should match pattern"),
    ("filter: {min_answer_characters: 0}", "data.filter.min_answer_characters: Input should be greater than or equal to 1"),
    ("filter: {min_answer_characters: 9, max_answer_characters: 8}", "data.filter: min_answer_characters is more than max_"),
    ("filter: {drop: [near_duplicate]}, dedup: {near: null}", "data: filter.drop names near_duplicate, and dedup.near is null"),
])
def test_filter_that_cannot_be_meant_is_a_mistake(data, what):
    (_, message, _), = mistakes(f"name: a\nbase: b\ndata: {{train: t.jsonl, {data}}}\n")
    assert message.startswith(what)


@pytest.mark.parametrize("objective, line, what, fix", [
    ("{type: dop}", "4", "objective.type: Input should be 'sft', 'dpo'", None),
    ("{type: dpo, betta: 0.2}", "4", "objective.betta: no such key", "did you mean 'beta'?"),
    ("{type: dpo, beta: 0}", "4", "objective.beta: Input should be greater than 0", None),
    ("{type: dpo, label_smoothing: 0.5}", "4", "objective.label_smoothing: Input should be less than 0.5", None),
    ("\n  type: sft\n  beta: 0.1", "6", "objective.beta: a setting of dpo and kto, and objective.type is sft", None),
    ("\n  type: dpo\n  loss: ipo\n  label_smoothing: 0.1", "7",
     "objective.label_smoothing: a setting of loss sigmoid, and objective.loss is ipo", None),
    ("{type: dpo}\ndata: {train: x.jsonl, on_overflow: split}", "5", "data.on_overflow: split parts conversations", None),
    ("{type: distill}", "4", "objective.teacher: required", None),
    ("{type: distill, teacher: t, alpha: 1.5}", "4", "objective.alpha: Input should be less than or equal to 1", None),
    ("{type: kto, top_k: 5}", "4", "objective.top_k: a setting of distill, and objective.type is kto", None),
])
def test_objective_that_cannot_be_meant_is_a_mistake(objective, line, what, fix):
    given = GOOD if "data:" not in objective else "name: a\nbase: b\n\n"
    (found_line, message, way_out), = mistakes(f"{given}objective: {objective}\n")
    assert message.startswith(what) and found_line == line and way_out == fix


def test_a_resolved_recipe_says_of_its_objective_what_is_read_and_reads_back():
    recipe = parse(GOOD + "objective: {type: dpo, beta: 0.3}\n")
    assert recipe.model_dump()["objective"] == {"type": "dpo", "beta": 0.3, "loss": "sigmoid", "label_smoothing": 0.0}
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert parse(GOOD).model_dump()["objective"] == {"type": "sft"}


def test_near_duplicates_that_are_looked_for_may_be_dropped():
    made = parse("name: a\nbase: b\ndata: {train: t.jsonl, filter: {drop: [near_duplicate], min_answer_characters: 8}}\n")
    assert made.data.filter.drop == ["near_duplicate"] and made.data.dedup.near == 0.8


def test_all_mistakes_are_reported_at_once_from_the_top_each_with_its_line():
    text = """\
name: Not A Name
base: b
data:
  train: [1, ok.jsonl]
  test:
    good: t.jsonl
    bad: 5
  fromat: openai
train:
  epochs: 0
  schedule: fast
  epochs: 3
  checkpoint:
    keep: none
"""
    assert [(line, message.split(":")[0]) for line, message, _ in mistakes(text)] == [
        ("1", "name"), ("4", "data.train[0]"), ("7", "data.test.bad"), ("8", "data.fromat"), ("11", "train.schedule"),
        ("12", "train.epochs is given twice"), ("14", "train.checkpoint.keep")]


def test_missing_keys_are_named():
    assert [(message, fix) for _, message, fix in mistakes("name: a\n")] == [
        ("base: required", "add `base:`"), ("data: required", "add `data:`")]


@pytest.mark.parametrize("text, line, what", [
    ("eval: {metrics: [loss]}", "4", "eval.metrics: the default gates.target.metric 'exact_match' is not among"),
    ("gates:\n  target:\n    metric: lost\n", "6", "gates.target.metric: 'lost' is not among eval.metrics ['exact_match',"),
])
def test_gate_on_a_metric_that_is_not_measured_is_a_mistake_at_the_line_to_change(text, line, what):
    (found_line, message, _), = mistakes(GOOD + text)
    assert found_line == line and message.startswith(what)


@pytest.mark.parametrize("written, number", [("2e-4", 2e-4), ("1E-3", 1e-3), ("1.e-3", 1e-3), ("5e+0", 5.0), ("2.0e-4", 2e-4),
                                             ("0.1", 0.1), ("1", 1.0)])
def test_numbers_are_numbers_however_they_are_written(written, number):
    assert parse(GOOD + f"train: {{learning_rate: {written}}}").train.learning_rate == number


@pytest.mark.parametrize("name", ["2026-01-31", "2024-99-99", "1e", "e1"])
def test_name_that_looks_like_something_else_to_yaml_is_text(name):
    assert parse(GOOD.replace("name: a", f"name: {name}")).name == name


@pytest.mark.parametrize("text", ["", "- a\n", "just text", "5", "null"])
def test_recipe_that_is_no_mapping_is_refused(text):
    with pytest.raises(RecipeError, match="a recipe is a mapping of keys to values") as error:
        parse(text, "r.yaml")
    assert error.value.where == "r.yaml:1"


@pytest.mark.parametrize("text, line", [
    ("name:\ta\n\tbase: b\n", ":1"), ("name: a\ndata: {train: [x\n", ":3"), (GOOD + "? [a, b]\n: 1\n", ":4"),
    (GOOD + "---\n" + GOOD, ":4"), (GOOD + "train: !!python/object:os.system {}\n", ":4"), (GOOD + "x: *nobody\n", ":4"),
    ("a: '\0'\n", ""), (GOOD + "train: {seed: " + "9" * 5000 + "}\n", ""), ("a: " + "[" * 3000, ""),
    (GOOD + "train: {epochs: !!bool x}\n", ""),
], ids=["tab", "open bracket", "list as key", "two documents", "python object", "unknown alias", "null byte", "5,000 digits",
        "3,000 lists", "tag"])
def test_text_that_is_not_yaml_is_refused_with_the_line_where_it_is_known(text, line):
    with pytest.raises(RecipeError, match="not valid YAML") as error:
        parse(text, "r.yaml")
    assert error.value.where == f"r.yaml{line}" and error.value.why


def test_anchors_work_and_one_that_contains_itself_is_a_mistake_and_not_a_crash():
    assert parse(GOOD + "train: &t {epochs: 1}\nmethod: {rank: 8}\n").train.epochs == 1
    (line, message, _), = mistakes(GOOD + "train: &x [*x]\n")
    assert line == "4" and message.startswith("train: ")


@pytest.mark.parametrize("make, what", [
    (lambda p: None, "no such recipe"), (lambda p: p.write_bytes(b"name: caf\xe9"), "the recipe cannot be read"),
    (lambda p: p.mkdir(), "no such recipe"),
])
def test_file_that_cannot_be_read_is_refused_by_name(tmp_path, make, what):
    path = tmp_path / "r.yaml"
    make(path)
    with pytest.raises(RecipeError, match=what) as error:
        load(path)
    assert error.value.where.startswith(str(path))


KEYS = st.sampled_from([*Recipe.model_fields, "epochs", "metric", "target", "test", "split", "x"])
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=10)


@settings(max_examples=80, deadline=None, database=None)
@given(value=st.dictionaries(KEYS, VALUES, max_size=6), cut=st.integers(0, 200),
       typed=st.text(": -[]{}&*!|>'\"%@`#,?\n\t", max_size=3))
def test_any_text_is_a_recipe_or_a_list_of_mistakes_with_lines(value, cut, typed):
    import yaml

    text = yaml.safe_dump(value, allow_unicode=True)
    text = text[:cut] + typed + text[cut:]
    try:
        parse(text, "r.yaml")
    except RecipeError as error:
        assert error.where.startswith("r.yaml")
        lines = 1 + sum(text.count(end) for end in "\n\r\x85\u2028\u2029")  # as YAML counts them
        assert all(1 <= int(p.where.split(":")[1]) <= lines for p in error.problems)
