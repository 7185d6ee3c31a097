"""The blind page is blind, complete and fair; a real browser counts what is pressed; votes come back as they were given.

pytest tests/evals/style/test_ballot.py
"""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy.stats import binomtest

from tunesmith.errors import DataError, NotFoundError, UsageError
from tunesmith.evals.statistics import wilson
from tunesmith.evals.style.ballot import count, make, read, sign_test, tally
from tunesmith.evals.style.text import words_of

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
BASE, TUNED, AUTHOR = "cobalt", "turmeric", "auburn"
"""Words that stand in the texts of one system only: where the page shows one, the test knows whose text it is."""


def sentences(word: str, n: int) -> str:
    return " ".join(f"The {word} sentence number {i} is here." for i in range(n))


@pytest.fixture
def report() -> dict:
    items = [{"id": f"ch5: passage {i}", "request": "Go on.", "author": sentences(f"{AUTHOR}{i}", 9),
              "texts": {"zero_shot": sentences(f"{BASE}{i}", 12), "tuned": sentences(f"{TUNED}{i}", 8)}} for i in range(12)]
    items[7]["texts"]["tuned"] = "turmeric <img src=x onerror=alert(1)> </section><b>bold</b> & co."
    items.append(items[0] | {"id": "equal", "texts": {"zero_shot": "Same.", "tuned": "Same."}})
    return {"run_id": "voice-1", "style": {"items": items, "examples": ["An example of his.", "Another."]}}


