"""What a value of axolotl or LLaMA-Factory means, as a recipe says it.

    python -m pytest tests/recipe/test_import.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from tunesmith.errors import RecipeError, UsageError
from tunesmith.recipe.foreign.convert import TOOLS, import_recipe
from tunesmith.recipe.foreign.reference import markdown
from tunesmith.recipe.load import load, parse
from tunesmith.recipe.methods import METHODS
from tunesmith.recipe.schema import Objective, Train

FIXTURES = Path(__file__).parent / "foreign"
FILES = sorted(FIXTURES.glob("*.yaml"))
AXOLOTL = {"base_model": "owner/name", "learning_rate": 1e-4, "adapter": "lora", "datasets": [{"path": "a/b",
                                                                                               "type": "alpaca"}]}
LLAMA = {"model_name_or_path": "owner/name", "stage": "sft", "finetuning_type": "lora", "dataset": "x", "dataset_dir": "none"}


@pytest.fixture
def bring(tmp_path, monkeypatch):
    """Import a mapping as a file; `(recipe, document)`."""
    monkeypatch.chdir(tmp_path)

    def run(values: dict, **more):
        (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(values | more, sort_keys=False), encoding="utf-8")
        made = import_recipe(tmp_path / "theirs.yaml")
        return parse(made["recipe"]), made

    return run


def entry(made: dict, where: str, key: str) -> dict:
    (found,) = [e for e in made[where] if e.get("key", e.get("from")) == key]
    return found


def refused(bring, *arguments, **more) -> list:
    with pytest.raises(RecipeError) as error:
        bring(*arguments, **more)
    assert error.value.exit_code == 2
    return error.value.problems


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_fixture_becomes_a_recipe_that_loads_with_paths_relative_to_it(path, tmp_path):
    made = import_recipe(path, out=tmp_path / "deep" / "r.yaml")
    loaded = load(made["recipe"])
    assert made["recipe"] == str(tmp_path / "deep" / "r.yaml")
    assert made["source"] == path.stem.split("_")[0]
    train = loaded.recipe.data.train
    for one in [train] if isinstance(train, str) else train:
        if "://" not in one and not one.startswith("hf:") and "nowhere" not in one:
            assert loaded.resolve(one).is_file(), one


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_value_of_the_recipe_says_where_it_is_from(path):
    lines = import_recipe(path)["recipe"].split("# No equal here")[0].splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        if line.strip() and not line.lstrip().startswith("#") and not line.rstrip().endswith(":"):
            assert "  # " in line or before.lstrip().startswith("#"), line


def test_there_are_fixtures_of_both():
    assert {p.stem.split("_")[0] for p in FILES} == set(TOOLS)


def test_what_the_style_transfer_becomes():
    """The guide's own file: 4-bit QLoRA with whole embeddings, resumed."""
    path = FIXTURES / "axolotl_qlora_style.yaml"
    made = import_recipe(path)
    recipe = parse(made["recipe"])
    assert (recipe.name, recipe.base) == ("qlora-style-pipeline-test", "meta-llama/Llama-3.1-8B-Instruct")
    assert (recipe.method.type, recipe.method.double_quant) == ("qlora", True)
    assert (recipe.method.rank, recipe.method.alpha, recipe.method.dropout) == (64, 128.0, 0.05)
    assert recipe.method.targets == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert (recipe.train.epochs, recipe.train.learning_rate, recipe.train.schedule) == (5, 1e-4, "cosine")
    assert recipe.train.tokens_per_step == 2 * 4 * 2048 and recipe.train.tokens_per_pack == 2 * 2048
    assert recipe.train.checkpoint.every_steps == 2 and recipe.train.checkpoint.keep == 3
    assert recipe.data.split.test == 0.15 and recipe.data.max_tokens == 2048 and recipe.data.format == "openai"
    assert {u["key"] for u in made["unsupported"]} == {"lora_modules_to_save", "warmup_steps", "resume_from_checkpoint"}
    whole = entry(made, "unsupported", "lora_modules_to_save")
    assert "1.05 billion" in whole["consequence"] and "vLLM" in whole["fix"] and whole["where"] == f"{path}:16"
    assert "total" in entry(made, "unsupported", "resume_from_checkpoint")["why"]
    assert "total" in entry(made, "mapped", "num_epochs")["note"]


