"""All stages of the data room in a row, and the dataset they leave behind.

A dataset is addressed by what it was made from: its id is a hash of the files' bytes, the settings, the tokenizer,
the template's fingerprint and the source code of the stages. The same inputs give the same id and are not prepared
twice; a changed row, setting, template or line of code gives another.

    datasets/ID/manifest.json        id, sources, counts, findings, fingerprint, system prompt of text data
               train.jsonl  test.NAME.jsonl              rows as they were used, each with its place in the source
               train.tokens.npy  .trained.npy  .offsets.npy     rendered, memory-mapped when read
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data import style
from tunesmith.data.audit import Finding, audit, drop_exact_duplicates
from tunesmith.data.normalise import normalise
from tunesmith.data.read import SHOWN_PROBLEMS, TEXT_SUFFIXES, find_files, read_records
from tunesmith.data.rows import Row
from tunesmith.data.split import split
from tunesmith.errors import DataError, Problem, TemplateError
from tunesmith.recipe.load import Loaded
from tunesmith.store.files import publish_directory, read_json, sha256_bytes, sha256_file, sha256_json, write_json, write_text
from tunesmith.store.home import home
from tunesmith.template.fingerprint import fingerprint
from tunesmith.template.render import Rendered, render

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

TRAIN = "train"


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset on disk."""

    path: Path
    manifest: dict

    @property
    def id(self) -> str:
        return self.manifest["id"]

    @property
    def tests(self) -> list[str]:
        """Names of the test sets, the primary one first."""
        return self.manifest["tests"]

    def rows(self, part: str) -> list[Row]:
        """Rows of `train` or of a test set."""
        with open(self.path / _rows_file(part), encoding="utf-8", newline="\n") as lines:
            return [Row(r["messages"], r["where"], r.get("tools"), r.get("meta", {})) for r in map(json.loads, lines)]

    def tokens(self, part: str) -> Tokens:
        return Tokens(self.path, _stem(part))

    @classmethod
    def open(cls, path: Path) -> Dataset:
        return cls(path, read_json(path / "manifest.json"))


@dataclass(frozen=True)
class Tokens:
    """Rendered rows of one part: `tokens[i]` is `(ids, trained)`."""

    folder: Path
    stem: str

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, i: int) -> tuple[list[int], list[bool]]:
        part = slice(int(self._offsets[i]), int(self._offsets[i + 1]))
        return self._ids[part].tolist(), self._trained[part].tolist()

    @property
    def lengths(self) -> list[int]:
        return (self._offsets[1:] - self._offsets[:-1]).tolist()

    def _array(self, name: str) -> np.ndarray:
        import numpy as np

        return np.load(self.folder / f"{self.stem}.{name}.npy", mmap_mode="r")

    @cached_property
    def _ids(self) -> np.ndarray:
        return self._array("tokens")

    @cached_property
    def _trained(self) -> np.ndarray:
        return self._array("trained")

    @cached_property
    def _offsets(self) -> np.ndarray:
        return self._array("offsets")


@dataclass(frozen=True)
class _Sources:
    """Files by part, resolved before anything is read."""

    train: list[Path]
    tests: dict[str, list[Path]]
    evals: dict[str, list[Path]] = field(default_factory=dict)
    """By path as the recipe wrote it, with a dot or slash in it: no test set is called that."""

    def all(self) -> dict[str, list[Path]]:
        return {TRAIN: self.train, **{f"test:{n}": f for n, f in self.tests.items()},
                **{f"eval:{n}": f for n, f in self.evals.items()}}


