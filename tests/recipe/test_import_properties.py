"""Whatever a file says with keys that a tool knows: a recipe that loads and a full account of the keys, or mistakes with lines.

    python -m pytest tests/recipe/test_import_properties.py
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.recipe.foreign.convert import TOOLS, import_recipe
from tunesmith.recipe.foreign.rules import Copy, Joint
from tunesmith.recipe.load import parse

FILES = sorted((Path(__file__).parent / "foreign").glob("*.yaml"))
NESTED = ("datasets", "test_datasets")
NEEDED = {
    "axolotl": {"base_model": "owner/name", "learning_rate": 1e-4, "adapter": "lora", "datasets": [{"path": "a/b",
                                                                                                    "type": "alpaca"}]},
    "llamafactory": {"model_name_or_path": "owner/name", "dataset": "x", "stage": "sft"},
}
SCALARS = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 2, 64, -1, 0.1, 1e-4, 1.5, 10**30, float("inf"), float("nan"), "", "auto",
                     "cosine",
                     "constant", "none", "epoch", "no", "steps", "lora", "sft", "2e-4", "a, b", "./x", "owner/name", "~",
                     "é\x85\u2028",
                     "# x", "a: b", "{{ x }}"]),
    st.text(max_size=8), st.integers(), st.floats())
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                                           max_size=3),
                      max_leaves=5)
DATASET = st.dictionaries(st.sampled_from(["path", "type", "split", "data_files", "field_messages", "revision",
                                           "roles_to_train", "shards",
                                           "chat_template", "message_property_mappings", "ds_type", "nonsense"]), VALUES,
                          max_size=5)
SHARED = {
    "gradient_accumulation_steps": [1, 4, "8"], "max_steps": [-1, 100, 1000], "warmup_steps": [0, 0.1, 10, 100],
    "warmup_ratio": [0, 0.03, "0.1"], "learning_rate": [1e-4, "2e-5"], "weight_decay": [0, 0.01], "max_grad_norm": [0, 0.3,
                                                                                                                    1.0],
    "save_steps": [0, 0.25, 50], "eval_steps": [0.1, 20], "save_strategy": ["no", "steps", "epoch", "best", False],
    "eval_strategy": ["no", "steps", "epoch", False], "save_total_limit": [1, 3], "seed": [0, 42], "lora_dropout": [0, 0.05],
    "lora_alpha": [8, 16.0, "32"], "adam_beta1": [0.9, 0.8], "adam_epsilon": [1e-8, "1e-6"], "output_dir": ["./out/Run_1",
                                                                                                            "~/x", "..."],
}
USUAL = {
    "axolotl": SHARED | {
        "adapter": ["lora", "qlora", None], "lora_r": [8, "16"], "peft_use_rslora": [True, False], "load_in_4bit": [True,
                                                                                                                    False],
        "lora_target_linear": [True, False], "lora_target_modules": [["q_proj"], "q_proj,v_proj", "all-linear",
                                                                     "^model.*q_proj$"],
        "lora_modules_to_save": [["lm_head"]], "micro_batch_size": [1, 8], "sample_packing": [True, False],
        "sequence_len": [512, 4096], "peft_use_dora": [True, False], "loraplus_lr_ratio": [16.0],
        "excess_length_strategy": ["drop", "truncate", "raise"], "num_epochs": [1, 2.5, "3"], "val_set_size": [0, 0.05, 10],
        "lr_scheduler": ["cosine", "linear", "constant", "rex", "polynomial"], "optimizer": ["adamw_torch", "paged_adamw_8bit",
                                                                                             "muon"],
        "chat_template": ["tokenizer_default", "llama3", "jinja"], "chat_template_jinja": ["t.jinja", "{{ m }}\n" * 3],
        "special_tokens": [{"pad_token": "x"}, {"bos_token": "y"}], "wandb_project": ["p"],
        "mlflow_tracking_uri": ["sqlite:///a.db"],
        "model_revision": ["main"], "revision_of_model": ["v1"], "tokenizer_config": ["owner/name", "owner/other"],
        "rl": [None],
        "float32": [True, False], "test_datasets": [[{"path": "a/c", "split": "test", "type": "chat_template"}]],
        "datasets": [[{"path": "a/b", "type": "alpaca"}, {"path": "./r.jsonl", "type": "completion"}],
                     [{"path": "s3://b/r.json"}]]},
    "llamafactory": SHARED | {
        "finetuning_type": ["lora", "full", "freeze"], "lora_rank": [8, 64], "use_rslora": [True, False],
        "quantization_bit": [4, 8], "use_dora": [True, False], "pissa_init": [True, False], "loraplus_lr_ratio": [16.0],
        "lora_target": ["all", "q,v", ["q"]], "additional_target": ["lm_head"], "per_device_train_batch_size": [1, 8],
        "packing": [True, False], "neat_packing": [True, False], "cutoff_len": [512, 4096], "num_train_epochs": [1, 2.5],
        "val_size": [0, 0.1, 20], "lr_scheduler_type": ["cosine", "linear", "constant", "cosine_with_restarts", "inverse_sqrt"],
        "optim": ["adamw_torch", "adafactor"], "template": ["default", "qwen3"], "max_samples": [10],
        "report_to": ["none", "wandb", ["mlflow"], "all"], "project": ["p"], "dataset_dir": ["ONLINE", "none"],
        "dataset": ["a,b", ["a"], "owner/set"], "eval_dataset": ["c"], "model_revision": ["main", "v1"], "max_new_tokens": [64],
        "do_train": [True], "stage": ["sft"]},
}
"""Values that people write. Whatever they combine, it is a recipe."""


def keys_of(values: dict[str, Any]) -> Counter:
    """What has to be accounted for: every key, and every key of every dataset."""
    found: Counter = Counter()
    for key, value in values.items():
        if key in NESTED and isinstance(value, list) and value:
            found.update(f"{key}[{i}].{k}" for i, entry in enumerate(value) for k in entry)
        else:
            found[key] += 1
    return found


def accounted(made: dict) -> Counter:
    return Counter([m["from"] for m in made["mapped"]] + [u["key"] for u in made["unsupported"] if u["line"] is not None] +
                   [i["key"] for i in made["ignored"]])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_key_of_a_fixture_is_in_exactly_one_list(path):
    assert accounted(import_recipe(path)) == keys_of(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", TOOLS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_values_of_known_keys_give_a_recipe_or_mistakes_with_lines(name, data, tmp_path):
    keys = sorted(TOOLS[name].rules())
    joint = sorted(k for k, r in TOOLS[name].rules().items() if isinstance(r, Joint | Copy))
    more = data.draw(st.dictionaries(st.one_of(st.sampled_from(joint), st.sampled_from(keys)), VALUES, max_size=6))
    if name == "axolotl" and data.draw(st.booleans()):
        more["datasets"] = data.draw(st.lists(DATASET.map(lambda d: {"path": "o/n", **d}), min_size=1, max_size=2))
    values = NEEDED[name] | more
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8", errors="backslashreplace")
    try:
        made = import_recipe(path, tool=name)
    except RecipeError as error:
        assert error.exit_code == 2 and error.where and (error.problems or error.fix)
        assert all(p.where and p.where.startswith(str(path)) and p.message for p in error.problems)
        json.dumps(error.as_dict(), allow_nan=False).encode()
        return
    parse(made["recipe"])
    json.dumps(made, allow_nan=False).encode()
    assert accounted(made) == keys_of(values)
    assert all(u["why"] and u["consequence"] and u["fix"] for u in made["unsupported"])


@pytest.mark.parametrize("name", TOOLS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_usual_values_always_become_a_recipe(name, data, tmp_path):
    more = data.draw(st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in USUAL[name].items()}))
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(NEEDED[name] | more, sort_keys=False), encoding="utf-8")
    made = import_recipe(path, tool=name)
    parse(made["recipe"])
    assert accounted(made) == keys_of(NEEDED[name] | more)


@pytest.mark.parametrize("name", TOOLS)
def test_usual_values_are_tried_for_every_key_that_a_recipe_has_a_word_for(name):
    keys = {k for k, r in TOOLS[name].rules().items() if isinstance(r, Joint | Copy)}
    seldom = {"reward_model", "process_reward_model", "pretraining_dataset", "base_model", "base_model_config", "load_in_8bit",
              "adam_beta2", "mlflow_experiment_name", "model_name_or_path"}
    assert keys - seldom == USUAL[name].keys()


@pytest.mark.parametrize("name", TOOLS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_key_that_is_not_known_is_never_passed_over(name, data, tmp_path):
    key = data.draw(st.text(st.characters(categories=["L", "Nd"], include_characters="_"), min_size=1, max_size=30).filter(
        lambda k: not k[0].isdigit() and k not in TOOLS[name].rules() and yaml.safe_load(f"{k}: 1") == {k: 1}))
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(NEEDED[name] | {key: 1}, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (told,) = [u for u in import_recipe(path, tool=name)["unsupported"] if u["key"] == key]
    assert "no such key" in told["why"] and told["line"] == path.read_text(encoding="utf-8").count("\n")


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("value", [None, False, True, 1, 0.5, "x", ["x"], {"x": 1}], ids=repr)
def test_all_keys_of_the_tables_at_once_are_accounted_for(name, value, tmp_path):
    """Keys of their own cannot make a file wrong, whatever they say."""
    path = tmp_path / "theirs.yaml"
    alone = [k for k, r in TOOLS[name].rules().items() if not isinstance(r, Joint | Copy)]
    values = NEEDED[name] | dict.fromkeys(alone, value)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    assert len(alone) > 100 and accounted(import_recipe(path, tool=name)) == keys_of(values)


@pytest.mark.parametrize("name", TOOLS)
def test_each_key_that_a_recipe_has_a_word_for_is_accounted_for_with_usual_values(name, tmp_path):
    path = tmp_path / "theirs.yaml"
    keys = [k for k, r in TOOLS[name].rules().items() if isinstance(r, Joint | Copy)]
    imported = 0
    for key in keys:
        for value in (None, False, True, 1, 0.5, "cosine"):
            values = NEEDED[name] | {key: value}
            path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
            try:
                made = import_recipe(path, tool=name)
            except RecipeError as error:
                assert all(p.where.startswith(str(path)) for p in error.problems)
                continue
            imported += 1
            assert accounted(made) == keys_of(values), key
    assert imported > 2 * len(keys)
