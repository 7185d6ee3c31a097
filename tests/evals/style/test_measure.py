"""The whole section on a real, tiny run: base and tuned write, the report says what came of it, and a reader votes.

pytest tests/evals/style/test_measure.py
"""

import html
import json
import re
import shutil
from pathlib import Path

import pytest
from tests.conftest import EXAMPLES, Project

import tunesmith
from tunesmith.errors import DataError
from tunesmith.evals.html import render_report
from tunesmith.evals.style import twosample
from tunesmith.evals.style.measure import compare_texts, other_passages, verdict, worries

SYSTEMS = ("zero_shot", "tuned")


@pytest.fixture(scope="module", autouse=True)
def _fewer_permutations():
    """Enough for p = 0.05, in a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twosample, "PERMUTATIONS", 19)
        yield


@pytest.fixture(scope="module")
def styled(tmp_path_factory, lively_base) -> Project:
    """A run of the style example's text on a tiny random base: two steps, which change little."""
    import yaml

    folder = tmp_path_factory.mktemp("styled")
    shutil.copytree(EXAMPLES / "style/data", folder / "data")
    recipe = {
        "name": "voice", "base": str(lively_base),
        "data": {"train": "data/train", "test": "data/test", "max_tokens": 512, "on_overflow": "drop",
                 "style": {"chunk_words": 40}},
        "method": {"type": "lora", "rank": 4, "alpha": 8},
        "train": {"max_steps": 2, "tokens_per_step": 512, "learning_rate": 0.01, "dtype": "float32"},
        "eval": {"metrics": ["loss"], "samples": 4, "style": {"samples": 8, "max_new_tokens": 24}},
        "gates": {"target": {"metric": "loss"}}, "track": {"mlflow": None},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(folder / "home"))
        trained = tunesmith.train(folder / "recipe.yaml")
        done = tunesmith.evaluate(trained["run_id"])
    return Project(folder / "recipe.yaml", folder / "home", done)


@pytest.fixture(scope="module")
def real(austen, held, melville):
    """Real texts in the place of what models write: the base is Melville, the tuned one is the author."""
    said = {"zero_shot": melville[: len(held)], "tuned": austen[::2][: len(held)]}
    return compare_texts(held, said, austen[1::2], [f"passage {i}" for i in range(1, len(austen), 2)], other=melville)


def test_a_run_with_style_has_the_section(styled):
    style = styled.report["style"]
    assert style["kind"] == "style" and style["n"] == len(style["items"]) == 8 and style["set"] == styled.report["primary"]
    assert set(style["words"]) == {"author", "training", *SYSTEMS}
    assert all(set(item["texts"]) == set(SYSTEMS) for item in style["items"])
    assert set(style["distances"]) == {"delta", "lengths", "marks"} and style["verdict"]
    assert any("words of held-out text" in w for w in styled.report["worry"]), "eight passages are little, and it says so"


def test_both_wrote_with_the_same_random_streams_and_do_so_again(styled, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(styled.home))
    before = styled.report["style"]
    tunesmith.evaluate(styled.done["run_id"])
    assert styled.report["style"] == before


def test_every_number_has_an_interval(real):
    for line in real["profile"].values():
        assert {"author", *SYSTEMS} >= set(line["systems"])
        for one in line["systems"].values():
            assert one["ci95"][0] <= one["value"] <= one["ci95"][1]
    for d in real["distances"].values():
        assert all(s["ci95"][0] <= s["value"] <= s["ci95"][1] for s in d["systems"].values())
        assert d["ci95"][0] <= d["delta"] <= d["ci95"][1]
        assert d["self"]["range95"][0] <= d["self"]["value"] <= d["self"]["range95"][1]
    for told in real["two_sample"].values():
        assert told["ci95"][0] <= told["accuracy"] <= told["ci95"][1]
    for name in ("author", *SYSTEMS):
        found = real["copying"][name]
        assert found["ci95"][0] <= found["share"] <= found["ci95"][1]


def test_the_author_is_closer_than_another(real):
    assert real["distances"]["delta"]["ci95"][1] < 0
    assert real["two_sample"]["zero_shot"]["p_value"] == 1 / 20
    assert real["two_sample"]["zero_shot"]["accuracy"] > real["two_sample"]["tuned"]["accuracy"]
    sure = [line["closer"] for line in real["profile"].values() if line["sure"]]
    assert len(sure) >= 3 and sure.count("tuned") >= len(sure) - 1
    assert verdict(real["distances"]).startswith("In function words the tuned model is closer")


