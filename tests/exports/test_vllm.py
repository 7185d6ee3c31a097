"""A real vLLM, started once with an export's own flags, answers as the adapter and not as a spoilt one.

make test-vllm
"""

import json
from dataclasses import replace

import pytest
from tests.conftest import build_base, finish
from tests.exports.conftest import asked_of, spoil

from tunesmith.exports import vllm, vllm_server
from tunesmith.exports.probe import questions
from tunesmith.exports.vllm_server import NotServed, examine

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def command():
    found = vllm.executable()
    assert found, f"no vLLM here: {vllm.INSTALL}"
    return found


@pytest.fixture(scope="session")
def asked(tmp_path_factory):
    """On a base of its own: vLLM's attention on a CPU has no heads of 16."""
    return asked_of(finish(tmp_path_factory.mktemp("finished"), build_base(tmp_path_factory.mktemp("base"), "qwen3", 32)))


@pytest.fixture(scope="module")
def out(asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    vllm.write(asked.job, folder)
    return folder


@pytest.fixture(scope="module")
def server(out, command):
    """serve.sh as it was written; more adapters may be loaded beside the export's."""
    with vllm_server.serving(out / vllm.SCRIPT, command, environment={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}) as running:
        yield running


def load(server, out, copied, name: str, **changes) -> None:
    path = copied(out / vllm.ADAPTER, name)
    spoil(path, **changes)
    server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})


def test_it_answers_as_the_adapter_on_its_base(asked, server):
    found = examine(asked.job, server, "tiny", asked.questions, asked.reference, base=True)
    assert found["verdict"] == "pass", found["message"]
    assert found["runtime"].startswith("vLLM 0.") and found["same_prompts"] == 8 and found["same_texts"] == 1
    assert found["stops"]["stopped"] == found["stops"]["reference_stopped"] > 0
    assert found["parent"] == str(asked.job.base.path) and found["models"] == sorted([found["parent"], "tiny"])
    assert found["moved"] > 0 and found["logprobs_of_base"]["mean_kl_of_top"] > 100 * found["logprobs"]["mean_kl_of_top"]


@pytest.mark.parametrize(("name", "changes"), [("zeroed", {"weights": 0.0}), ("alpha", {"lora_alpha": 8})])
def test_a_spoilt_adapter_is_refused(asked, server, out, copied, name, changes):
    load(server, out, copied, name, **changes)
    found = examine(asked.job, server, name, asked.questions, asked.reference, base=True)
    assert found["verdict"] == "fail" and "logits" in found["failed"] and found["fix"]
    assert ("no_op" in found["failed"]) == (name == "zeroed")


def test_another_template_than_the_one_that_is_served_is_refused(asked, server):
    from tests.exports.test_files import OTHER
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(asked.job.base.path)
    other.chat_template = OTHER
    found = examine(replace(asked.job, tokenizer=other), server, "tiny", questions(other, asked.questions), asked.reference)
    assert found["verdict"] == "fail" and found["failed"][0] == "template" and found["same_prompts"] == 0


def test_a_model_that_is_not_there_is_said_and_not_answered_by_another(asked, server):
    with pytest.raises(NotServed, match="no model 'nobody'"):
        examine(asked.job, server, "nobody", asked.questions, asked.reference)


def test_vllm_refuses_what_we_say_it_refuses(asked, server, out, copied):
    """The checks that are made before an export, held to vLLM's own loader."""
    for name, changes in (("dora", {"use_dora": True}), ("biased", {"bias": "lora_only"}), ("rank", {"r": 600}),
                          ("pissa", {"init_lora_weights": "pissa"}), ("whole", {"modules_to_save": ["lm_head"]})):
        adapter = copied(asked.job.adapter, f"ours-{name}")
        spoil(adapter, **changes)
        assert not vllm.loadable(replace(asked.job, adapter=adapter))["loads"]
        with pytest.raises(NotServed, match="load_lora_adapter"):
            load(server, out, copied, name, **changes)


def test_an_adapter_of_qlora_is_served_on_the_original_base_and_that_is_said(quantised, server):
    from tunesmith.exports.peft import on_original

    server.post("/v1/load_lora_adapter", {"lora_name": "qlora", "lora_path": str(quantised.job.adapter)})

    def examined(expected):
        return examine(quantised.job, server, "qlora", quantised.questions, expected, base=True)

    found = on_original(quantised.job, quantised.questions, quantised.reference, examined)
    assert found["verdict"] == "pass" and found["base"] == "original", found["message"]
    assert found["mean_kl"] > found["allowed"]["mean_kl"]
    assert "logits" in examined(quantised.reference)["failed"]  # it is not what was trained


def test_a_stop_token_that_is_not_in_the_generation_config_is_refused(asked, out, copied, command):
    """A server of its own: the answers go on, and the files say why."""
    path = copied(out, "no-stop")
    config = path / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": 0}))
    tokenizer = path / "tokenizer"
    asked.job.tokenizer.save_pretrained(tokenizer)
    settings = tokenizer / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": "<|endoftext|>"}))
    with vllm_server.serving(path / vllm.SCRIPT, command, flags=["--tokenizer", "tokenizer"]) as running:
        found = examine(asked.job, running, "tiny", asked.questions, asked.reference)
    assert found["verdict"] == "fail" and found["failed"][0] == "stops"
    assert found["stops"]["ran_on"] == found["stops"]["reference_stopped"] > 0 == found["stops"]["stopped"]
