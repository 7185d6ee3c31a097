"""What a diff says of two datasets whose difference is known.

    python -m pytest tests/data/test_diff.py
"""

from __future__ import annotations

import json

from tunesmith.data.diff import diff

LINES = [json.dumps({"prompt": f"{n} Oak Street", "completion": f'{{"number": "{n}"}}'}) for n in range(100, 140)]


def test_a_dataset_differs_in_nothing_from_itself(dataset_of, make_recipe):
    made = dataset_of(make_recipe())
    found = diff(made, made)
    assert found["identical"] and not found["inputs"] and not found["counts"]
    assert all(p["added"] == p["removed"] == p["changed"] == 0 for p in found["parts"].values())


def test_planted_changes_are_found_with_their_words_and_places(dataset_of, make_recipe, tmp_path):
    recipe, shorter = make_recipe(), make_recipe("shorter.yaml", **{"data.max_tokens": 100})
    (tmp_path / "train.jsonl").write_text("\n".join(LINES))
    before = dataset_of(recipe)
    other = [LINES[0].replace('\\"100\\"', '\\"1OO\\"'), LINES[1].replace("Oak", "Elm"), *LINES[3:],
             LINES[0].replace("100", "7")]
    (tmp_path / "train.jsonl").write_text("\n".join(other))
    found = diff(before, dataset_of(shorter))
    train = found["parts"]["train"]
    assert (train["rows"], train["added"], train["removed"], train["changed"]) == ([40, 40], 1, 1, 2)
    assert train["examples"][0] == """changed train.jsonl:1: -'"100"}' +'"1OO"}'"""
    assert "-'Oak' +'Elm'" in train["examples"][1]
    assert train["examples"][2:] == ["removed train.jsonl:3: '102 Oak Street'", "added train.jsonl:40: '7 Oak Street'"]
    assert found["inputs"]["settings.max_tokens"] == [128, 100] and "sources" in found["inputs"]
    assert found["parts"]["test"]["changed"] == 0


def test_a_row_that_stands_twice_more_is_added_twice(dataset_of, make_recipe, tmp_path):
    recipe = make_recipe(**{"data.dedup": {"exact": False}})
    before = dataset_of(recipe)
    text = (tmp_path / "train.jsonl").read_text().rstrip("\n")
    (tmp_path / "train.jsonl").write_text("\n".join([text, *[text.splitlines()[0]] * 2]))
    after = dataset_of(recipe)
    assert diff(before, after)["parts"]["train"]["added"] == 2 == diff(after, before)["parts"]["train"]["removed"]
