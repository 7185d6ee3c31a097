"""axolotl's `datasets` and `test_datasets`: a list of mappings, each with a path, a type, and names of its fields."""

from __future__ import annotations

import re
from typing import Any

from tunesmith.recipe.foreign.ledger import Ledger, shown, unset
from tunesmith.recipe.foreign.places import (
    BUILDERS,
    DATA_FILE,
    HUB_NAME,
    RENAME,
    Place,
    chat_format,
    fields_format,
    hub,
    local,
    measure,
)
from tunesmith.recipe.foreign.rules import names, text

ALPACA = "the rows are rendered with the base's chat template; axolotl writes Alpaca's own '### Instruction' text around them"
PLACE, SHAPE = {"path", "data_files", "split", "revision", "ds_type"}, {
    "type", "field_messages", "message_field_role", "message_field_content", "message_property_mappings", "conversation"}
SAME = {"roles_to_train": (["assistant"], ["assistant", "gpt"]), "train_on_eos": ("turn",), "train_on_eot": ("turn",),
        "drop_system_message": (False,), "trust_remote_code": (False,), "field_tools": ("tools",), "field_system": ("system",),
        "field_thinking": ("reasoning_content",), "template_thinking_key": ("reasoning_content",), "field": ("text",)}
"""Values with which a field of a dataset says what a recipe does anyway."""
ROLES = {"system": {"system", "developer"}, "user": {"user", "human"}, "assistant": {"assistant", "gpt", "model"},
         "tool": {"tool", "observation", "function"}}
"""Names of roles in rows that are read without being told."""
SKIPPED = {"preprocess_shards": "how data is loaded", "num_proc": "how data is loaded"}
FIELDS: dict[str, tuple[str, str]] = {
    "name": ("one configuration of the hub dataset is taken", "name its files: hf:owner/name:GLOB"),
    "shards": ("one piece of the dataset is taken", "data.mix.caps limits how many rows a source gives"),
    "shards_idx": ("one piece of the dataset is taken", "data.mix.caps limits how many rows a source gives"),
    "roles_to_train": ("turns of other roles are trained", "a recipe trains the assistant's turns; weight 0 takes one out"),
    "train_on_eos": ("other stop tokens are trained", "here every trained turn ends in a trained stop token"),
    "train_on_eot": ("other end-of-turn tokens are trained", "here every trained turn ends in a trained stop token"),
    "message_field_training": ("a key of each turn says whether it is trained", "give the turns `weight`: 0 or 1"),
    "message_field_training_detail": ("parts of turns are trained", "whole turns only: give them `weight`: 0 or 1"),
    "roles": ("other names of roles",
              "user and human, assistant and gpt, system, tool are read; rename the others in the rows"),
    "drop_system_message": ("system prompts are left out", "take them out of the rows"),
    "chat_template": ("this dataset has a template of its own", "one template for all: data.template is a Jinja file"),
    "chat_template_jinja": ("this dataset has a template of its own", "one template for all: data.template is a Jinja file"),
}


def datasets(ledger: Ledger) -> None:
    """Where the rows are and how they look."""
    if not ledger.has("datasets") and not ledger.has("pretraining_dataset"):
        ledger.bad("datasets", "datasets: missing, so there is nothing to train", "import the YAML of a training")
    train, formats = _all(ledger, "datasets")
    tests, test_formats = _all(ledger, "test_datasets")
    formats |= test_formats
    measure(ledger, train)
    kind = formats.pop() if len(formats) == 1 else "auto"
    for key in [k for k in ("datasets", "test_datasets") if ledger.has(k)]:
        to = "data.train" if key == "datasets" else "data.test"
        named = [n for p in (train if key == "datasets" else tests) for n in p.names]
        value = named[0] if len(named) == 1 else named
        if not named:
            ledger.bad(key, f"{key}: a list of mappings with a path belongs here")
            continue
        for i, entry in enumerate(ledger.value(key)):
            _account(ledger, key, i, entry, to, value, kind)


def _all(ledger: Ledger, key: str) -> tuple[list[Place], set[str]]:
    entries = ledger.given.get(key)
    if unset(entries):
        return [], set()
    if not isinstance(entries, list) or not all(isinstance(e, dict) and e.get("path") for e in entries):
        ledger.bad(key, f"{key}: a list of mappings with a path belongs here", "write `- path: data.jsonl` and its type")
        return [], set()
    places = [_place(ledger, key, i, e) for i, e in enumerate(entries)]
    return places, {shape(e)[0] or "auto" for e in entries}