def test_dataset_info_says_where_the_rows_are_and_how_they_look():
    made = import_recipe(FIXTURES / "llamafactory_sft.yaml", out=None)
    recipe = parse(made["recipe"])
    assert [Path(p).name for p in recipe.data.train] == ["plain.json", "chats.jsonl"]
    assert recipe.data.test == "hf:owner/held-out:test"
    assert recipe.data.mix.caps == 1000 and recipe.data.mix.by == "source"
    assert (recipe.method.rank, recipe.method.alpha, recipe.method.targets) == (8, 16.0, "all-linear")
    assert recipe.track.mlflow is None and recipe.train.warmup == 0.1 and recipe.train.eval_every_steps == 50
    assert not [u for u in made["unsupported"] if u["key"] in ("dataset", "eval_dataset", "template")]


def test_names_that_no_info_file_explains_are_told_and_the_recipe_names_what_is_missing():
    made = import_recipe(FIXTURES / "llamafactory_qlora.yaml")
    told = entry(made, "unsupported", "dataset")
    assert "nowhere" in told["why"] and told["instead"]["to"] == "data.train" and "data.train" in told["fix"]
    recipe = parse(made["recipe"])
    assert recipe.method.alpha == pytest.approx(2 * 8 * math.sqrt(8))
    assert recipe.train.tokens_per_step == 8 * 2048, "LLaMA-Factory's defaults: 8 rows of 2048 tokens"
    assert recipe.train.schedule == "linear" and recipe.method.targets == ["q_proj", "v_proj"]


def test_what_a_dataset_info_says_that_a_recipe_cannot_is_told_with_its_file():
    made = import_recipe(FIXTURES / "llamafactory_full_zero3.yaml")
    told = {u["key"]: u for u in made["unsupported"]}
    for key in ("odd", "odd.ranking", "odd.num_samples", "odd.colour"):
        name = f"dataset_info.json: {key}" if "." not in key else f"dataset_info.json: {key}"
        assert told[name]["where"] == str(FIXTURES / "data" / "dataset_info.json")
    assert parse(made["recipe"]).method.type == "full" and "finetuning_type" not in told


@pytest.mark.parametrize("values, packed, tokens", [
    ({"micro_batch_size": 2, "gradient_accumulation_steps": 8, "sequence_len": 4096}, True, 2 * 8 * 4096),
    ({"sequence_len": 4096}, True, 4096),
    ({}, True, 512),
])
def test_tokens_of_a_step_when_rows_are_packed(bring, values, packed, tokens):
    recipe, made = bring(AXOLOTL, sample_packing=packed, **values)
    assert recipe.train.tokens_per_step == tokens
    for key in values.keys() & {"micro_batch_size", "gradient_accumulation_steps"}:
        assert str(values["sequence_len"]) in entry(made, "mapped", key)["note"]


