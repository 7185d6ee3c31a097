"""Which adapters and which servers may be used, and the copies of adapters that vLLM reads."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from tunesmith import methods
from tunesmith.errors import AdapterError, UsageError
from tunesmith.methods.files import CONFIG_FILE, WEIGHTS_FILE, fitting, read_config
from tunesmith.methods.report import VLLM_RANKS, vllm_directory
from tunesmith.models.base import Base
from tunesmith.serving.text import ENCODING
from tunesmith.serving.vllm_client import Client
from tunesmith.template.fingerprint import PROBES

HERE = "`tunesmith serve --engine tunesmith` serves it"
FILES = (CONFIG_FILE, WEIGHTS_FILE)


def fitting_rank(rank: int) -> int:
    """The least --max-lora-rank that holds adapters of this rank."""
    return next((r for r in VLLM_RANKS if r >= rank), VLLM_RANKS[-1])


def linear_layers(base: Base) -> list[str]:
    """Last names of the linear layers that adapters may be on: all but the head.

    With LoRA on the head vLLM (0.32) fails where prompts are scored beside other requests, and takes its engine with it:
    the head's wrapper counts the rows that are sampled and is given the prompt's.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.path, trust_remote_code=False))
    head = model.get_output_embeddings()
    return sorted({name.rpartition(".")[2] for name, module in model.named_modules()
                   if isinstance(module, torch.nn.Linear) and module is not head})


def servable(adapter_dir: Path, max_rank: int | None, layers: Sequence[str]) -> None:
    """Raises AdapterError: vLLM cannot serve it, or not on these layers and with this --max-lora-rank (None: unknown)."""
    if (kind := methods.kind(adapter_dir)) == "qlora":
        raise AdapterError("vLLM cannot serve this adapter", where=str(adapter_dir), fix=HERE,
                           why="qlora: it was trained on the base in 4 bits, and vLLM has the base as it is")
    found = vllm_directory(adapter_dir)
    if not found["loads"]:
        raise AdapterError("vLLM cannot serve this adapter", where=str(adapter_dir), fix=HERE,
                           why=f"{kind}: {'; '.join(found['refused'])}")
    _tensors_as_said(adapter_dir, layers)
    needed = found["max_lora_rank"]
    if max_rank is not None and needed > max_rank:
        raise AdapterError("the adapter's rank is above that of the vLLM server", where=str(adapter_dir),
                           why=f"it needs --max-lora-rank {needed}, the server has {max_rank}",
                           fix=f"set `engine: {{type: vllm, max_lora_rank: {needed}}}` in the server's settings")


def _tensors_as_said(adapter_dir: Path, layers: Sequence[str]) -> None:
    """vLLM takes the scale from the settings and the rank from the tensors: where they differ, the scale is not the one that
    was trained. And it leaves out layers that it was not told of. Raises AdapterError."""
    from safetensors import safe_open

    config = read_config(adapter_dir)
    said = {config["r"], *(config.get("rank_pattern") or {}).values()}
    with fitting(adapter_dir), safe_open(adapter_dir / WEIGHTS_FILE, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            if (layer := name.split(".lora_")[0].rpartition(".")[2]) not in layers:
                raise AdapterError("vLLM cannot serve this adapter", where=str(adapter_dir), fix=HERE,
                                   why=f"it is on `{layer}`, and vLLM is used for {', '.join(layers)}")
            if name.endswith(".lora_A.weight") and (rank := file.get_slice(name).get_shape()[0]) not in said:
                raise AdapterError("the adapter's tensors are not those that its settings describe", where=str(adapter_dir),
                                   why=f"{name} has rank {rank}, where its settings say {', '.join(map(str, sorted(said)))}",
                                   fix="take both files from the same adapter")


def digest(adapter_dir: Path) -> str:
    """Of an adapter's settings and weights: its name in vLLM."""
    made = sha256()
    for file in FILES:
        with open(adapter_dir / file, "rb") as opened:
            made.update(sha256(opened.read()).digest())
    return made.hexdigest()[:32]


def copied(adapter_dir: Path, folder: Path) -> Path:
    """A copy named by its own digest, so that it is what its name says whatever is written meanwhile."""
    place = folder / "new"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for file in FILES:
        shutil.copyfile(adapter_dir / file, place / file)
    final = folder / digest(place)
    if final.exists():
        shutil.rmtree(place)
    else:
        place.rename(final)
    return final


def same_tokenizer(client: Client, model: str, base: Base, tokenizer) -> None:
    """Raises UsageError: the server reads the probe conversations otherwise than our base does.

    Its weights are not looked at: nothing here has them to compare with, and who starts the server chooses them.
    """
    texts = {m["content"] for messages, _ in PROBES.values() for m in messages if isinstance(m.get("content"), str)}
    texts.add("".join(map(chr, range(32, 127))))
    for text in sorted(texts):
        with ENCODING:
            ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        theirs = client.post("/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})
        if theirs["tokens"] != ours:
            raise UsageError("the vLLM server serves another base", where=client.url, fix=f"start it with {base.path}",
                             why=f"its tokenizer reads {text!r} otherwise than that of {base.ref}")
