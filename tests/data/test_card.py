"""The data card says what is in the dataset, and nothing in the data can change the page.

    python -m pytest tests/data/test_card.py
"""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

from tunesmith.data.card import card, write_card
from tunesmith.data.charts import funnel
from tunesmith.recipe.load import load

HOSTILE = '</div><script>alert(1)</script> "A & B"'


def row(n, answer):
    return json.dumps({"prompt": f"{n} Oak Street", "completion": answer})


def drawn(page: str, title: str) -> dict[str, tuple[int, float]]:
    """Bars of a picture as they stand on the page: `{name: (number, width in percent, rounded)}`."""
    picture = page.split(f'aria-label="{title}"')[1].split("</div>")[0]
    found = re.findall(r'role="listitem">(.*?)</span>\s*<span class="track"><i style="width: ([\d.]+)%"></i></span>\s*'
                       r'<span class="value">([\d,]+)', picture)
    assert len(found) == picture.count("listitem")
    return {html.unescape(name): (int(number.replace(",", "")), round(float(width))) for name, width, number in found}


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
        trained = "".join(text for on, _, text in sample["runs"] if on)
        number = int(sample["where"].split(":")[1]) - 1
        assert trained == made.rows("train")[number].answer + "<|im_end|>", "the marked text is the answer and its stop token"


def test_roles_labels_and_the_voice_of_a_text_stand_on_the_card(dataset_of, make_recipe, tiny_tokenizer, tmp_path):
    recipe = make_recipe(**{"data.max_tokens": 400})
    (tmp_path / "train.jsonl").write_text("\n".join(row(n, "yes" if n % 4 else "no") for n in range(100, 140)))
    page = write_card(dataset_of(recipe), load(recipe).recipe, tiny_tokenizer).read_text()
    assert list(drawn(page, "Characters by role").items())[-1] == ("assistant", (110, 16)), "30 of 3 letters, 10 of 2; of 670"
    assert drawn(page, "Labels") == {"yes": (30, 75), "no": (10, 25)} and "Voice of" not in page
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


TAGS = {"svg", "g", "circle", "text", "ol",
        "html", "head", "meta", "title", "style", "body", "main", "p", "h1", "h2", "h3", "dl", "div", "dt", "dd", "small",
        "b", "i", "ul", "li", "figure", "figcaption", "span", "table", "tr", "th", "td", "mark", "code", "section", "br"}
PERSONAL = ["maria.lopez@brightmail.com", "+44 113 496 0817", "5425 2334 3010 9903"]
TAILS = ['<img src=x onerror="alert(1)">', "{{ card }} {% raw %}", "\u202eبريد\u202c كتاب", "👩‍👩‍👧 &amp; 🙂",
         "</mark></div><script>", "\x00\x1b[31m", *PERSONAL]


