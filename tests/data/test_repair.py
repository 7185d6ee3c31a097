"""Repairs asked for by a recipe: made, told, shown by a diff, and never made unasked.

    python -m pytest tests/data/test_repair.py
"""

from __future__ import annotations

import json

from tunesmith.data.diff import diff

BROKEN = {3: "caf\u00c3\u00a9 Oak Street", 7: "Oak\u200b Street", 11: "Oak Street  \r\n"}


def rows():
    answers = {n: BROKEN.get(n, f"{n} Oak Street") for n in range(40)}
    return [json.dumps({"prompt": f"Repeat line {n}", "completion": answers[n]}) for n in range(40)]


def test_repairs_are_made_told_and_shown_by_a_diff(dataset_of, make_recipe, tmp_path):
    plain, repaired = make_recipe(), make_recipe("repaired.yaml", **{"data.repair": True})
    (tmp_path / "train.jsonl").write_text("\n".join(rows()))
    before, after = dataset_of(plain), dataset_of(repaired)
    assert [r.answer for r in before.rows("train")][3] == BROKEN[3], "nothing is repaired unasked"
    told = [f for f in after.manifest["findings"] if f["code"] == "repaired"]
    assert {e for f in told for e in f["examples"]} == {f"train.jsonl:{n + 1}" for n in BROKEN}
    answers = [r.answer for r in after.rows("train")]
    assert answers[3] == "caf\u00e9 Oak Street" and answers[7] == answers[11] == "Oak Street"
    found = diff(before, after)
    assert found["inputs"] == {"settings.repair": [False, True]} and found["parts"]["train"]["changed"] == 3
    broken = {f["code"]: f["count"] for f in before.manifest["findings"]}
    assert broken["mojibake"] == 1 and broken["invisible_character"] == 1
    assert not {"mojibake", "invisible_character"} & {f["code"] for f in after.manifest["findings"]}


def test_clean_rows_stay_as_they_are(dataset_of, make_recipe):
    made = dataset_of(make_recipe(**{"data.repair": True}))
    assert "repaired" not in {f["code"] for f in made.manifest["findings"]}
    assert [r.prompt for r in made.rows("train")] == [r.prompt for r in dataset_of(make_recipe()).rows("train")]
