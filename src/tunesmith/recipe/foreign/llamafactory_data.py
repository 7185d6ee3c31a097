"""LLaMA-Factory's `dataset` and `eval_dataset`: names, which `dataset_info.json` in `dataset_dir` explains.

    "mine": {"file_name": "mine.json", "formatting": "sharegpt", "columns": {"messages": "chats"}, "tags": {...}}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.recipe.foreign.ledger import Ledger
from tunesmith.recipe.foreign.places import DATA_FILE, RENAME, Place, chat_format, fields_format, hub, local, measure
from tunesmith.recipe.foreign.rules import names, text
from tunesmith.recipe.foreign.shared import find, relative

INFO = "dataset_info.json"
HERE = ("file_name", "hf_hub_url", "formatting", "columns", "tags", "split", "file_sha1")
"""Keys of an entry that are read."""
ELSEWHERE = ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
OTHER = {
    "ranking": ("its rows are pairs of a better and a worse answer", "name rows with one answer each: a recipe trains answers"),
    "subset": ("one configuration of the hub dataset is taken", "name its files: hf:owner/name:GLOB"),
    "folder": ("one folder of the hub dataset is taken", "name its files: hf:owner/name:folder/*"),
    "num_samples": ("so many rows of it are drawn", "data.mix.caps with this source and this number"),
}
TAGS = {"user_tag": ("human", "user"), "assistant_tag": ("gpt", "assistant", "model"), "system_tag": ("system", "developer"),
        "observation_tag": ("observation", "tool", "function"), "function_tag": ("function_call",)}
"""Names of roles that are read here too."""
MEDIA = ("images", "videos", "audios", "chosen", "rejected", "kto_tag")


def datasets(ledger: Ledger) -> None:
    """`data.train`, `data.test` and `data.format`; what the info file says otherwise is remarked."""
    folder = ledger.get("dataset_dir", text, "data")
    info, source = _info(ledger, folder)
    formats: set[str] = set()
    all_known = True
    for key, to in (("dataset", "data.train"), ("eval_dataset", "data.test")):
        if not ledger.has(key):
            continue
        wanted = ledger.get(key, names)
        places = [_place(ledger, name, info, source, folder) for name in wanted]
        unknown = [n for n, p in zip(wanted, places, strict=True) if p is None]
        written = [n for w, p in zip(wanted, places, strict=True) for n in (p.names if p else [_guess(ledger, folder, w)])]
        value = written[0] if len(written) == 1 else written
        if unknown:
            all_known = False
            reason = f"{INFO} does not have it" if info is not None else f"there is no {INFO} in {folder!r}"
            ledger.refuses(key, f"{', '.join(unknown)}: a name, and {reason}", "where the rows are is not known: what the "
                           "recipe "
                           "names is not there", f"put the path of the rows into {to}, or import again where {folder}/{INFO} "
                           f"is",
                           to, value)
        else:
            ledger.maps(key, to, value, "; ".join(sorted({p.note for p in places if p and p.note})) or f"as {source.name} says")
        formats |= {_shape(ledger, n, info, source) or "auto" for n in wanted if info and n in info}
        if key == "dataset" and not unknown:
            measure(ledger, [p for p in places if p])
    if len(formats) == 1 and all_known and formats != {"auto"}:
        ledger.adds("data.format", formats.pop(), f"{source.name}: formatting, columns and tags")
    if not ledger.has("dataset"):
        ledger.bad("dataset", "dataset: missing, so there is nothing to train", "import the YAML of a training, not of an "
                   "export "
                   "or a chat")
    ledger.ignores("dataset_dir", f"where {INFO} is")


def _info(ledger: Ledger, folder: str) -> tuple[dict[str, Any] | None, Path]:
    """The whole info file, and its path; None when it is not there or cannot be read, which is remarked."""
    if folder.upper() == "ONLINE":
        return None, Path(INFO)
    if folder.startswith("REMOTE:"):
        return None, Path(INFO)
    found = find(ledger, f"{folder}/{INFO}")
    if found is None:
        return None, Path(folder, INFO)
    try:
        value = json.loads(found.read_text(encoding="utf-8-sig"))
        if isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()):
            return value, found
        why = "it is not a mapping of names to mappings"
    except (OSError, ValueError, RecursionError) as error:
        why = str(error)[:200]
    ledger.remarks(INFO, None, str(found), f"it cannot be read: {why}", "names of datasets are not resolved", "mend the file")
    return None, found


def _place(ledger: Ledger, name: str, info: dict[str, Any] | None, source: Path, folder: str) -> Place | None:
    if info is None:
        online = folder.upper() == "ONLINE" and name.count("/") == 1
        return hub(name, None, None, []) if online else None
    entry = info.get(name)
    if entry is None:
        return None
    split = entry.get("split") if isinstance(entry.get("split"), str) else None
    if isinstance(entry.get("hf_hub_url"), str):
        return hub(entry["hf_hub_url"], None, split, [])
    if isinstance(entry.get("file_name"), str) and not any(k in entry for k in ELSEWHERE):
        path = source.parent / entry["file_name"]
        return Place([relative(ledger, path)], [path] if path.exists() else [], "" if path.exists() else f"{path} is not there "
                     f"now")
    return None


def _guess(ledger: Ledger, folder: str, name: str) -> str:
    place = local(ledger, [name if DATA_FILE.search(name) else f"{folder}/{name}.json"])
    return place.names[0]


def _shape(ledger: Ledger, name: str, info: dict[str, Any], source: Path) -> str | None:
    """The format of a dataset's rows. What a recipe has no word for is remarked, with the info file's path."""
    entry = info[name]
    columns = entry["columns"] if isinstance(entry.get("columns"), dict) else None
    tags = entry["tags"] if isinstance(entry.get("tags"), dict) else {}
    kind = entry.get("formatting", "alpaca")
    if kind == "alpaca":
        given = columns if columns is not None else {"prompt": "instruction", "query": "input", "response": "output"}
        found = fields_format(given.get("prompt"), given.get("query"), given.get("response"))
        odd = {k: v for k, v in given.items() if k in ("system", "tools", "history") and v != k}
    else:
        given = columns if columns is not None else {"messages": "conversations"}
        found = chat_format(given.get("messages"), tags.get("role_tag", "from"), tags.get("content_tag", "value"))
        odd = {k: v for k, v in given.items() if k in ("system", "tools") and v != k}
        odd |= {k: v for k, v in tags.items() if k in TAGS and v not in TAGS[k]}
    odd |= {k: v for k, v in given.items() if k in MEDIA}
    if found is None or odd:
        ledger.remarks(f"{INFO}: {name}", {"formatting": kind, "columns": columns, "tags": tags}, str(source),
                       "rows of this shape are read", "the recipe reads rows of another shape, or none", RENAME)
    for key in entry:
        if key in OTHER and entry[key]:
            ledger.remarks(f"{INFO}: {name}.{key}", entry[key], str(source), OTHER[key][0],
                           "the recipe takes its rows as they are",
                           OTHER[key][1])
        elif key in ELSEWHERE:
            ledger.remarks(f"{INFO}: {name}.{key}", entry[key], str(source), "the rows are somewhere that is not read here",
                           "the recipe cannot read them", "copy them to a local file, and name it in data.train")
        elif key not in HERE and key not in OTHER:
            ledger.remarks(f"{INFO}: {name}.{key}", entry[key], str(source), "not a key of a dataset", "it says nothing",
                           "take it out")
    return found