def test_a_worse_model_is_called_worse(real):
    """The control of the verdict: it must be able to say that tuning led away from the author."""
    d = real["distances"]["delta"]
    swapped = d | {"systems": {"zero_shot": d["systems"]["tuned"], "tuned": d["systems"]["zero_shot"]},
                   "delta": -d["delta"], "ci95": [-d["ci95"][1], -d["ci95"][0]]}
    still = d | {"ci95": [-0.1, 0.1]}
    far, near = {"label": "punctuation", "ci95": [0.1, 0.2]}, {"label": "sentences", "ci95": [-2, -1]}
    assert "farther from the author" in verdict({"delta": swapped})
    assert verdict({"delta": still}).startswith("In function words no difference")
    moved = verdict({"delta": still, "marks": far, "lengths": near})
    assert moved.endswith("The tuned model is closer in sentences, and farther in punctuation.")
    assert verdict({"delta": still, "marks": far | {"ci95": [-0.1, 0.1]}}) == verdict({"delta": still})


def test_a_parrot_is_a_worry_and_an_honest_text_is_none(austen, held, real):
    parrot = [a + " " + h for a, h in zip(austen, held, strict=False)]
    said = {"zero_shot": held, "tuned": parrot}
    found = compare_texts(held, said, austen, [f"chapter {i}" for i in range(len(austen))])
    told = worries(found, 13)
    assert any("words in a row of the training text (chapter" in w for w in told)
    assert any("copied runs" in w for w in told)
    assert not any("words in a row" in w or "copied" in w for w in worries(real, 13))


def test_short_output_is_a_worry(austen, held):
    said = {"zero_shot": held, "tuned": [" ".join(t.split()[:20]) for t in held]}
    found = compare_texts(held, said, austen, ["x"] * len(austen))
    assert any("tuned wrote" in w for w in worries(found, 13)) and not any("zero_shot wrote" in w for w in worries(found, 13))


def test_the_section_says_what_the_report_says(styled, real):
    report = styled.report
    report["style"] |= real | {"verdict": verdict(real["distances"])}
    report["style"]["items"][0]["texts"]["tuned"] = "<script>alert(1)</script>"
    page = render_report(report)
    assert 'id="style"' in page and "<script>alert" not in page
    assert html.escape(report["style"]["verdict"]).replace("&#x27;", "&#39;") in page
    for d in real["distances"].values():
        assert f"{d['systems']['tuned']['value']:.3f}" in page and f"{d['systems']['zero_shot']['value']:.3f}" in page
    longest = real["copying"]["tuned"]["longest"]
    assert longest["from"] in page and f"{longest['words']}</b> words" in page
    assert f"{100 * real['two_sample']['tuned']['accuracy']:.1f}%" in page
    assert re.search(r"author against himself", page) and "another author" in page


def test_a_report_without_style_has_no_section(styled):
    report = styled.report
    del report["style"]
    page = render_report(report)
    assert 'id="style"' not in page and "Voice" not in page


def test_other_text_that_is_not_there_is_an_error_that_says_so(tmp_path, austen):
    with pytest.raises(DataError, match="no such file"):
        other_passages("nobody.txt", tmp_path, austen)
    (tmp_path / "short.txt").write_text("Too short to be anybody.", encoding="utf-8")
    with pytest.raises(DataError, match="only 1 passages"):
        other_passages(["short.txt"], tmp_path, austen)


def test_vote_and_count(styled, command, monkeypatch, tmp_path):
    """The command makes the page, and reads what the page saves: won where the reader chose the tuned text."""
    monkeypatch.setenv("TUNESMITH_HOME", str(styled.home))
    run = styled.done["run_id"]
    made = command("vote", run, "--pairs", "6", "--seed", "5", "--json", check=0).json
    pairs = json.loads(Path(made["key"]).read_text(encoding="utf-8"))["pairs"]
    votes = {p["name"]: "first" if p["first"] == "tuned" else "second" for p in pairs[:4]} | {pairs[4]["name"]: "tie"}
    file = tmp_path / "votes.json"
    file.write_text(json.dumps({"ballot": made["ballot"], "reader": "Mary", "votes": votes, "saved": "x"}), encoding="utf-8")
    counted = command("vote", run, "--votes", file, "--json", check=0).json["votes"]["zero_shot"]
    assert (counted["wins"], counted["losses"], counted["ties"], counted["readers"]) == (4, 0, 1, 1)
    assert styled.report["style"]["votes"]["zero_shot"] == counted
    page = (styled.run_dir / "report/report.html").read_text(encoding="utf-8")
    assert "Blind votes" in page and "4 of 4 decided pairs" in page
    tunesmith.evaluate(run)
    assert styled.report["style"]["votes"]["zero_shot"] == counted, "measuring again does not lose votes on the same texts"


def test_vote_needs_a_report_with_texts(project, command):
    refused = command("vote", project.done["run_id"], check=2)
    assert "eval.style" in refused.stderr