def _place(ledger: Ledger, key: str, i: int, entry: dict[str, Any]) -> Place:
    path = ledger.read((key, i, "path"), entry["path"], text)
    files = [] if unset(entry.get("data_files")) else ledger.read((key, i, "data_files"), entry["data_files"], names)
    if path in BUILDERS and files:
        return local(ledger, files)
    found = local(ledger, [path])
    like_a_file = path.startswith(".") or DATA_FILE.search(path) or not unset(entry.get("ds_type"))
    if HUB_NAME.fullmatch(path) and not like_a_file and not found.files:
        revision = entry.get("revision") if isinstance(entry.get("revision"), str) else None
        return hub(path, revision, _split(entry)[0], files)
    if "://" in path:
        return Place([path], [])
    return local(ledger, [f"{path}/{f}" for f in files]) if files and found.files and found.files[0].is_dir() else found


def _split(entry: dict[str, Any]) -> tuple[str, bool]:
    """The name of the split, and whether a part of it was meant (`train[:10%]`, `train+test`)."""
    given = str(entry.get("split") or "train")
    name = re.match(r"[\w.-]*", given)[0]
    return name or "train", name != given


def shape(entry: dict[str, Any]) -> tuple[str | None, str]:
    """`(format, note)` of a dataset's rows; None when a recipe cannot say it."""
    kind = entry.get("type")
    mappings = entry.get("message_property_mappings")
    mappings = mappings if isinstance(mappings, dict) else {}
    if isinstance(kind, dict):
        found = fields_format(kind.get("field_instruction") or "instruction", kind.get("field_input"),
                              kind.get("field_output") or "output")
        written = {"system_prompt", "system_format", "format", "no_input_format"} & {k for k, v in kind.items() if v}
        return (None if written else found), "its fields"
    if kind == "chat_template":
        return chat_format(entry.get("field_messages") or "messages",
                           entry.get("message_field_role") or mappings.get("role", "role"),
                           entry.get("message_field_content") or mappings.get("content", "content")), ""
    if isinstance(kind, str) and kind.split(".")[0].split(":")[0] == "sharegpt":
        return "sharegpt", ""
    return ("alpaca", ALPACA) if isinstance(kind, str) and kind.split(":")[0] == "alpaca" else (None, "")


def _account(ledger: Ledger, key: str, i: int, entry: dict[str, Any], to: str, value: Any, kind: str) -> None:
    found, note = shape(entry)
    place = _place(ledger, key, i, entry)
    for name, given in entry.items():
        at = (key, i, name)
        if not isinstance(name, str):
            ledger.remarks(f"{key}[{i}].{shown(name)}", given, ledger.where((key, i)), "no such key", "it says nothing",
                           "take it out")
        elif unset(given):
            ledger.ignores(at, "not set")
        elif name == "path" and "://" in str(given):
            ledger.refuses(at, "the data is in an object store", "the recipe cannot read it", "copy it to local files",
                           to, value)
        elif name == "split" and (_split(entry)[1] or (place.files and _split(entry)[0] != "train")):
            ledger.refuses(at, f"the part {given!r} of the data is taken", "the recipe takes all of it",
                           "data.mix.caps limits how many rows a source gives, or name another file")
        elif name == "split" and place.files:
            ledger.ignores(at, "a local file is one split")
        elif name == "ds_type":
            ledger.ignores(at, "the kind of a file is seen by its ending")
        elif name in PLACE:
            ledger.maps(at, to, value, place.note if name in ("path", "data_files") else "")
        elif name in SHAPE and found:
            ledger.maps(at, "data.format", kind, note if kind != "auto" else "rows are recognised by their keys" +
                        (f"; {note}" if note else ""))
        elif name in SHAPE:
            ledger.refuses(at, "rows of this shape are read", "the recipe reads rows of another shape, or none", RENAME)
        elif any(given is s or (not isinstance(s, bool) and given == s) for s in SAME.get(name, ())) or given is False:
            ledger.ignores(at, "as here")
        elif name == "roles" and _known_roles(given):
            ledger.ignores(at, "these names are read anyway")
        elif name in SKIPPED:
            ledger.ignores(at, SKIPPED[name])
        elif name in ("chat_template", "chat_template_jinja") and given == "tokenizer_default":
            ledger.ignores(at, "the base's own template, as here")
        else:
            why, fix = FIELDS.get(name, ("rows are read in a way that a recipe has no word for", RENAME))
            ledger.refuses(at, why, "the recipe reads the rows without it", fix)


def _known_roles(given: Any) -> bool:
    """Whether `{role: [its names in the rows]}` says what is read anyway."""
    return isinstance(given, dict) and all(isinstance(names, list) and set(map(str, names)) <= ROLES.get(str(role), set())
                                           for role, names in given.items())
