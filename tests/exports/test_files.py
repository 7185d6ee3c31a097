"""What is written for plain PEFT and transformers is asked by them, in a process of their own; what was spoilt is refused.

pytest tests/exports/test_files.py
"""

import json
from dataclasses import replace

import pytest
from tests.exports.conftest import spoil

from tunesmith.errors import UsageError
from tunesmith.exports import fresh, merged, peft
from tunesmith.exports.fresh import Target
from tunesmith.exports.prompting import generation_config
from tunesmith.methods.files import read_config

OTHER = "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
"""Another template, with the same tokens."""


@pytest.fixture(scope="module")
def written(asked, tmp_path_factory):
    """The two directories, as an export writes them."""
    folder = tmp_path_factory.mktemp("written")
    for name, module in (("peft", peft), ("merged", merged)):
        (folder / name).mkdir()
        module.write(asked.job, folder / name)
    return folder


def without_stop(path) -> None:
    """The stop token of the template is forgotten: generation goes on to the token for unknown text."""
    path = path / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 0}))


def test_plain_peft_and_plain_transformers_answer_as_the_adapter_and_refuse_each_fault(asked, written, copied):
    """One process for all of them: loading torch takes seconds."""
    targets, expected = [Target(written / "peft", "peft"), Target(written / "merged", "merged")], [[], []]
    for kind in ("peft", "merged"):
        path = copied(written / kind, f"{kind}-template")
        (path / "chat_template.jinja").write_text(OTHER)
        targets.append(Target(path, kind))
        expected.append(["template", "logits", "texts"])
        path = copied(written / kind, f"{kind}-stop")
        without_stop(path)
        targets.append(Target(path, kind))
        expected.append(["stops"])
    for name, changes in (("zeroed", {"weights": 0.0}), ("alpha", {"lora_alpha": 8})):
        path = copied(written / "peft", f"peft-{name}")
        spoil(path, **changes)
        targets.append(Target(path, "peft"))
        expected.append(["logits", "texts"])
        adapter = copied(asked.job.adapter, f"adapter-{name}")
        spoil(adapter, **changes)
        path = path.with_name(f"merged-{name}")
        path.mkdir()
        merged.write(replace(asked.job, adapter=adapter), path)
        targets.append(Target(path, "merged"))
        expected.append(["logits", "texts"])
    found = fresh.verdicts(asked.job, targets, asked.questions, asked.reference)
    for target, one, wanted in zip(targets, found, expected, strict=True):
        assert one["verdict"] == ("fail" if wanted else "pass"), f"{target.path.name}: {one['message']}"
        assert set(one["failed"]) <= set(wanted) and set(one["failed"][:1]) == set(wanted[:1]), f"{target.path.name}: {one}"
    assert found[0]["same_texts"] == 1 and found[0]["stops"]["stopped"] == found[0]["stops"]["reference_stopped"] > 0
    assert found[0]["runtime"].startswith("transformers ")


def test_the_adapters_directory_names_its_base_as_asked(asked, tmp_path):
    for name, wanted in ((None, str(asked.job.base.path)), ("owner/name", "owner/name"), ("/mnt/models", "/mnt/models")):
        out = tmp_path / str(name).replace("/", "-")
        out.mkdir()
        facts = peft.write(replace(asked.job, base_path=name), out)
        assert read_config(out)["base_model_name_or_path"] == wanted == facts["base_model_name_or_path"]
    assert (out / "adapter_model.safetensors").read_bytes() == (asked.job.adapter / "adapter_model.safetensors").read_bytes()


def test_a_name_on_the_hub_is_kept_with_its_revision_and_anything_else_is_a_place(asked, tmp_path):
    hub = tmp_path / "models--owner--name" / "snapshots" / "abc"
    hub.mkdir(parents=True)
    base = replace(asked.job.base, ref="owner/name@v1", path=hub)
    assert peft.base_name(replace(asked.job, base=base)) == ("owner/name", "v1")
    assert peft.base_name(replace(asked.job, base=replace(base, ref="owner/name"))) == ("owner/name", None)
    for ref in ("pypi:some-base==1", "./local", "owner/model.gguf"):
        assert peft.base_name(replace(asked.job, base=replace(asked.job.base, ref=ref))) == (str(asked.job.base.path), None)


def test_the_generation_config_is_the_bases_own_but_for_its_ends(asked, written, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "temperature": 0.6, "top_p": 0.9}))
    made = generation_config(replace(asked.job, base=replace(asked.job.base, path=base)))
    assert made == {"eos_token_id": 2, "temperature": 0.6, "top_p": 0.9, "pad_token_id": 2}
    assert json.loads((written / "merged" / "config.json").read_text())["eos_token_id"] == 2


def test_methods_without_the_form_are_refused_with_what_to_do(asked, copied, tmp_path):
    for kind, peft_type, module in (("bottleneck", "BOTTLENECK", peft), ("full", "FULL", peft),
                                    ("prompt", "PROMPT_TUNING", merged), ("prefix", "PREFIX_TUNING", merged),
                                    ("bottleneck", "BOTTLENECK", merged)):
        adapter = copied(asked.job.adapter, f"{kind}-{module.__name__}")
        spoil(adapter, peft_type=peft_type)
        with pytest.raises(UsageError, match=kind) as refused:
            module.write(replace(asked.job, adapter=adapter), tmp_path)
        assert refused.value.fix


@pytest.mark.slow
def test_an_adapter_of_qlora_is_itself_merged_and_another_model_in_plain_peft_which_is_said(quantised, tmp_path):
    job, questions, reference = quantised.job, quantised.questions, quantised.reference
    for name, module in (("peft", peft), ("merged", merged)):
        (tmp_path / name).mkdir()
        module.write(job, tmp_path / name)
    whole = merged.probe(job, tmp_path / "merged", questions, reference)
    assert whole["verdict"] == "pass", whole["message"]
    beside = peft.probe(job, tmp_path / "peft", questions, reference)
    assert beside["verdict"] == "pass" and beside["base"] == "original", beside["message"]
    assert beside["mean_kl"] == beside["from_trained"]["mean_kl"] > 100 * whole["mean_kl"]
    assert beside["difference"]["mean_kl"] <= beside["allowed"]["mean_kl"] < beside["mean_kl"]
    assert "not the model that was evaluated" in beside["warning"]
    # the control: held to what was trained, it is refused
    assert fresh.probe(job, Target(tmp_path / "peft", "peft"), questions, reference)["verdict"] == "fail"
