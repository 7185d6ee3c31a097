"""The verb: a release becomes a directory that was asked, or nothing at all.

pytest tests/exports/test_export.py
"""

import json
import shutil

import pytest
import yaml

from tunesmith.releases.export import slug
from tunesmith.serving.vllm_process import VLLM
from tunesmith.store.files import sha256_tree


@pytest.fixture
def without_vllm(monkeypatch, tmp_path):
    """No vLLM by either name."""
    monkeypatch.delenv(VLLM, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert shutil.which("vllm") is None


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_release_is_exported_asked_and_described(project, command, tmp_path):
    out = tmp_path / "out"
    made = command("export", project.done["release_id"], "--format", "peft", "--output", out, "--json", check=0).json
    assert made["verdict"] == "pass" and made["path"] == str(out) and made["format"] == "peft"
    assert made["files"] == sha256_tree(out) and {"README.md", "adapter_config.json", "adapter_model.safetensors",
                                                  "chat_template.jinja", "generation_config.json"} <= made["files"].keys()
    assert made["mean_kl"] <= made["probe"]["allowed"]["mean_kl"] and made["top1_agreement"] == 1
    assert made["probe"]["questions"] == 8 and made["probe"]["left_out"] == 0
    card = (out / "README.md").read_text()
    assert front(card)["library_name"] == "peft" and "base_model" not in front(card)  # a directory is no name on the hub
    manifest = json.loads((project.release_dir / "manifest.json").read_text())
    for said in (manifest["release_id"], manifest["run_id"], manifest["dataset_id"], manifest["base"]["digest"],
                 manifest["adapter"]["digest"], manifest["template_fingerprint"], made["probe"]["message"], "Not stated.",
                 "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n", "`<|im_end|>` (2)"):
        assert said in card
    for name, m in manifest["metrics"].items():
        assert f"| {name} | {m['base']:.3f} | {m['tuned']:.3f} | {m['delta']:+.3f} |" in card
    for gate in manifest["gates"]:
        assert f"| {gate['name']} | {gate['verdict']} |" in card
    # a second export never replaces the first
    before = sha256_tree(out)
    again = command("export", project.done["release_id"], "--format", "peft", "--output", out, check=2)
    assert "there is something already" in again.stderr and sha256_tree(out) == before


def test_an_export_on_another_base_is_refused_and_nothing_is_left(project, command, tmp_path, tiny_base, lively_base):
    """--base-path names a base of the same shape with other weights, which the adapter was not trained on."""
    from transformers import AutoModelForCausalLM

    other = tmp_path / "other"
    shutil.copytree(lively_base, other)
    model = AutoModelForCausalLM.from_pretrained(lively_base)
    head = model.get_output_embeddings().weight.data
    head.copy_(head.roll(1, 0))
    model.save_pretrained(other)
    out = tmp_path / "exports" / "out"
    refused = command("export", project.done["release_id"], "--format", "peft", "--output", out, "--base-path", other, "--json",
                      check=3).json
    assert refused["verdict"] == "fail" and refused["path"] is None and refused["files"] == {}
    assert "logits" in refused["probe"]["failed"] and refused["mean_kl"] > refused["probe"]["allowed"]["mean_kl"]
    assert list(out.parent.iterdir()) == []


def test_without_vllm_its_directory_is_written_and_loudly_not_measured(project, command, without_vllm, tmp_path):
    out = tmp_path / "out"
    made = command("export", project.done["release_id"], "--format", "vllm", "--output", out, check=0)
    assert "not_measured" in made.stdout and "NOT MEASURED" in made.stdout and "install_vllm.sh" in made.stdout
    assert "**not_measured**" in (out / "README.md").read_text()


def test_a_run_that_was_not_released_needs_the_word_and_its_card_says_it(project, command, without_vllm, tmp_path):
    state = project.run_dir / "run.json"
    state.write_text(json.dumps({k: v for k, v in json.loads(state.read_text()).items() if k != "release_id"}))
    arguments = ["export", project.done["run_id"], "--format", "vllm", "--output", tmp_path / "out"]
    refused = command(*arguments, check=2)
    assert "was not released" in refused.stderr and "--unreleased" in refused.stderr and not (tmp_path / "out").exists()
    made = command(*arguments, "--unreleased", "--json", check=0).json
    assert made["release_id"] is None and made["run_id"] == project.done["run_id"]
    assert "**Not released**" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_that_was_released_is_exported_as_its_release(project, command, without_vllm, tmp_path):
    made = command("export", project.done["run_id"], "--format", "vllm", "--output", tmp_path / "out", "--json", check=0).json
    assert made["release_id"] == project.done["release_id"]


@pytest.mark.parametrize(("arguments", "said"), [
    (["rel-nothing", "--format", "peft"], "rel-nothing"),
    (["RELEASE", "--format", "onnx"], "--format peft, merged"),
    (["RELEASE", "--format", "merged", "--dtype", "int8"], "float32, bfloat16, float16"),
])
def test_bad_input_is_told_and_leaves_nothing(project, command, tmp_path, arguments, said):
    given = [project.done["release_id"] if a == "RELEASE" else a for a in arguments]
    refused = command("export", *given, "--output", tmp_path / "out", check=2)
    assert said in refused.stderr and not (tmp_path / "out").exists()


def test_names_are_made_fit_for_a_server():
    names = {"addresses": "addresses", "My model: v2/x": "My-model-v2-x", "../..": "adapter", "a.b_c-1": "a.b_c-1"}
    assert {name: slug(name) for name in names} == names