class Page(HTMLParser):
    """Pairs as they are shown: {name: (first text, second text)}, and everything that a browser would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.pairs: dict[str, list[str]] = {}
        self.fetched: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.fetched += [v for k, v in attributes if k in ("src", "href", "action", "poster", "data")]
        if "data-pair" in found:
            self.pairs[found["data-pair"]] = []
        if tag == "span" and (found.get("class") or "").split()[:1] == ["text"]:
            self.pairs[list(self.pairs)[-1]].append("")
            self._inside = True

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "span"

    def handle_data(self, data):
        if self._inside:
            self.pairs[list(self.pairs)[-1]][-1] += data


def made_page(report, folder, **more) -> tuple[dict, str, dict]:
    made = make(report, folder, **more)
    return made, Path(made["page"]).read_text(encoding="utf-8"), json.loads(Path(made["key"]).read_text(encoding="utf-8"))


def test_the_page_has_both_texts_of_every_pair_and_the_key_knows_them(report, tmp_path):
    made, text, key = made_page(report, tmp_path, seed=1)
    pairs = Page(text).pairs
    assert made["pairs"] == len(pairs) == len(key["pairs"]) == 12 and made["left_out"] == 1
    for pair in key["pairs"]:
        words = {"tuned": TUNED, "zero_shot": BASE}
        for side, shown in zip(("first", "second"), pairs[pair["name"]], strict=True):
            assert words[pair[side]] in shown


def test_nothing_on_the_page_says_whose_a_text_is(report, tmp_path):
    """Take the texts away and swap the systems: what remains of the page must be the same page."""
    def without_texts(page: str) -> str:
        return re.sub(r"[0-9a-f]{10,12}", "#", re.sub(r'<span class="text.*?</span>', "", page, flags=re.S))

    swapped = json.loads(json.dumps(report))
    for item in swapped["style"]["items"]:
        item["texts"] = {"zero_shot": item["texts"]["tuned"], "tuned": item["texts"]["zero_shot"]}
    pages = [made_page(r, tmp_path / str(i), seed=1)[1] for i, r in enumerate((report, swapped))]
    assert without_texts(pages[0]) == without_texts(pages[1])
    for said in ("tuned", "zero_shot", "zero-shot", "base", "ch5: passage", "voice-1"):
        assert said not in without_texts(pages[0]).replace("tunesmith", "")


def test_sides_and_order_are_drawn(report, tmp_path):
    keys = [made_page(report, tmp_path / str(seed), seed=seed)[2]["pairs"] for seed in range(12)]
    first = sum(p["first"] == "tuned" for key in keys for p in key)
    assert 50 < first < 94, "binomial(144, 0.5) is outside of that once in 6,000 times"
    assert len({tuple(p["item"] for p in key) for key in keys}) == 12
    assert len({p["name"] for key in keys for p in key}) == 144


def test_the_same_seed_gives_the_same_page_and_no_seed_a_secret_one(report, tmp_path):
    same = [made_page(report, tmp_path / str(i), seed=4)[1] for i in range(2)]
    other = [made_page(report, tmp_path / f"s{i}")[2] for i in range(2)]
    assert same[0] == same[1] and other[0]["seed"] != other[1]["seed"]


def test_length_gives_nobody_away(report, tmp_path):
    for name, (first, second) in Page(made_page(report, tmp_path, seed=2)[1]).pairs.items():
        if "bold" not in first + second:
            assert len(words_of(first)) == len(words_of(second)), name


def test_one_file_that_loads_nothing_and_no_text_becomes_markup(report, tmp_path):
    text = made_page(report, tmp_path, seed=1)[1]
    assert Page(text).fetched == [] and not re.search(r"url\(|@import|https?:", text)
    assert "default-src 'none'" in text and "<img" not in text and "&lt;img" in text


def test_against_the_author(report, tmp_path):
    made, text, key = made_page(report, tmp_path, against="author", seed=3, pairs=5)
    assert made["pairs"] == 5 and {p[side] for p in key["pairs"] for side in ("first", "second")} == {"tuned", "author"}
    assert BASE not in text and AUTHOR in text and "did the author write" in text


def test_reports_without_texts_and_without_difference_are_refused(report, tmp_path):
    with pytest.raises(UsageError, match="no texts"):
        make({"run_id": "x"}, tmp_path)
    report["style"]["items"] = report["style"]["items"][-1:]
    with pytest.raises(UsageError, match="equal"):
        make(report, tmp_path)


# ---- counting --------------------------------------------------------------------------------------------------------


def cast(tmp_path: Path, key: dict, choices: dict[int, str], reader: str = "A") -> Path:
    """A file of votes; choices are systems or "tie"."""
    votes = {}
    for i, choice in choices.items():
        pair = key["pairs"][i]
        votes[pair["name"]] = choice if choice == "tie" else "first" if pair["first"] == choice else "second"
    file = tmp_path / "votes.json"
    file.write_text(json.dumps({"ballot": key["ballot"], "reader": reader, "votes": votes}), encoding="utf-8")
    return file


def test_votes_are_unblinded(report, tmp_path):
    _, _, key = made_page(report, tmp_path, seed=1)
    choices = dict.fromkeys(range(7), "tuned") | {7: "zero_shot", 8: "tie"}
    found = read([cast(tmp_path, key, choices)], report, tmp_path)["zero_shot"]
    assert (found["wins"], found["losses"], found["ties"], found["pairs"]) == (7, 1, 1, 9)
    assert found["share"] == 7 / 8 and tuple(found["ci95"]) == pytest.approx(wilson(7, 8))
    assert found["first"] + found["second"] == 8


def test_a_reader_who_votes_again_is_counted_once_and_another_one_too(report, tmp_path):
    _, _, key = made_page(report, tmp_path, seed=1)
    read([cast(tmp_path, key, {0: "tuned", 1: "tuned"})], report, tmp_path)
    again = read([cast(tmp_path, key, {0: "zero_shot"})], report, tmp_path)["zero_shot"]
    assert (again["wins"], again["losses"], again["votes"]) == (0, 1, 1)
    both = read([cast(tmp_path, key, {0: "tuned", 1: "tuned"}, "B/../C")], report, tmp_path)["zero_shot"]
    assert (both["wins"], both["losses"], both["ties"], both["votes"], both["readers"]) == (1, 0, 1, 3, 2)
    assert both["share"] == pytest.approx((0.5 + 1) / 2)


def test_votes_on_texts_that_are_no_longer_the_reports_are_left_out(report, tmp_path):
    _, _, key = made_page(report, tmp_path, seed=1)
    file = cast(tmp_path, key, {0: "tuned", 1: "tuned"})
    item = next(i for i in report["style"]["items"] if i["id"] == key["pairs"][0]["item"])
    item["texts"]["tuned"] = sentences("otherwise", 8)
    assert read([file], report, tmp_path)["zero_shot"]["votes"] == 1
    assert count({"style": {"items": []}}, tmp_path) == {}


@pytest.mark.parametrize("content", ["", "[]", '{"ballot": "x"}', '{"ballot": 1, "reader": "A", "votes": {}}'])
def test_what_is_no_file_of_votes_is_refused(report, tmp_path, content):
    (tmp_path / "v.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="no file of votes"):
        read([tmp_path / "v.json"], report, tmp_path)


def test_votes_on_another_ballot_or_for_nobody_are_refused(report, tmp_path):
    _, _, key = made_page(report, tmp_path, seed=1)
    for ballot in ("0" * 12, "../../../etc/x"):
        with pytest.raises(NotFoundError, match="no ballot"):
            read([cast(tmp_path, key | {"ballot": ballot}, {0: "tuned"})], report, tmp_path)
    file = cast(tmp_path, key, {0: "tuned"})
    file.write_text(file.read_text().replace('"first"', '"left"').replace('"second"', '"left"'))
    with pytest.raises(DataError, match="no vote"):
        read([file], report, tmp_path)


@pytest.mark.parametrize(("wins", "losses"), [(0, 1), (5, 5), (9, 1), (3, 11), (40, 12)])
def test_the_sign_test_is_the_binomial_test(wins, losses):
    assert sign_test(wins, losses) == pytest.approx(binomtest(wins, wins + losses).pvalue)


def test_ties_alone_decide_nothing():
    found = tally([["tie"], ["tuned", "zero_shot"]], "zero_shot")
    assert found["p_value"] is None and found["ties"] == 2 and found["share"] == 0.5
    assert tally([["tie"]], "zero_shot")["share"] is None


# ---- in a browser ----------------------------------------------------------------------------------------------------


def in_browser(page: Path, script: str, *, width: int = 1200) -> str:
    """Open a copy of the page with a script at its end, and return what that writes into `document.title`."""
    copy = page.with_suffix(".test.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    done = subprocess.run([CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000",
                           f"--window-size={width},900", f"--user-data-dir={page.parent / 'profile'}", "--dump-dom",
                           copy.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]
    return found.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_keys_vote_and_what_is_saved_is_counted(report, tmp_path):
    """A reader presses keys; what the page would save goes through `read`."""
    made, _, key = made_page(report, tmp_path, seed=1, pairs=5)
    pressed = ["1", "2", "0", "2", "Backspace", "1", "x", "ArrowRight"]
    script = "const keys = " + json.dumps(pressed) + """;
      const wait = ms => new Promise(done => setTimeout(done, ms));
      (async () => {
        for (const key of [...keys, "ArrowRight"]) {
          document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
          await wait(600);
        }
        const input = document.getElementById("reader");
        input.value = "Mary"; input.dispatchEvent(new Event("input", {bubbles: true}));
        document.title = JSON.stringify({
          saved: JSON.parse(document.getElementById("plain").value),
          kept: JSON.parse(localStorage.getItem(Object.keys(localStorage).find(k => k.startsWith("tunesmith-vote")))),
          shown: [...document.querySelectorAll(".pair")].filter(p => !p.hidden).length,
          said: document.getElementById("summary").textContent,
        });
      })();
    """
    found = json.loads(in_browser(Path(made["page"]), script))
    names = [p["name"] for p in key["pairs"]]
    expected = dict(zip(names, ["first", "second", "tie", "first"], strict=False))
    assert found["saved"]["votes"] == found["kept"]["votes"] == expected and found["saved"]["reader"] == "Mary"
    assert found["shown"] == 0 and found["said"].startswith("4 of 5 pairs")
    file = tmp_path / "saved.json"
    file.write_text(json.dumps(found["saved"]), encoding="utf-8")
    counted = read([file], report, tmp_path)["zero_shot"]
    wins = sum(expected.get(p["name"]) != "tie" and p.get(expected.get(p["name"])) == "tuned" for p in key["pairs"])
    assert (counted["wins"], counted["losses"], counted["ties"]) == (wins, 3 - wins, 1)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_phone_shows_it_without_scrolling_sideways(report, tmp_path):
    made, _, _ = made_page(report, tmp_path, seed=1, pairs=3)
    script = """
      const cards = [...document.querySelectorAll(".pair:not([hidden]) .card")].map(c => c.getBoundingClientRect());
      document.title = JSON.stringify({over: document.documentElement.scrollWidth - innerWidth, width: innerWidth,
        stacked: cards[1].top >= cards[0].bottom});
    """
    found = json.loads(in_browser(Path(made["page"]), script, width=500))
    assert found["over"] <= 0 and found["width"] <= 500 and found["stacked"]
