"""The data card says what is in the dataset, and nothing in the data can change the page.

    python -m pytest tests/data/test_card.py
"""

from __future__ import annotations

import json
import re

from tunesmith.data.card import card, write_card
from tunesmith.recipe.load import load

HOSTILE = '</div><script>alert(1)</script> "A & B"'


def row(n, answer):
    return json.dumps({"prompt": f"{n} Oak Street", "completion": answer})


def test_card_counts_what_is_there(dataset_of, make_recipe, tiny_tokenizer):
    recipe = make_recipe()
    made = dataset_of(recipe)
    found = card(made, load(recipe).recipe, tiny_tokenizer)
    for part in found["parts"]:
        tokens = made.tokens(part["name"])
        assert sum(b["rows"] for b in part["bins"]) == len(tokens) == part["rows"]
        assert max(b["height"] for b in part["bins"]) == 100 and all(0 <= b["trained"] <= 1 for b in part["bins"])
        longest = next(b for b in part["bins"] if b["from"] <= part["longest"] <= b["to"])
        assert longest["rows"], "the longest row stands in its bin"
    assert [s["where"] for s in found["samples"]][0] == "train.jsonl:1" and found["samples"][-1]["where"] == "train.jsonl:40"
    for sample in found["samples"]:
        trained = "".join(text for on, text in sample["runs"] if on)
        number = int(sample["where"].split(":")[1]) - 1
        assert trained == made.rows("train")[number].answer + "<|im_end|>", "the marked text is the answer and its stop token"


def test_roles_labels_and_the_voice_of_a_text_stand_on_the_card(dataset_of, make_recipe, tiny_tokenizer, tmp_path):
    recipe = make_recipe(**{"data.max_tokens": 400})
    (tmp_path / "train.jsonl").write_text("\n".join(row(n, "yes" if n % 4 else "no") for n in range(100, 140)))
    page = write_card(dataset_of(recipe), load(recipe).recipe, tiny_tokenizer).read_text()
    assert re.search(r"<td>assistant</td><td class=\"n\">40</td><td class=\"n\">110</td>", page), "30 of 3 letters, 10 of 2"
    assert "Labels: yes 75%, no 25%" in page and "Voice of" not in page
    for name in ("train/1.txt", "test/1.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("The old mill stood by the river. He went there at night. " * 20)
    text = make_recipe("text.yaml", **{"data.train": "train", "data.test": "test", "data.max_tokens": 2000})
    page = write_card(dataset_of(text), load(text).recipe, tiny_tokenizer).read_text()
    assert "Voice of the training text: words 240" in page


def test_hostile_text_is_shown_as_text(dataset_of, make_recipe, tiny_tokenizer, tmp_path):
    recipe = make_recipe(**{"data.max_tokens": 400})
    (tmp_path / "train.jsonl").write_text("\n".join(row(n, f"{HOSTILE} {n}") for n in [*range(100, 110), 100]))
    page = write_card(dataset_of(recipe), load(recipe).recipe, tiny_tokenizer).read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "train.jsonl:11 = train.jsonl:1" in page, "a finding stands there with its evidence"
    assert not re.search(r"(?:src|href)=", page), "one file, nothing is fetched"
