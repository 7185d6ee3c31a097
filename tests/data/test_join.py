"""Several datasets as one: rows and tokens as they are, test sets told apart, and leaks between them found.

pytest tests/data/test_join.py
"""

import pytest
import yaml
from tests.conftest import RECIPE, TEST_ROWS, TRAIN_ROWS, chat_row, write_jsonl

from tunesmith.data.diff import diff
from tunesmith.data.join import join
from tunesmith.data.leaks import leaked_rows

OTHER = [chat_row(n * 13 + 90_000, "Birch") for n in range(20)]
OTHER_TEST = [chat_row(n * 17 + 70_000, "Willow") for n in range(6)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_base):
    """Two prepared datasets of different rows, in a home of their own."""
    from tunesmith.data.prepare import prepare
    from tunesmith.models.base import resolve
    from tunesmith.models.load import tokenizer_of
    from tunesmith.recipe.load import load

    folder, made = tmp_path_factory.mktemp("pair"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(folder / "home"))
        for name, train, test in (("a", TRAIN_ROWS, TEST_ROWS), ("b", OTHER, OTHER_TEST)):
            write_jsonl(folder / name / "train.jsonl", train)
            write_jsonl(folder / name / "test.jsonl", test)
            recipe = folder / name / "recipe.yaml"
            recipe.write_text(yaml.safe_dump(RECIPE | {"base": str(tiny_base)}))
            made.append(prepare(load(recipe), tokenizer_of(resolve(str(tiny_base)))))
    return made


@pytest.fixture
def prepared(make_recipe, dataset_of):
    """`prepared("b", train, test)`: the dataset of a recipe whose test set is called `test`."""

    def make(name: str, train=OTHER, test=OTHER_TEST):
        return dataset_of(make_recipe(f"{name}.yaml", train=train, test=test))

    return make


def test_rows_and_tokens_are_those_of_the_parts(pair):
    a, b = pair
    joined, names = join([("a", a), ("b", b)], 0.8)
    assert names == [{"test": "a-test"}, {"test": "b-test"}] and joined.tests == ["a-test", "b-test"]
    for part, pieces in {"train": [(a, "train"), (b, "train")], "a-test": [(a, "test")], "b-test": [(b, "test")]}.items():
        rows = [row for d, p in pieces for row in d.rows(p)]
        assert [r.messages for r in joined.rows(part)] == [r.messages for r in rows]
        tokens = [d.tokens(p)[i] for d, p in pieces for i in range(len(d.tokens(p)))]
        assert [joined.tokens(part)[i] for i in range(len(rows))] == tokens
    assert joined.rows("train")[0].where == f"a/{a.rows('train')[0].where}"
    counts = joined.manifest["counts"]
    for key in ("train", "tokens", "trained_tokens", "rows_read"):
        assert counts[key] == a.manifest["counts"][key] + b.manifest["counts"][key]
    assert (counts["test:a-test"], counts["longest"]) == (len(TEST_ROWS), max(d.manifest["counts"]["longest"] for d in (a, b)))
    assert len(joined.manifest["sources"]) == len(joined.manifest["inputs"]["sources"])
    assert joined.manifest["inputs"]["template"] == a.manifest["inputs"]["template"]


def test_the_same_parts_are_the_same_dataset_and_another_order_is_another(pair):
    a, b = pair
    first = join([("a", a), ("b", b)], 0.8)[0]
    assert join([("a", a), ("b", b)], 0.8)[0].id == first.id
    assert join([("b", b), ("a", a)], 0.8)[0].tests[0] == "b-test"
    assert not diff(first, join([("b", b), ("a", a)], 0.8)[0])["identical"]


def test_one_dataset_twice_is_itself(pair):
    a, _ = pair
    assert join([("a", a), ("b", a)], 0.8) == (a, [{"test": "test"}, {"test": "test"}])


def test_a_test_set_that_both_have_is_asked_once(pair, prepared):
    a, b = pair[0], prepared("b", OTHER, TEST_ROWS)
    joined, names = join([("a", a), ("b", b)], 0.8)
    assert joined.tests == ["test"] and names == [{"test": "test"}] * 2


def test_datasets_of_one_name_are_numbered(pair):
    a, b = pair
    assert join([("x", a), ("x", b), ("x", a)], 0.8)[1] == [{"test": "x-1-test"}, {"test": "x-2-test"}, {"test": "x-1-test"}]


@pytest.mark.parametrize("planted, leaks", [([OTHER_TEST[2]], 1), ([], 0)])
def test_a_test_row_of_one_that_stands_in_the_training_rows_of_another_is_found(pair, prepared, planted, leaks):
    a, b = prepared("a", TRAIN_ROWS + planted, TEST_ROWS) if planted else pair[0], pair[1]
    assert not leaked_rows(a.manifest["findings"], "test") and not leaked_rows(b.manifest["findings"], "test")
    findings = join([("a", a), ("b", b)], None)[0].manifest["findings"]
    assert leaked_rows(findings, "b-test") == leaks and not leaked_rows(findings, "a-test")


def test_other_findings_are_kept_with_the_name_of_their_dataset(pair, prepared):
    a, b = prepared("a", [*TRAIN_ROWS, TRAIN_ROWS[0]], TEST_ROWS), pair[1]
    kept = [f for f in join([("a", a), ("b", b)], 0.8)[0].manifest["findings"] if f["code"] == "exact_duplicate"]
    assert [f["message"].split(":")[0] for f in kept] == ["a"] and all(e.startswith("a/") for e in kept[0]["examples"])
