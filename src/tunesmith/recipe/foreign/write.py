"""The recipe as text: in the schema's order, each value with the key that it came from, and what has no equal at the end."""

from __future__ import annotations

import re
from typing import Any

from tunesmith.recipe.foreign.ledger import Entry, Ledger, shown
from tunesmith.recipe.load import fields_at

PLAIN = re.compile(r"(\.{0,2}/)?[A-Za-z_][\w./-]*")
RESERVED = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
WIDTH = 120


def write(ledger: Ledger) -> str:
    tree: dict[str, Any] = {}
    for name, entry in ledger.recipe.items():
        *above, last = name.split(".")
        section = tree
        for part in above:
            section = section.setdefault(part, {})
        section[last] = entry
    lines = [f"# From {_clean(ledger.path.name)} of {ledger.tool.title}, by `tunesmith import`. Each value has the key it came "
             f"from.",
             f"# {len(ledger.mapped)} keys say the same here, {len(ledger.unsupported)} have no equal (at the end), "
             f"{len(ledger.ignored)} change nothing here.", ""]
    lines += _section(tree, ())
    if ledger.unsupported:
        lines += ["", "# No equal here:"]
    for item in ledger.unsupported:
        at = f" (line {item['line']})" if item["line"] else f" ({item['where']})"
        lines += [f"#   {_clean(item['key'])}: {shown(item['value'])}{_clean(at)}",
                  *(f"#     {label}: {_clean(item[key])}" for label, key in (("there", "why"), ("here", "consequence"), ("do",
                                                                                                                         "fix")))]
    return "\n".join(lines) + "\n"


def _section(tree: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    kind = tree.get("type")
    tags = (f"{path[-1]}[{kind.value}]",) if path and isinstance(kind, Entry) else ()
    return [line for key in sorted(tree, key=fields_at(path, tags).index) for line in _lines(key, tree[key], path)]


def _lines(key: str, value: Any, path: tuple[str, ...]) -> list[str]:
    indent = "  " * len(path)
    if not isinstance(value, Entry):
        return [f"{indent}{key}:", *_section(value, (*path, key))]
    told = "; ".join(", ".join(keys) + (": " if keys and note else "") + note for note, keys in value.comments.items())
    line, comment = f"{indent}{key}: {_scalar(value.value)}", _clean(told, 400)
    if len(line) + len(comment) + 4 <= WIDTH:
        return [f"{line}  # {comment}"]
    return [f"{indent}# {comment}", line]


def _scalar(value: Any) -> str:
    """Quoted unless it can be nothing but text, so that no loader reads a number or a date."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if PLAIN.fullmatch(text) and text.lower() not in RESERVED else '"'))
    dumped = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    return dumped.removesuffix("\n").removesuffix("\n...")


def _clean(text: str, most: int = 600) -> str:
    """One printable line."""
    line = "".join(c if c.isprintable() else " " for c in str(text).encode("utf-8", "backslashreplace").decode("utf-8"))
    return line if len(line) <= most else line[: most - 3] + "..."