class Page(HTMLParser):
    """Every tag and attribute, and the text of each side of the rows that are drawn."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.names, self.open, self.said = set(), set(), [], []
        self.feed(page)
        self.close()
        assert not self.open, "every tag is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.names |= {name for name, _ in attributes}
        if tag not in ("meta", "br"):
            self.open.append((tag, dict(attributes).get("class") or ""))
        if self.open[-1][1].startswith("said") and tag == "div":
            self.said.append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, "tags are closed in order"

    def handle_data(self, data):
        if any(name.startswith("said") and tag == "div" for tag, name in self.open):
            self.said[-1] += data


def alike(group: int, n: int, tail: str) -> tuple[str, str]:
    """A question and an answer that differ from the others of their group in a word."""
    names = " ".join(f"{word}{group}" for word in ("mill", "river", "stone", "bridge", "night", "winter", "ferry"))
    return f"{tail} Tell me of {names} and of house {n}, please {tail}", f"It is {names}, and {n} is near {tail}"


def test_whatever_stands_in_rows_is_escaped_and_masked_wherever_it_is_drawn(dataset_of, make_recipe, tiny_tokenizer, tmp_path):
    recipe = make_recipe(**{"data.max_tokens": 700})
    said = [alike(group, n, tail) for group, tail in enumerate(TAILS) for n in range(3)]
    rows = [*said, ("Who answers our letters?", PERSONAL[0]), ("Who answers our letters?", "Ann.")]
    lines = [json.dumps({"prompt": q, "completion": a, "license": TAILS[n % len(TAILS)], "source": TAILS[n % len(TAILS)]})
             for n, (q, a) in enumerate(rows)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    held_out = [*said[-9:], said[0], said[4], (said[8][0].upper(), said[8][1].upper()), (said[18][0], "No.")]
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps({"prompt": q, "completion": a}) for q, a in held_out))
    made = dataset_of(recipe)
    page = write_card(made, load(recipe).recipe, tiny_tokenizer).read_text()
    found = Page(page)
    assert found.tags <= TAGS and not [name for name in found.names if name.startswith("on") or name in ("src", "href")]
    assert "<script" not in page and found.said, "control: rows are drawn"
    drawn_groups = made.manifest["pictures"]["near"]["groups"]
    assert drawn_groups and len(found.said) >= 2 * sum(len(group["rows"]) for group in drawn_groups) + 4 * 3
    assert {"leak_exact:test", "contradiction", "near_duplicate"} <= {f["code"] for f in made.manifest["findings"]}
    manifest = json.dumps({k: made.manifest[k] for k in ("pictures", "findings")}, ensure_ascii=False)
    for secret in PERSONAL:
        assert any(secret in row.answer for row in made.rows("train")), "control: the data is as it was"
        assert secret not in html.unescape(page) and secret not in manifest
    kinds = {(leak["set"], leak["code"]): leak for leak in made.manifest["pictures"]["leaks"]}
    assert {code for _, code in kinds} >= {"leak_exact", "leak_normalised", "leak_prompt"}
    assert all(1 <= len(leak["pairs"]) <= 3 and leak["count"] >= len(leak["pairs"]) for leak in kinds.values())


def test_widths_of_shares_add_up_whatever_the_counts(dataset_of, make_recipe, tiny_tokenizer, tmp_path):
    recipe = make_recipe(**{"data.max_tokens": 700, "data.mix": {"by": "task", "caps": {"a": 33}}})
    lines = [json.dumps({"prompt": f"{n} Oak", "completion": "abcdefghijklmnop"[n % 16], "task": "ab"[n % 3 == 0],
                         **({"license": f"licence {n % 19}"} if n % 5 else {})}) for n in range(200)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    found = card(dataset_of(recipe), load(recipe).recipe, tiny_tokenizer)
    shares = dict(found["shares"])
    assert shares.keys() == {"Labels", "Licences"}, "no picture of unknown languages"
    for rows in (*shares.values(), found["characters"], found["near"]["sizes"]):
        assert not rows or abs(sum(bar["share"] for bar in rows) - 1) < 1e-9
    assert sum(bar["count"] for bar in shares["Labels"]) == sum(bar["count"] for bar in shares["Licences"]) == 100
    assert [b["name"] for b in shares["Licences"]][-2:] == ["7 others", "no licence named"]
    assert [(g["name"], g["there"], g["kept"]) for g in found["mix"]] == [("a", 133, 33), ("b", 67, 67)]
    assert all(0 < g["kept_width"] <= g["width"] <= 1 for g in found["mix"])
    page = write_card(dataset_of(recipe), load(recipe).recipe, tiny_tokenizer).read_text()
    assert sum(number for number, _ in drawn(page, "Licences").values()) == 100


def test_what_a_cut_would_lose_is_drawn_only_when_rows_were_left_out(dataset_of, make_recipe, tiny_tokenizer, tmp_path):
    recipe = make_recipe(**{"data.max_tokens": 60, "data.on_overflow": "drop"})
    assert "Too long" not in write_card(dataset_of(recipe), load(recipe).recipe, tiny_tokenizer).read_text()
    lines = [json.dumps({"prompt": "Oak " * (60 if n < 4 else 2), "completion": f"yes {n}", "task": "long"}) for n in range(30)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    made = dataset_of(recipe)
    page = write_card(made, load(recipe).recipe, tiny_tokenizer).read_text()
    lost = made.manifest["overlong"]
    assert lost["rows"] == 4 and drawn(page, "Rows by task") == {"long": (4, 100)}
    beyond = drawn(page, "Tokens beyond the limit")
    assert beyond["answers"][0] == lost["answer_tokens"] and sum(n for n, _ in beyond.values()) == lost["tokens"]


def test_a_funnel_ends_with_the_rows_that_stay():
    filters = [{"name": "html_residue", "chosen": True, "rows": 200, "alone": 30, "in_order": 30},
               {"name": "other", "chosen": False, "rows": 150, "alone": 9, "in_order": 0},
               {"name": "refusal", "chosen": True, "rows": 200, "alone": 40, "in_order": 20}]
    steps = funnel(filters)
    assert [s["name"] for s in steps] == ["rows in", "html residue", "refusal"]
    assert [(s["count"], s["dropped"]) for s in steps] == [(200, 0), (170, 30), (150, 20)]
    assert all(one["share"] == after["before"] for one, after in pairwise(steps)) and steps[-1]["share"] == 0.75
    assert funnel([]) == funnel(filters[1:2]) == []
