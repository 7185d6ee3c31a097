"""`tunesmith import` as a command: one document, exit codes, and a recipe that the next verb takes.

pytest tests/cli/test_import.py
"""

import json
from pathlib import Path

import pytest

from tunesmith.recipe.load import load, parse

FIXTURES = Path(__file__).parent.parent / "recipe" / "foreign"
KEYS = {"recipe", "source", "mapped", "unsupported", "ignored", "added"}


@pytest.mark.parametrize("name, source", [("axolotl_qlora_style", "axolotl"), ("llamafactory_sft", "llamafactory")])
def test_one_document_with_the_path_written(command, tmp_path, name, source):
    done = command("import", FIXTURES / f"{name}.yaml", "--out", tmp_path / "r.yaml", "--json", check=0)
    assert done.json.keys() == KEYS and done.json["source"] == source
    assert done.json["recipe"] == str(tmp_path / "r.yaml") and load(done.json["recipe"]).recipe
    assert all({"key", "value", "line", "why", "consequence", "fix"} <= u.keys() for u in done.json["unsupported"])
    assert all({"from", "to", "value", "note"} <= m.keys() for m in done.json["mapped"])


def test_without_out_the_recipe_is_on_stdout_and_the_list_on_stderr(command):
    done = command("import", FIXTURES / "axolotl_qlora_style.yaml", check=0)
    assert parse(done.stdout).method.rank == 64
    assert "no equal" in done.stderr and "lora_modules_to_save" in done.stderr
    machines = command("import", FIXTURES / "axolotl_qlora_style.yaml", "--json", check=0)
    assert machines.json["recipe"] == done.stdout


def test_people_read_what_has_no_equal_and_what_comes_next(command, tmp_path):
    done = command("import", FIXTURES / "llamafactory_qlora.yaml", "--out", tmp_path, check=0)
    assert f"next: tunesmith check {tmp_path / 'recipe.yaml'}" in done.stdout
    assert f"no equal: {FIXTURES / 'llamafactory_qlora.yaml'}:7: additional_target" in done.stdout


@pytest.mark.parametrize("content, words", [("", "empty"), ("- a", "a list"), ("a: [", "not valid YAML"), ("seed: 1",
                                                                                                           "not clear"),
                                            ("base_model: a/b\nrl: dpo\n", "cannot become a recipe")])
def test_bad_files_are_exit_code_2(cli, tmp_path, content, words):
    (tmp_path / "f.yaml").write_text(content)
    done = cli("import", tmp_path / "f.yaml", check=2)
    assert words in done.stderr and done.stdout == ""


def test_a_file_that_is_not_there_and_one_that_would_be_overwritten(command, tmp_path):
    assert "no such file" in command("import", tmp_path / "none.yaml", "--json", check=2).json["what"]
    (tmp_path / "recipe.yaml").write_text("mine")
    error = command("import", FIXTURES / "axolotl_full.yaml", "--out", tmp_path / "recipe.yaml", "--json", check=2).json
    assert error["error"] == "UsageError" and "nothing is overwritten" in error["fix"]
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert "cannot be read" in command("import", tmp_path, check=2).stderr


def test_an_imported_recipe_is_taken_by_check(command, tiny_base, tmp_path):
    """With a base and rows that are there, what was imported is ready or says why not, as any recipe."""
    rows = [{"instruction": f"Say {n}", "output": f"It is {n}."} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "a.yaml").write_text(f"base_model: {tiny_base}\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: "
                                     f"true\n"
                                     f"datasets:\n- {{path: {tmp_path}/rows.jsonl, type: alpaca}}\nval_set_size: 0.2\n"
                                     "learning_rate: 1e-3\nsequence_len: 256\nsample_packing: true\n")
    made = command("import", tmp_path / "a.yaml", "--out", tmp_path / "r.yaml", "--json", check=0).json
    recipe = load(made["recipe"]).recipe
    assert recipe.data.train == "rows.jsonl" and recipe.train.tokens_per_step == 256
    checked = command("check", made["recipe"], "--json").json
    assert not [p for p in checked["problems"] if p["code"] in ("bad_value", "unknown_key", "missing_key")]
    assert checked["estimate"]["trainable_parameters"] > 0
