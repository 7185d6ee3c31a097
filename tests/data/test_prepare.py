"""From a recipe to a dataset: its name follows from what went in, and nothing half-made is left behind.

    python -m pytest tests/data/test_prepare.py
"""

from __future__ import annotations

import json
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.dataset import Dataset
from tunesmith.errors import DataError, StoreError
from tunesmith.template.render import render

JSONL = "".join(json.dumps({"prompt": f"{n} Oak Street", "completion": f'{{"number": "{n}"}}'}) + "\n" for n in range(100, 160))


def codes(dataset):
    return {f["code"]: f["count"] for f in dataset.manifest["findings"]}


def refusal(dataset_of, recipe):
    with pytest.raises(DataError) as error:
        dataset_of(recipe)
    assert error.value.exit_code == 2
    return error.value


# ---- the same inputs


def test_dataset_reads_back_as_it_was_rendered(dataset_of, make_recipe, tiny_tokenizer):
    made = dataset_of(make_recipe())
    assert made.tests == ["test"] and made.manifest["counts"]["train"] == 40 and made.manifest["counts"]["test:test"] == 8
    for part in ("train", "test"):
        rows, tokens = made.rows(part), made.tokens(part)
        assert [row.where for row in rows] == [f"{part}.jsonl:{n}" for n in range(1, len(rows) + 1)]
        rendered = [render(tiny_tokenizer, row.messages) for row in rows]
        assert [tokens[i] for i in range(len(tokens))] == [(r.ids, r.trained) for r in rendered]
        assert tokens.lengths == [len(r.ids) for r in rendered]
    counts = made.manifest["counts"]
    assert counts["tokens"] == sum(made.tokens("train").lengths) and counts["longest"] == max(made.tokens("train").lengths)
    assert counts["trained_tokens"] == sum(sum(made.tokens("train")[i][1]) for i in range(40))


def test_prepared_dataset_is_found_and_not_made_again(dataset_of, make_recipe):
    recipe = make_recipe()
    made = dataset_of(recipe)
    before = {p: p.stat().st_mtime_ns for p in (made.path, *made.path.iterdir())}
    again = dataset_of(recipe)
    assert (again.id, again.path) == (made.id, made.path)
    assert {p: p.stat().st_mtime_ns for p in (made.path, *made.path.iterdir())} == before


def test_id_does_not_depend_on_where_the_files_are_or_how_the_run_trains(dataset_of, make_recipe, tmp_path):
    (tmp_path / "kept.jsonl").write_text(JSONL)
    first = dataset_of(make_recipe(**{"data.evals": ["kept.jsonl"], "data.template": "chat.jinja"}))
    for name in ("train.jsonl", "test.jsonl", "kept.jsonl"):
        (tmp_path / "moved").mkdir(exist_ok=True)
        shutil.copy(tmp_path / name, tmp_path / "moved" / f"other-{name}")
    moved = make_recipe("moved/recipe.yaml", **{
        "data.train": "other-train.jsonl", "data.test": {"test": str(tmp_path / "moved/other-test.jsonl")},
        "data.evals": [str(tmp_path / "moved/other-kept.jsonl")], "data.template": str(tmp_path / "chat.jinja"),
        "train.epochs": 1})
    assert dataset_of(moved).id == first.id


@pytest.mark.parametrize("changes", [
    {"data.max_tokens": 127}, {"data.on_overflow": "drop"}, {"data.dedup": {"exact": False}}, {"data.dedup": {"near": 0.7}},
    {"data.test": {"held": "test.jsonl"}}, {"data.train": ["train.jsonl", "train.jsonl"]}, {"data.evals": ["test.jsonl"]},
    {"data.test": None},
], ids=str)
def test_changed_setting_gives_another_id(dataset_of, make_recipe, changes):
    plain, changed = (dataset_of(make_recipe(**c)).id for c in ({}, changes))
    assert plain != changed


def test_seed_belongs_to_the_id_only_when_it_splits(dataset_of, make_recipe):
    split, other = (dataset_of(make_recipe(**{"data.test": None, "train.seed": seed})).id for seed in (0, 1))
    fixed, same = (dataset_of(make_recipe(**{"train.seed": seed})).id for seed in (0, 1))
    assert split != other and fixed == same


