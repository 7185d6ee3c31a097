"""A directory for vLLM, as it is on disk; `test_vllm.py` asks vLLM itself.

pytest tests/exports/test_vllm_files.py
"""

import json
import subprocess
from dataclasses import replace

import pytest
import torch
from tests.exports.conftest import spoil

from tunesmith.errors import UsageError
from tunesmith.exports import vllm
from tunesmith.methods.files import read_config
from tunesmith.serving import vllm_process


@pytest.fixture
def arguments():
    """What serve.sh gives to vLLM: it runs with a printer in vLLM's place, an argument a line."""
    def of(out, **environment) -> list[str]:
        shown = out / "show"
        shown.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        shown.chmod(0o755)
        env = {"PATH": "/usr/bin:/bin", "VLLM": str(shown)} | environment
        done = subprocess.run([out / vllm.SCRIPT, "--port", "8123"], env=env, capture_output=True, text=True, check=True,
                              cwd="/")
        return done.stdout.splitlines()

    return of


def after(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_the_flags_and_the_files_say_the_same(asked, tmp_path, arguments):
    facts = vllm.write(replace(asked.job, base_path="owner/name"), tmp_path)
    given = arguments(tmp_path)
    module = json.loads(after(given, "--lora-modules"))
    assert given[:2] == ["serve", "owner/name"] and given[-2:] == ["--port", "8123"]
    assert module == {"name": "tiny", "path": "adapter", "base_model_name": "owner/name"}
    assert read_config(tmp_path / module["path"])["base_model_name_or_path"] == given[1] == facts["base_model_name_or_path"]
    assert after(given, "--max-lora-rank") == "8" and "--enable-lora" in given
    assert (tmp_path / after(given, "--chat-template")).read_text() == asked.job.template
    ends = json.loads((tmp_path / after(given, "--generation-config") / "generation_config.json").read_text())["eos_token_id"]
    assert [ends] == asked.job.stops


def test_the_base_may_be_said_when_it_is_served(asked, tmp_path, arguments):
    vllm.write(asked.job, tmp_path)
    given = arguments(tmp_path, BASE="/mnt/base of mine")
    assert given[1] == "/mnt/base of mine"
    assert json.loads(after(given, "--lora-modules"))["base_model_name"] == "/mnt/base of mine"


def test_gpus_take_16_bits_only_so_what_was_trained_in_32_is_served_in_16(asked, copied):
    assert vllm.dtype(asked.job) == "bfloat16"
    assert vllm.dtype(replace(asked.job, trained_dtype="float16")) == "float16"
    merged = copied(asked.job.adapter, "dora")
    spoil(merged, use_dora=True)
    assert vllm.dtype(replace(asked.job, adapter=merged)) == "float32"


def test_what_vllm_does_not_load_is_merged_and_said(asked, tmp_path, arguments):
    from tunesmith import methods
    from tunesmith.models.load import model_of
    from tunesmith.recipe.methods import Ia3

    adapter = tmp_path / "ia3"
    adapter.mkdir()
    methods.save(methods.attach(model_of(asked.job.base, torch.float32), Ia3(type="ia3"), "tiny"), adapter)
    out = tmp_path / "out"
    out.mkdir()
    facts = vllm.write(replace(asked.job, adapter=adapter), out)
    assert facts["form"] == "merged" and "IA3" in facts["refused"][0]
    given = arguments(out)
    assert given[1] == "." and "--enable-lora" not in given and after(given, "--served-model-name") == "tiny"
    assert (out / "model.safetensors").is_file() and not (out / "adapter").exists()
    assert "merged model" in vllm.how(asked.job, facts)


def test_tensors_that_are_no_loras_are_seen_whatever_the_settings_say(asked, copied):
    from safetensors.torch import load_file, save_file

    assert vllm.loadable(asked.job) == {"loads": True, "max_lora_rank": 8, "refused": []}
    adapter = copied(asked.job.adapter, "more")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors)).rsplit(".lora_", 1)[0]
    more = {f"{name}.lora_magnitude_vector": next(iter(tensors.values())).clone()}
    save_file(tensors | more, path, metadata={"format": "pt"})
    found = vllm.loadable(replace(asked.job, adapter=adapter))
    assert not found["loads"] and "lora_magnitude_vector" in found["refused"][0]


def test_an_adapter_with_neither_form_is_refused(asked, copied, tmp_path):
    adapter = copied(asked.job.adapter, "prefix")
    spoil(adapter, peft_type="PREFIX_TUNING")
    with pytest.raises(UsageError, match="no merged form"):
        vllm.write(replace(asked.job, adapter=adapter), tmp_path)


def test_vllm_is_found_by_its_command_or_its_python(tmp_path, monkeypatch):
    (tmp_path / "vllm").touch()
    for given in ("vllm", "python"):
        monkeypatch.setenv(vllm_process.VLLM, str(tmp_path / given))
        assert vllm_process.executable() == tmp_path / "vllm"
    monkeypatch.setenv(vllm_process.VLLM, str(tmp_path / "elsewhere" / "python"))
    with pytest.raises(UsageError, match="names no vLLM") as refused:
        vllm_process.executable()
    assert "install_vllm.sh" in refused.value.fix