def prepare(loaded: Loaded, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None] = lambda _line: None) -> Dataset:
    """The dataset of a recipe: found if it was prepared before, made otherwise.

    Raises:
        DataError: rows that cannot be read, rendered or trained on; all of them are listed (up to 20).
    """
    config = loaded.recipe.data
    sources = _find_sources(loaded)
    inputs = {
        "sources": [[sha256_file(f) for f in files] for files in sources.all().values()],
        "settings": config.model_dump(mode="json", exclude={"train", "test", "evals", "template"}),
        "tests": list(sources.tests),
        "seed": loaded.recipe.train.seed if not sources.tests else None,
        "template": fingerprint(tokenizer),
        "code": code_digest(),
    }
    dataset_id = "ds-" + sha256_json(inputs).removeprefix("sha256:")[:20]
    path = home() / "datasets" / dataset_id
    if (path / "manifest.json").is_file():
        say(f"dataset {dataset_id} is already prepared")
        return Dataset.open(path)
    manifest, parts = _make(loaded, sources, tokenizer)
    manifest = {"id": dataset_id, "inputs": inputs, **manifest}
    with publish_directory(path) as staging:
        for part, (rows, rendered) in parts.items():
            write_text(staging / _rows_file(part), "".join(json.dumps(r.as_record(), ensure_ascii=False) + "\n" for r in rows))
            _save_tokens(staging, part, rendered)
        write_json(staging / "manifest.json", manifest)
    counts = manifest["counts"]
    say(f"dataset {dataset_id}: {counts['train']} training rows, {counts['tokens']:,} tokens, "
        f"{counts['trained_tokens']:,} of them trained")
    return Dataset.open(path)


def code_digest() -> str:
    """Hash of the source of everything that turns a file into tokens: nobody has to remember to bump a version."""
    package = Path(__file__).parent.parent
    files = [p for room in ("data", "template") for p in sorted((package / room).glob("*.py"))]
    return sha256_bytes(b"".join(p.read_bytes() for p in files))


def _find_sources(loaded: Loaded) -> _Sources:
    config = loaded.recipe.data
    named = config.test if isinstance(config.test, dict) else {"test": config.test} if config.test else {}
    for name in named:
        if name == TRAIN or not name.replace("_", "").replace("-", "").isalnum():
            raise DataError(f"{name!r} cannot be the name of a test set", where=str(loaded.path),
                            fix=f"letters, digits, - and _ only, and not {TRAIN!r}")
    return _Sources(find_files(config.train, loaded.folder),
                    {name: find_files(files, loaded.folder) for name, files in named.items()},
                    {e if "." in e or "/" in e else f"./{e}": find_files(e, loaded.folder) for e in config.evals})


def _make(loaded: Loaded, sources: _Sources, tokenizer) -> tuple[dict, dict[str, tuple[list[Row], list[Rendered]]]]:
    config, seed = loaded.recipe.data, loaded.recipe.train.seed
    train, system = _read(sources.train, loaded, tokenizer)
    tests = {name: _read(files, loaded, tokenizer, system)[0] for name, files in sources.tests.items()}
    evals = {name: _read(files, loaded, tokenizer, system)[0] for name, files in sources.evals.items()}
    read = len(train)
    findings: list[Finding] = []
    if config.dedup.exact:
        train, findings = drop_exact_duplicates(train)
    if not tests:
        train, held_out = split(train, config.split.test, config.split.by, seed)
        tests = {"test": held_out}
    findings += audit(train, tests | evals, config.dedup.near)
    parts, overlong = {}, []
    for part, rows in {TRAIN: train, **tests}.items():
        parts[part], dropped = _render_all(part, rows, tokenizer, config.max_tokens, config.on_overflow)
        overlong += dropped
    if overlong:
        findings.append(Finding("overlong", "warning", len(overlong),
                                f"{len(overlong)} rows are longer than {config.max_tokens} tokens and were dropped whole",
                                "raise data.max_tokens, or shorten them", overlong[:3]))
    for part, (_rows, rendered) in parts.items():
        if not rendered:
            raise DataError(f"no row of {part!r} is left: all are longer than {config.max_tokens} tokens",
                            fix="raise data.max_tokens, or shorten them")
    rendered = parts[TRAIN][1]
    counts = {"rows_read": read, "train": len(rendered), **{f"test:{n}": len(parts[n][0]) for n in tests},
              "tokens": sum(len(r.ids) for r in rendered), "trained_tokens": sum(sum(r.trained) for r in rendered),
              "longest": max(len(r.ids) for r in rendered)}
    manifest = {"tests": list(tests), "counts": counts, "findings": [f.as_dict() for f in findings], "system": system,
                "sources": {p: [str(f) for f in fs] for p, fs in sources.all().items()}}
    return manifest, parts