def test_changed_row_template_or_tokenizer_gives_another_id(dataset_of, make_recipe, tiny_tokenizer, tiny_base, tmp_path):
    from transformers import AutoTokenizer

    recipe = make_recipe()
    ids = [dataset_of(recipe).id]
    other = AutoTokenizer.from_pretrained(tiny_base)
    other.chat_template = other.chat_template.replace("'<|im_end|>\n'", "'<|im_end|>'")
    ids.append(dataset_of(recipe, other).id)
    other = AutoTokenizer.from_pretrained(tiny_base)
    other.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    ids.append(dataset_of(recipe, other).id)
    path = tmp_path / "train.jsonl"
    path.write_text(path.read_text().replace("Oak", "Oaks", 1))
    ids.append(dataset_of(recipe).id)
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    ids.append(dataset_of(recipe).id)
    assert len(set(ids)) == 5


def test_split_without_a_test_file_is_the_same_for_a_copy_of_the_files(dataset_of, make_recipe, tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.jsonl").write_text(JSONL.replace("Oak", f"Oak{name}"))
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copy(tmp_path / f"{name}.jsonl", tmp_path / "copy" / f"{ord(name)}.jsonl")
    split = {"data.test": None, "data.split": {"by": "source", "test": 0.3}}
    first = dataset_of(make_recipe(**split, **{"data.train": [f"{name}.jsonl" for name in "abcdef"]}))
    rows = {part: [r.prompt for r in first.rows(part)] for part in ("train", "test")}
    assert len({r.where.split(":")[0] for r in first.rows("test")}) == 2
    shutil.rmtree(first.path)
    again = dataset_of(make_recipe(**split, **{"data.train": [f"copy/{ord(name)}.jsonl" for name in "abcdef"]}))
    assert again.id == first.id
    assert {part: [r.prompt for r in again.rows(part)] for part in ("train", "test")} == rows


# ---- what is kept and what is told


def test_rows_read_are_rows_kept_and_rows_told(dataset_of, make_recipe, tmp_path):
    recipe = make_recipe(**{"data.max_tokens": 60, "data.on_overflow": "drop"})
    rows = JSONL.splitlines()
    long = json.dumps({"prompt": "12 Main Street " * 20, "completion": "Main"})
    (tmp_path / "train.jsonl").write_text("\n".join([*rows, rows[3].upper().replace("PROMPT", "prompt").replace(
        "COMPLETION", "completion"), rows[4], long]))
    made = dataset_of(recipe)
    counts = made.manifest["counts"]
    assert codes(made)["exact_duplicate"] == 2 and codes(made)["overlong"] == 1
    assert counts["rows_read"] == 63 == counts["train"] + codes(made)["exact_duplicate"] + codes(made)["overlong"]
    overlong = next(f for f in made.manifest["findings"] if f["code"] == "overlong")
    assert re.fullmatch(r"train\.jsonl:63 \(\d+ tokens\)", overlong["examples"][0])
    assert max(made.tokens("train").lengths) <= 60


def test_planted_leaks_of_a_test_set_and_an_evals_file_are_found_apart(dataset_of, make_recipe, tmp_path):
    """Also when the evals file has the name of the test set."""
    rows = JSONL.splitlines()
    recipe = make_recipe(**{"data.test": {"kept": "test.jsonl"},
                            "data.evals": ["suite/kept.jsonl", "other/kept.jsonl", "kept"]})
    for place, planted in (("train.jsonl", rows), ("test.jsonl", rows[:1]), ("suite/kept.jsonl", rows[:2]),
                           ("other/kept.jsonl", rows[:3]), ("kept/a.jsonl", rows[:4])):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("\n".join(planted))
    found = {code: count for code, count in codes(dataset_of(recipe)).items() if code.startswith("leak")}
    assert found == {"leak_exact:kept": 1, "leak_exact:suite/kept.jsonl": 2, "leak_exact:other/kept.jsonl": 3,
                     "leak_exact:./kept": 4}


def test_text_keeps_the_system_prompt_of_the_training_chapters(dataset_of, make_recipe, tmp_path):
    for name, text in (("train/1.txt", "The Oak stood still. " * 30), ("test/1.txt", '"Yes!" "No!" ' * 40)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    made = dataset_of(make_recipe(**{"data.train": "train", "data.test": "test", "data.max_tokens": 2000}))
    system = {part: {r.messages[0]["content"] for r in made.rows(part)} for part in ("train", "test")}
    assert system["train"] == system["test"] == {made.manifest["system"]}
    assert "mostly narration" in made.manifest["system"]


def test_separators_inside_of_answers_survive_on_disk(dataset_of, make_recipe, tmp_path):
    odd = "a\u2028b\u2029c\u0085d\x0be\x1cf\r\ng"
    recipe = make_recipe()
    (tmp_path / "train.jsonl").write_text(JSONL + json.dumps({"prompt": "Odd?", "completion": odd}, ensure_ascii=False) + "\n",
                                          encoding="utf-8", newline="")
    made = dataset_of(recipe)
    assert made.rows("train")[-1].answer == odd and len(made.rows("train")) == len(made.tokens("train")) == 61


@pytest.mark.parametrize("name, where", [("rows.csv.gz", "rows.csv.gz:2"), ("rows.parquet", "rows.parquet:row 1")])
def test_tables_give_the_rows_that_json_lines_give(dataset_of, make_recipe, tmp_path, name, where):
    import gzip

    import pyarrow
    from pyarrow import parquet

    rows = [json.loads(line) for line in JSONL.splitlines()]
    text = "".join('"{prompt}","{completion}"\n'.format(**{k: v.replace('"', '""') for k, v in r.items()}) for r in rows)
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(f"prompt,completion\n{text}".encode()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    recipe = make_recipe(**{"data.train": name})
    read = dataset_of(recipe).rows("train")
    assert [(r.prompt, r.answer) for r in read] == [(r["prompt"], r["completion"]) for r in rows] and read[0].where == where


# ---- bad input


BAD = [
    ("malformed JSON", [None] * 36 + ['{"prompt": "a", "completion": '], "train.jsonl:37", "not JSON: Expecting value"),
    ("list where text belongs", ['{"messages": [{"role": "user", "content": ["q"]}, {"role": "assistant", "content": "a"}]}'],
     "train.jsonl:1: messages[0].content", "a list where text belongs"),
    ("no assistant turn", ['{"messages": [{"role": "user", "content": "q"}]}'], "train.jsonl:1: messages", "no assistant turn"),
    ("all weights 0", ['{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}'],
     "train.jsonl:1: messages", "every assistant turn has weight 0"),
    ("empty file", [], "train.jsonl", "the file is empty"),
    ("white space only", ["  ", "\t"], "train.jsonl", "the file is empty"),
    ("two formats", [None, '{"instruction": "q", "output": "a"}'], "train.jsonl:2",
     "prompt_completion at train.jsonl:1 and alpaca here"),
    ("control token", [None, '{"prompt": "q", "completion": "a<|im_end|>"}'], "train.jsonl:2", "spells out '<|im_end|>'"),
    ("tools unseen", ['{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": [{}]}'],
     "train.jsonl:1", "leaves out the row's tools"),
    ("half a character", [None, '{"prompt": "q", "completion": "\\ud83d"}'], "train.jsonl:2", "surrogates not allowed"),
]


@pytest.mark.parametrize("lines, where, message", [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_row_is_refused_with_file_line_and_field(dataset_of, make_recipe, tmp_path, home, lines, where, message):
    recipe = make_recipe()
    good = JSONL.splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(line or good[i] for i, line in enumerate(lines)))
    error = refusal(dataset_of, recipe)
    problem, = error.problems
    assert problem.where == where and message in problem.message
    assert f"{where}: " in str(error)
    assert not list((home / "datasets").glob("*"))


def test_file_that_is_not_utf8_is_refused_with_line_and_byte(dataset_of, make_recipe, tmp_path):
    recipe = make_recipe()
    (tmp_path / "test.jsonl").write_bytes(JSONL.encode().replace(b"103 Oak", b"103 \xd6k"))
    problem, = refusal(dataset_of, recipe).problems
    assert problem.where == "test.jsonl:4" and problem.message.startswith("not UTF-8 text: byte 0xd6")


def test_row_longer_than_allowed_is_refused_with_its_length(dataset_of, make_recipe, tmp_path):
    recipe = make_recipe(**{"data.max_tokens": 50})
    long = json.dumps({"prompt": "12 Main Street " * 20, "completion": "Main"})
    (tmp_path / "train.jsonl").write_text(JSONL + long)
    problem, = refusal(dataset_of, recipe).problems
    assert problem.where == "train.jsonl:61" and problem.code == "overlong"
    assert re.match(r"\d+ tokens, and data.max_tokens is 50", problem.message) and "on_overflow: drop" in problem.fix


def test_row_of_exactly_the_allowed_length_is_kept(dataset_of, make_recipe):
    made = dataset_of(make_recipe())
    longest = max(made.tokens("train").lengths + made.tokens("test").lengths)
    assert dataset_of(make_recipe(**{"data.max_tokens": longest})).manifest["counts"]["train"] == 40
    shorter = refusal(dataset_of, make_recipe(**{"data.max_tokens": longest - 1}))
    assert {p.message for p in shorter.problems} == {f"{longest} tokens, and data.max_tokens is {longest - 1}"}


@pytest.mark.parametrize("part", ["train", "test"])
def test_part_of_which_nothing_is_left_is_refused(dataset_of, make_recipe, tmp_path, part):
    recipe = make_recipe(**{"data.max_tokens": 50, "data.on_overflow": "drop"})
    (tmp_path / "train.jsonl").write_text(JSONL)
    (tmp_path / f"{part}.jsonl").write_text(json.dumps({"prompt": "12 Main Street " * 20, "completion": "Main"}))
    assert f"no row of {part!r} is left" in refusal(dataset_of, recipe).what


@pytest.mark.parametrize("train, what", [
    ("missing.jsonl", "data file 'missing.jsonl' does not exist"), ("rows/*.jsonl", "data file 'rows/*.jsonl' does not exist"),
    ("rows.xlsx", "not a kind of file that is read"), (["train.jsonl", "text.txt"], "text and rows in one list of files"),
], ids=str)
def test_file_that_cannot_be_data_is_refused_by_name(dataset_of, make_recipe, tmp_path, train, what):
    (tmp_path / "rows.xlsx").write_text("prompt,completion\n")
    (tmp_path / "text.txt").write_text("It was night.\n")
    error = refusal(dataset_of, make_recipe(**{"data.train": train}))
    assert error.what == what and error.where and error.fix


@pytest.mark.parametrize("name", ["train", "a b", "../x", ""])
def test_test_set_cannot_be_called_so(dataset_of, make_recipe, name):
    error = refusal(dataset_of, make_recipe(**{"data.test": {name: "test.jsonl"}}))
    assert error.what == f"{name!r} cannot be the name of a test set"


def test_all_bad_rows_of_all_files_are_counted_and_the_first_20_shown(dataset_of, make_recipe, tmp_path):
    recipe = make_recipe(**{"data.train": ["a.jsonl", "train.jsonl"]})
    (tmp_path / "a.jsonl").write_text('{"prompt": "q"}\n{"prompt": \n' + JSONL)
    (tmp_path / "train.jsonl").write_text('{"prompt": "q", "completion": ""}\n' * 30)
    error = refusal(dataset_of, recipe)
    assert error.what == "32 problems in the data (the first 20 are shown)"
    assert [p.where for p in error.problems[:3]] == ["a.jsonl:1", "a.jsonl:2", "train.jsonl:1: completion"]
    assert len(error.problems) == 20


ANY = st.text(max_size=8) | st.text(st.characters(exclude_categories=[]), max_size=8)
"""The second also makes halves of surrogate pairs."""


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(ANY, ANY.map(lambda t: f"a{t}")), min_size=1, max_size=8), escaped=st.booleans())
def test_any_text_is_prepared_exactly_or_refused(dataset_of, make_recipe, tmp_path, pairs, escaped):
    recipe = make_recipe()
    text = "".join(json.dumps({"prompt": p, "completion": c}, ensure_ascii=escaped) + "\n" for p, c in pairs)
    (tmp_path / "train.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        made = dataset_of(recipe)
    except DataError as error:
        assert error.problems or error.where
    else:
        kept = [(r.prompt, r.answer) for r in made.rows("train")]
        assert kept == [p for i, p in enumerate(pairs) if f"train.jsonl:{i + 1}" in {r.where for r in made.rows("train")}]
        assert len(kept) + codes(made).get("exact_duplicate", 0) == len(pairs)


# ---- nothing half-made


def test_nothing_is_left_when_the_rows_cannot_be_rendered(dataset_of, make_recipe, home):
    refusal(dataset_of, make_recipe(**{"data.max_tokens": 8}))
    assert not list((home / "datasets").glob("*")) or not list((home / "datasets").iterdir())


def test_full_disk_leaves_nothing_and_says_what_to_do(dataset_of, make_recipe, small_disk, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNESMITH_HOME", str(small_disk))
    recipe = make_recipe()
    (tmp_path / "train.jsonl").write_text("".join(
        json.dumps({"prompt": f"{n} Oak Street", "completion": "x" * 90}) + "\n" for n in range(600)))
    with pytest.raises(StoreError) as error:
        dataset_of(recipe)
    assert error.value.why == "no space left on the disk" and "TUNESMITH_HOME" in error.value.fix
    assert not list((small_disk / "datasets").iterdir())


def test_dataset_without_its_manifest_is_refused(tmp_path):
    with pytest.raises(StoreError, match="could not read"):
        Dataset.open(tmp_path)


# ---- held out


def test_near_duplicates_are_held_out_together_so_that_a_split_leaks_nothing(dataset_of, make_recipe, tmp_path):
    """The control: the same rows without the near-duplicate search are torn apart, and the leaks are found."""
    streets = ("Cottage Grove Avenue Southeast", "Washington Boulevard North", "Stone Hedge Lane West")
    lines = [json.dumps({"prompt": f"Take apart this line: {n * 7919} {streets[n % 3]}{mark}",
                         "completion": f'{{"n": "{n * 7919}"}}'}) for n in range(30) for mark in ("", " Unit")]

    def leaks(near, seed):
        recipe = make_recipe(**{"data.test": None, "data.split": {"test": 0.3}, "data.dedup": {"near": near},
                                "train.seed": seed})
        (tmp_path / "train.jsonl").write_text("\n".join(lines))
        made = dataset_of(recipe)
        sides = [{re.search(r"\d+", r.prompt)[0] for r in made.rows(part)} for part in ("train", "test")]
        return sides[0] & sides[1], sum(f["count"] for f in made.manifest["findings"] if f["code"] == "leak_near:test")

    assert all(leaks(0.8, seed) == (set(), 0) for seed in range(3))
    assert all(leaks(None, seed)[0] for seed in range(3))


# ---- filtered


DAMAGED = [{"prompt": f"{n} Oak Street", "completion": f"{n} <br/> oak"} for n in range(300, 312)]


def lines(rows):
    return "\n".join(map(json.dumps, rows)) + "\n"


def test_filter_leaves_training_rows_out_and_never_held_out_ones(dataset_of, make_recipe, tmp_path):
    def made(**changes):
        recipe = make_recipe(**changes)
        (tmp_path / "train.jsonl").write_text(JSONL + lines(DAMAGED))
        (tmp_path / "test.jsonl").write_text(lines({**row, "prompt": row["prompt"].replace("Oak", "Elm")} for row in DAMAGED))
        return dataset_of(recipe)

    plain, filtered = made(), made(**{"data.filter": {"drop": ["html_residue"]}})
    assert plain.id != filtered.id and codes(plain)["html_residue"] == 12 and "html_residue" not in codes(filtered)
    assert [r.where for r in filtered.rows("train")] == [f"train.jsonl:{n}" for n in range(1, 61)]
    assert [r.as_record() for r in filtered.rows("test")] == [r.as_record() for r in plain.rows("test")]
    would, = (f for f in plain.manifest["filters"] if f["name"] == "html_residue")
    did, = (f for f in filtered.manifest["filters"] if f["name"] == "html_residue")
    assert (would["chosen"], would["rows"], would["alone"], would["in_order"]) == (False, 72, 12, 0)
    assert (did["chosen"], did["rows"], did["alone"], did["in_order"]) == (True, 72, 12, 12)
    assert codes(filtered)["filtered:html_residue"] == 12 and "filtered:html_residue" not in codes(plain)
    assert did["examples"][0] == "train.jsonl:61: messages[1] at 4: '<br/>'"


def test_rows_drawn_for_the_test_are_not_filtered_and_the_draw_does_not_depend_on_the_filter(dataset_of, make_recipe, tmp_path):
    """The control of comparing two filters: both are scored on the same rows."""
    def held_out(**changes):
        recipe = make_recipe(**{"data.test": None, "data.split": {"test": 0.3}}, **changes)
        (tmp_path / "train.jsonl").write_text(JSONL + lines(DAMAGED))
        made = dataset_of(recipe)
        return [r.where for r in made.rows("test")], sum("<br/>" in r.answer for r in made.rows("train"))

    plain, before = held_out()
    filtered, after = held_out(**{"data.filter": {"drop": ["html_residue"]}})
    assert plain == filtered and before > 0 == after
    assert any(int(where.split(":")[1]) > 60 for where in plain)


def test_mix_is_made_of_what_the_filter_left(dataset_of, make_recipe, tmp_path):
    recipe = make_recipe(**{"data.filter": {"drop": ["html_residue"]}, "data.mix": {"by": "kind", "weights": {"a": 1, "b": 1}}})
    (tmp_path / "train.jsonl").write_text(lines(
        [{**json.loads(line), "kind": "a"} for line in JSONL.splitlines()] + [{**row, "kind": "b"} for row in DAMAGED]
        + [{"prompt": f"{n} Elm Street", "completion": str(n), "kind": "b"} for n in range(400, 420)]))
    assert dataset_of(recipe).manifest["mix"] == {"a": [60, 20], "b": [20, 20]}


def test_filter_that_leaves_nothing_is_refused_and_leaves_no_dataset(dataset_of, make_recipe, home):
    error = refusal(dataset_of, make_recipe(**{"data.filter": {"min_answer_characters": 5000}}))
    assert "drops all 40 training rows" in error.what and error.why == "min_answer_characters 40"
    assert not [p for p in (home / "datasets").glob("*") if p.is_dir()]
