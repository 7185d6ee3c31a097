"""The tiny base in the forms in which models travel: a GGUF file, and a wheel served from a folder."""

from __future__ import annotations

import zipfile

import pytest

LAYER = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"} | {
    f"model.layers.{i}.{ours}.weight": f"blk.{i}.{theirs}.weight" for i in range(2) for ours, theirs in LAYER.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A TUNESMITH_CACHE of its own."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(path, weights: dict, tokenizer, quantisation) -> None:
    """As llama.cpp's converter writes a Llama: rotary halves interleaved, byte-level BPE as `gpt2`."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokenizer))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    writer.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in merges_of(tokenizer)])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in weights.items():
        theirs, array = NAMES[name], weight.numpy()
        if heads := {"attn_q": 4, "attn_k": 2}.get(theirs.split(".")[-2]):
            array = array.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(array.shape)
        if quantisation is None or array.ndim == 1:
            writer.add_tensor(theirs, array)
        else:
            writer.add_tensor(theirs, gguf.quants.quantize(array, quantisation), raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def merges_of(tokenizer) -> list:
    import json

    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


@pytest.fixture(scope="session")
def tiny_weights(tiny_base):
    from safetensors.torch import load_file

    return load_file(tiny_base / "model.safetensors")


@pytest.fixture
def make_gguf(tmp_path, tiny_weights, tiny_tokenizer):
    """`make_gguf("Q8_0")`: the tiny base as a GGUF file; None keeps float32."""
    import gguf

    def make(quantisation: str | None = None, name: str = "tiny.gguf", without: str | None = None):
        kind = gguf.GGMLQuantizationType[quantisation] if quantisation else None
        write_gguf(tmp_path / name, {k: w for k, w in tiny_weights.items() if k != without}, tiny_tokenizer, kind)
        return tmp_path / name

    return make


@pytest.fixture
def make_wheel(tmp_path, monkeypatch):
    """`make_wheel("tiny-model", "1.0", {member: bytes})`: a wheel that pip finds without a network."""
    shelf = tmp_path / "wheels"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))

    def make(name: str, version: str, members: dict[str, bytes]) -> None:
        stem = f"{name.replace('-', '_')}-{version}"
        facts = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: not-there\n",
                 "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n", "RECORD": ""}
        with zipfile.ZipFile(shelf / f"{stem}-py3-none-any.whl", "w") as wheel:
            for member, data in members.items():
                wheel.writestr(member, data)
            for member, text in facts.items():
                wheel.writestr(f"{stem}.dist-info/{member}", text)

    return make