def test_tokens_of_a_step_when_rows_are_not_packed_are_rows_times_what_a_row_holds(bring, tmp_path):
    rows = [{"instruction": "a" * 100, "output": "b" * n} for n in (100, 300)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe, made = bring(AXOLOTL | {"datasets": [{"path": "r.jsonl", "type": "alpaca"}]}, micro_batch_size=4,
                         gradient_accumulation_steps=2, sequence_len=4096)
    assert recipe.train.tokens_per_step == 8 * (200 + 400) / 2 / 4
    assert "4 rows x 2 accumulated x about 75 tokens" in entry(made, "mapped", "micro_batch_size")["note"]


def test_tokens_of_a_step_that_cannot_be_known_are_told_not_guessed(bring):
    recipe, made = bring(AXOLOTL, micro_batch_size=4, sequence_len=4096)
    assert recipe.train.tokens_per_step == Train().tokens_per_step
    assert "4 x the mean tokens" in entry(made, "unsupported", "micro_batch_size")["fix"]


def test_alpha_under_rslora_scales_as_much(bring):
    recipe, _ = bring(AXOLOTL, lora_r=64, lora_alpha=32, peft_use_rslora=True)
    assert recipe.method.alpha / recipe.method.rank == pytest.approx(32 / math.sqrt(64))


def test_warmup_steps_are_a_share_only_when_the_steps_are_known(bring):
    known, made = bring(AXOLOTL, warmup_steps=25, max_steps=200)
    assert known.train.warmup == 0.125 and known.train.max_steps == 200 and known.train.epochs >= 200
    assert entry(made, "mapped", "warmup_steps")["note"] == "25 of 200 steps"
    unknown, made = bring(AXOLOTL, warmup_steps=25)
    assert unknown.train.warmup == Train().warmup and "25 / the steps" in entry(made, "unsupported", "warmup_steps")["fix"]


@pytest.mark.parametrize("tool, name, ours, warmup", [
    (AXOLOTL, "cosine", "cosine", 0.03), (AXOLOTL, "constant_with_warmup", "constant", 0.03), (AXOLOTL, "constant", "constant",
                                                                                               0.0),
    (AXOLOTL, None, "cosine", 0.03), (LLAMA, None, "linear", 0.0), (LLAMA, "linear", "linear", 0.0),
])
def test_schedules_and_the_defaults_of_each_tool(bring, tool, name, ours, warmup):
    recipe, _ = bring(tool, **{"lr_scheduler" if tool is AXOLOTL else "lr_scheduler_type": name})
    assert (recipe.train.schedule, recipe.train.warmup) == (ours, warmup)


def test_defaults_that_differ_from_ours_are_written_out(bring):
    recipe, made = bring(LLAMA, packing=True)
    assert (recipe.train.learning_rate, recipe.train.epochs, recipe.train.seed, recipe.data.max_tokens) == (5e-5, 3, 42, 2048)
    assert (recipe.method.rank, recipe.method.alpha, recipe.train.tokens_per_step) == (8, 16.0, 8 * 2048)
    assert all("default" in a["why"] for a in made["added"] if a["to"] in ("train.learning_rate", "train.epochs",
                                                                           "method.rank"))
    recipe, _ = bring(AXOLOTL)
    assert (recipe.train.epochs, recipe.data.max_tokens, recipe.data.on_overflow) == (1, 512, "drop")


@pytest.mark.parametrize("values, where, key", [
    ({"train_on_inputs": False}, "ignored", "train_on_inputs"), ({"train_on_inputs": True}, "unsupported", "train_on_inputs"),
    ({"adam_beta2": 0.999}, "ignored", "adam_beta2"), ({"adam_beta2": 0.95}, "unsupported", "adam_beta2"),
    ({"optimizer": "adamw_bnb_8bit"}, "ignored", "optimizer"), ({"optimizer": "muon"}, "unsupported", "optimizer"),
    ({"chat_template": "tokenizer_default"}, "ignored", "chat_template"), ({"chat_template": "chatml"}, "unsupported",
                                                                           "chat_template"),
    ({"special_tokens": {"pad_token": "<p>"}}, "ignored", "special_tokens"),
    ({"special_tokens": {"eos_token": "<e>"}}, "unsupported", "special_tokens"),
    ({"save_strategy": "epoch"}, "unsupported", "save_strategy"), ({"save_steps": 10}, "mapped", "save_steps"),
    ({"load_in_8bit": True}, "unsupported", "load_in_8bit"), ({"load_in_8bit": False}, "ignored", "load_in_8bit"),
    ({"excess_length_strategy": "truncate"}, "unsupported", "excess_length_strategy"),
    ({"num_epochs": 2.5}, "unsupported", "num_epochs"), ({"num_epochs": 2.0}, "mapped", "num_epochs"),
    ({"wandb_project": "p"}, "mapped", "wandb_project"), ({"wandb_project": None}, "ignored", "wandb_project"),
    ({"bf16": "auto"}, "ignored", "bf16"), ({"deepspeed": "zero3.json"}, "ignored", "deepspeed"),
    ({"peft_use_dora": True}, "mapped", "peft_use_dora"), ({"peft_use_dora": True, "adapter": "qlora"}, "unsupported",
                                                           "peft_use_dora"),
    ({"loraplus_lr_ratio": 16.0}, "mapped", "loraplus_lr_ratio"), ({"adapter": "qlora"}, "mapped", "adapter"),
    ({"adapter": "qlora", "load_in_4bit": True}, "mapped", "load_in_4bit"), ({"load_in_4bit": True}, "unsupported",
                                                                             "load_in_4bit"),
    ({"hub_model_id": "a/b"}, "unsupported", "hub_model_id"),
    ({"chat_template_jinja": "{{ messages }}"}, "unsupported", "chat_template_jinja"),
])
def test_a_key_is_supported_only_with_a_value_that_means_the_same(bring, values, where, key):
    _, made = bring(AXOLOTL, **values)
    told = entry(made, where, key)
    assert told.get("why", told.get("note")) is not None
    if where == "unsupported":
        assert told["consequence"] and told["fix"] and told["where"].endswith(f":{told['line']}")


def test_without_an_adapter_everything_is_trained_and_what_is_said_of_adapters_means_nothing(bring):
    full = {k: v for k, v in AXOLOTL.items() if k != "adapter"}
    for values, more in ((full, {"lora_r": 8, "lora_dropout": 0.1, "lora_target_linear": True, "lora_modules_to_save": ["x"]}),
                         (LLAMA | {"finetuning_type": "full"}, {"lora_rank": 8, "lora_dropout": 0.1, "use_dora": True,
                                                                "loraplus_lr_ratio": 16.0, "additional_target": "x"})):
        recipe, made = bring(values, **more)
        assert recipe.method.type == "full"
        assert all("every weight is trained" in entry(made, "ignored", key)["why"] for key in more)


@pytest.mark.parametrize("values, expected", [
    ({"quantization_bit": 4}, ("qlora", True)), ({"quantization_bit": 4, "double_quantization": False}, ("qlora", False)),
    ({"quantization_bit": 8}, ("lora", None)), ({"quantization_bit": 4, "quantization_type": "fp4"}, ("lora", None)),
    ({"pissa_init": True}, ("lora", None)),
])
def test_four_bits_of_llamafactory_are_qlora_and_others_are_told(bring, values, expected):
    recipe, made = bring(LLAMA, **values)
    assert (recipe.method.type, getattr(recipe.method, "double_quant", None)) == expected
    assert bool([u for u in made["unsupported"] if u["key"] == "quantization_bit"]) == (
        "quantization_bit" in values and expected[0] == "lora")
    assert getattr(recipe.method, "init", None) == ({"pissa_init": "pissa"}.get(next(iter(values)), "kaiming") if
                                                    expected[0] == "lora" else None)


@pytest.mark.parametrize("base, template, same", [
    ("Qwen/Qwen3-4B-Instruct-2507", "qwen3_nothink", True), ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3", True),
    ("meta-llama/Meta-Llama-3-8B-Instruct", "qwen", False), ("owner/name", "alpaca", False),
])
def test_a_template_of_another_family_is_told(bring, base, template, same):
    _, made = bring(LLAMA, model_name_or_path=base, template=template)
    assert entry(made, "ignored" if same else "unsupported", "template")


def test_an_unknown_key_gets_the_nearest_name_and_its_line(bring, tmp_path):
    _, made = bring(AXOLOTL, lora_targt_linear=True)
    told = entry(made, "unsupported", "lora_targt_linear")
    assert told["fix"] == "did you mean 'lora_target_linear'?" and told["where"] == f"{tmp_path / 'theirs.yaml'}:7"


@pytest.mark.parametrize("key, nearest", [("modules_to_save", "lora_modules_to_save"), ("target_modules",
                                                                                        "lora_target_modules"),
                                          ("num_train_epochs", "num_epochs"), ("base_model_name_or_path", "base_model")])
def test_a_key_of_another_file_gets_the_nearest_name(bring, key, nearest):
    """Keys of adapter_config.json and of the other tool, put into axolotl's file by mistake."""
    _, made = bring(AXOLOTL, **{key: "x"})
    assert entry(made, "unsupported", key)["fix"] == f"did you mean {nearest!r}?"


@pytest.mark.parametrize("dataset, train, form", [
    ({"path": "o/n", "type": "chat_template"}, "hf:o/n:train", "openai"),
    ({"path": "o/n", "split": "test", "revision": "abc", "type": "alpaca"}, "hf:o/n@abc:test", "alpaca"),
    ({"path": "o/n", "data_files": ["a.json", "b.json"], "type": "alpaca"}, ["hf:o/n:a.json", "hf:o/n:b.json"], "alpaca"),
    ({"path": "json", "data_files": "x.jsonl", "type": "sharegpt"}, "x.jsonl", "sharegpt"),
    ({"path": "o/n", "type": "chat_template", "field_messages": "conversations", "message_field_role": "from",
      "message_field_content": "value"}, "hf:o/n:train", "sharegpt"),
    ({"path": "o/n", "type": {"field_instruction": "prompt", "field_output": "completion"}}, "hf:o/n:train",
     "prompt_completion"),
    ({"path": "./rows.parquet", "type": "completion"}, "rows.parquet", "auto"),
])
def test_where_rows_are_and_how_they_look(bring, dataset, train, form):
    recipe, _ = bring(AXOLOTL | {"datasets": [dataset]})
    assert (recipe.data.train, recipe.data.format) == (train, form)


def test_paths_are_found_from_here_then_beside_the_file_then_above_it(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "r.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    file = tmp_path / "configs" / "t.yaml"
    file.write_text(yaml.safe_dump(AXOLOTL | {"datasets": [{"path": "data/r.jsonl", "type": "alpaca"}]}))
    monkeypatch.chdir(tmp_path / "elsewhere")
    made = import_recipe(file, out=tmp_path / "recipes" / "r.yaml")
    assert load(made["recipe"]).recipe.data.train == "../data/r.jsonl"


def test_a_base_that_is_here_is_named_by_its_path_and_any_other_as_it_is(bring, tmp_path):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert bring(AXOLOTL, base_model="models/mine")[0].base == "models/mine", "a directory without a model is not one"
    assert bring(AXOLOTL, base_model="owner/name", model_revision="v1")[0].base == "owner/name@v1"
    (tmp_path / "models" / "mine" / "config.json").write_text("{}")
    bring(AXOLOTL, base_model="models/mine")
    made = import_recipe(tmp_path / "theirs.yaml", out=tmp_path / "deep" / "r.yaml")
    assert load(made["recipe"]).recipe.base == "../models/mine"


@pytest.mark.parametrize("given, name", [("saves/qwen3-4b/lora/sft", "lora-sft"), ("./outputs/My Run_2/", "my-run-2"),
                                         ("/", "theirs"), ("x" * 60, "x" * 40), ("./", "theirs"), ("a/b", "a-b")])
def test_a_name_from_the_output_directory(bring, given, name):
    assert bring(AXOLOTL, output_dir=given)[0].name == name


def test_roles_that_are_read_anyway_need_no_word(bring):
    for roles, where in (({"user": ["human"], "assistant": ["gpt"]}, "ignored"), ({"user": ["client"]}, "unsupported")):
        _, made = bring(AXOLOTL | {"datasets": [{"path": "a/b", "type": "chat_template", "roles": roles}]})
        assert entry(made, where, "datasets[0].roles")


def test_a_secret_does_not_stand_in_the_report(bring):
    _, made = bring(LLAMA, hub_token="hf_abcdefgh", swanlab_api_key="sk-1")
    assert "hf_abcdefgh" not in json.dumps(made) and "sk-1" not in json.dumps(made)


@pytest.mark.parametrize("tool, values, words", [
    (AXOLOTL, {"rl": "dpo"}, "rl: 'dpo' is another training"), (LLAMA, {"stage": "kto"}, "stage: 'kto' is another training"),
    (LLAMA, {"do_train": False}, "do_train: false"), (AXOLOTL, {"datasets": []}, "datasets"),
    (AXOLOTL, {"learning_rate": "fast"}, "learning_rate: a number belongs here (got 'fast')"),
    (AXOLOTL, {"learning_rate": None}, "learning_rate: missing"), (AXOLOTL, {"base_model": None}, "base_model: missing"),
    (AXOLOTL, {"lora_r": 1024}, "lora_r: does not fit method.rank of a recipe"),
    (AXOLOTL, {"micro_batch_size": 0}, "micro_batch_size: a whole number from 1"),
    (LLAMA, {"learning_rate": float("inf")}, "learning_rate: a number belongs here"),
    (AXOLOTL, {"datasets": [{"type": "alpaca"}]}, "datasets: a list of mappings with a path"),
    (AXOLOTL, {"datasets": "rows.jsonl"}, "datasets: a list of mappings with a path"),
    (AXOLOTL, {"warmup_ratio": 3}, "warmup_ratio: 3 of the steps"), (LLAMA, {"dataset": None}, "dataset: missing"),
])
def test_what_cannot_become_a_recipe_is_told_with_the_line_of_its_key(bring, tool, values, words):
    problems = refused(bring, tool, **values)
    assert any(words in p.message for p in problems), [p.message for p in problems]
    assert all(p.where.rsplit(":", 1)[1].isdigit() for p in problems)


def test_all_mistakes_are_told_at_once(bring):
    assert len(refused(bring, AXOLOTL, lora_r="big", num_epochs="many", seed=1.5)) == 3


@pytest.mark.parametrize("content, words", [
    (b"", "empty"), (b"# nothing\n", "empty"), (b"- a\n- b\n", "a list"), (b"just text", "one value"), (b"a: [1\n",
                                                                                                        "not valid YAML"),
    (b"\xff\xfe\x00", "cannot be read"), (b"seed: " + b"9" * 5000, "not valid YAML"), (b"a: &x [*x]\nb: 1\n", "neither"),
    (b"name: a\nbase: b\ndata: {train: c}\n", "a recipe already"), (b"colour: red\n", "neither"), (b"seed: 1\n", "not clear"),
    (b"base_model: a\nbase_model: b\n", "given twice"), (b"model: a/b\ntrain_dataset: x.yaml\n", "version 1"),
    (b"? [a, b]\n: 1\n", "not valid YAML"), (b"[" * 3000, "not valid YAML"),
])
def test_a_file_that_is_none_is_told_what_where_and_what_to_do(tmp_path, content, words):
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as error:
        import_recipe(path)
    assert words in error.value.what and str(path) in error.value.where and error.value.exit_code == 2
    assert error.value.fix or error.value.problems


def test_an_alias_that_means_a_billion_values_is_over_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join(lines) + "\n" + yaml.safe_dump(AXOLOTL) + "tokens: *a11\n")
    made = import_recipe(path)
    assert len(json.dumps(made)) < 100_000 and entry(made, "unsupported", "tokens")


def test_a_number_of_thousands_of_digits_is_shown_short(tmp_path):
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump(AXOLOTL) + f"colour: 0x{'f' * 5000}\nseed: 0x{'f' * 5000}\n")
    with pytest.raises(RecipeError) as error:
        import_recipe(path)
    assert "bits" in error.value.render() and len(error.value.render()) < 2000


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine")
    for out in (tmp_path, tmp_path / "recipe.yaml"):
        with pytest.raises(UsageError, match="there already"):
            import_recipe(FILES[0], out=out)
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_which_tool_can_be_said_when_the_keys_do_not_tell(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("learning_rate: 1.0e-4\nseed: 1\n")
    with pytest.raises(RecipeError, match="not clear"):
        import_recipe(path)
    with pytest.raises(RecipeError, match="llamafactory|LLaMA-Factory") as error:
        import_recipe(path, tool="llamafactory")
    assert any("model_name_or_path: missing" in p.message for p in error.value.problems)
    with pytest.raises(UsageError, match="no tool"):
        import_recipe(path, tool="unsloth")


def test_docs_have_the_tables_of_the_code():
    assert markdown() in (Path(__file__).parents[2] / "docs" / "import.md").read_text(encoding="utf-8")


def test_a_recipe_can_do_nothing_more_than_import_knows_of():
    """When a method, an objective or a schedule is added to the schema, the tables here have to learn it."""
    names = {m.model_fields["type"].default for m in METHODS}
    assert names == {"lora", "qlora", "full", "prompt", "prefix", "ia3", "bottleneck"}
    assert Objective.model_fields["type"].annotation.__args__ == ("sft", "dpo", "kto", "distill")  # it maps sft alone
    assert Train.model_fields["schedule"].annotation.__args__ == ("cosine", "linear", "constant")


def test_every_key_of_transformers_arguments_is_known():
    """LLaMA-Factory takes them all; an independent list of names."""
    import dataclasses

    from transformers import Seq2SeqTrainingArguments

    known = TOOLS["llamafactory"].rules()
    assert not [f.name for f in dataclasses.fields(Seq2SeqTrainingArguments) if f.init and f.name not in known]