def _read(files: list[Path], loaded: Loaded, tokenizer, system: str | None = None) -> tuple[list[Row], str | None]:
    """Rows of one part. Text carries the system prompt of the training text. Files are named as the recipe sees them."""
    config = loaded.recipe.data
    named = {str(f.relative_to(loaded.folder) if f.is_relative_to(loaded.folder) else f): f for f in files}
    text = [f for f in files if f.suffix.lower() in TEXT_SUFFIXES]
    if text and len(text) != len(files):
        raise DataError("text and JSON in one list of files", where=", ".join(named),
                        fix="give a directory of chapters (.txt, .md), or files of rows, not both")
    if text:
        return style.chapters_to_rows(named, config.style, system, tokenizer, config.max_tokens)
    rows, problems = [], []
    for name, path in named.items():
        try:
            rows += normalise(read_records(path, name), config.format)
        except DataError as error:
            problems += error.problems or [Problem(code="unreadable", where=error.where, fix=error.fix,
                                                   message=f"{error.what}: {error.why}" if error.why else error.what)]
    if problems:
        raise DataError(f"{len(problems)} problem{'s' * (len(problems) > 1)} in the data{_shown(problems)}",
                        problems=problems[:SHOWN_PROBLEMS])
    return rows, None


def _shown(problems: list[Problem]) -> str:
    return f" (the first {SHOWN_PROBLEMS} are shown)" if len(problems) > SHOWN_PROBLEMS else ""


def _render_all(part: str, rows: list[Row], tokenizer, max_tokens: int, on_overflow: str):
    """((rows kept, rendered), places of rows dropped). Raises DataError listing all rows that cannot be trained on."""
    kept: tuple[list[Row], list[Rendered]] = ([], [])
    problems, dropped = [], []
    for row in rows:
        try:
            rendered = render(tokenizer, row.messages, row.tools)
        except TemplateError as error:
            problems.append(Problem(code="template", where=row.where, message=error.what, fix=error.fix))
            continue
        n = len(rendered.ids)
        if n <= max_tokens:
            kept[0].append(row)
            kept[1].append(rendered)
        elif on_overflow == "drop":
            dropped.append(f"{row.where} ({n} tokens)")
        else:
            problems.append(Problem(code="overlong", where=row.where, message=f"{n} tokens, and data.max_tokens is "
                                    f"{max_tokens}", fix="raise data.max_tokens, shorten the row, or set on_overflow: drop"))
    if problems:
        raise DataError(f"{len(problems)} of {len(rows)} rows of {part!r} cannot be used as they are{_shown(problems)}",
                        problems=problems[:SHOWN_PROBLEMS])
    return kept, dropped


def _save_tokens(folder: Path, part: str, rendered: list[Rendered]) -> None:
    import numpy as np

    stem = _stem(part)
    np.save(folder / f"{stem}.tokens.npy", np.array([t for r in rendered for t in r.ids], dtype=np.uint32))
    np.save(folder / f"{stem}.trained.npy", np.array([t for r in rendered for t in r.trained], dtype=bool))
    np.save(folder / f"{stem}.offsets.npy", np.cumsum([0] + [len(r.ids) for r in rendered], dtype=np.int64))


def _stem(part: str) -> str:
    return part if part == TRAIN else f"test.{part}"


def _rows_file(part: str) -> str:
    return f"{_stem(part)}.jsonl"
