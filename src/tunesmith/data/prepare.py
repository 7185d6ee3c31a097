"""All stages of the data room in a row, and the dataset they leave behind.

    files -> rows read, spooled to disk -> without exact duplicates -> split -> filter -> mix -> replay -> audit
          -> rendered, appended to disk

A dataset is addressed by what it was made from: its id is a hash of the files' bytes, the settings, the tokenizer,
the template's fingerprint and the source code of the stages. The same inputs give the same id and are not prepared
twice; a changed row, setting, template or line of code gives another. Rows go from disk to disk one at a time, and
the stages pass their numbers on: a million rows need the memory of their hashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data import diversity, filters, quality, replay, style
from tunesmith.data.audit import audit, drop_exact_duplicates
from tunesmith.data.dataset import TRAIN, Dataset, rows_file, write_tokens
from tunesmith.data.finding import EXAMPLES, Finding
from tunesmith.data.mix import mix_all
from tunesmith.data.normalise import rows_of
from tunesmith.data.overflow import Overflow
from tunesmith.data.pictures import Pictures
from tunesmith.data.read import SHOWN_PROBLEMS, find_files, is_text, name_of
from tunesmith.data.rows import KINDS, Row, require
from tunesmith.data.similar import Index
from tunesmith.data.split import split
from tunesmith.data.spool import Chosen, Rows, encode, write_rows
from tunesmith.data.suites import rows_of_suite
from tunesmith.data.turns import pieces
from tunesmith.errors import DataError, Problem, TemplateError
from tunesmith.recipe.load import Loaded
from tunesmith.recipe.schema import Data, Mix
from tunesmith.recipe.suites import LoadedSuite, load_suites
from tunesmith.store.files import publish_directory, sha256_bytes, sha256_file, sha256_json, sweep, write_json
from tunesmith.store.home import home
from tunesmith.template.fingerprint import fingerprint
from tunesmith.template.render import Rendered, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPOOL = "spool"


@dataclass(frozen=True)
class _Sources:
    """Files by part, resolved before anything is read."""

    train: list[Path]
    tests: dict[str, list[Path]]
    evals: dict[str, list[Path]] = field(default_factory=dict)
    """By path as the recipe wrote it, with a dot or slash in it: no test set is called that."""
    replay: list[Path] = field(default_factory=list)
    suites: list[LoadedSuite] = field(default_factory=list)
    """Of `eval.suites`: held out like the files in `data.evals`, each by the path of its file."""

    def all(self) -> dict[str, list[Path]]:
        return {TRAIN: self.train, **{f"test:{n}": f for n, f in self.tests.items()},
                **{f"eval:{n}": f for n, f in self.evals.items()},
                **{f"eval:{s.held_out}": s.files for s in self.suites}, **({"replay": self.replay} if self.replay else {})}


def prepare(loaded: Loaded, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None] = lambda _line: None) -> Dataset:
    """The dataset of a recipe: found if it was prepared before, made otherwise.

    Raises:
        DataError: rows that cannot be read, rendered or trained on; all of them are listed (up to 20).
    """
    config = loaded.recipe.data
    sources = _find_sources(loaded)
    inputs = {
        "sources": [[sha256_file(f) for f in files] for files in sources.all().values()],
        "settings": config.model_dump(mode="json", exclude={"train": True, "test": True, "evals": True, "template": True,
                                                            "replay": {"rows"}}),
        "tests": list(sources.tests),
        "seed": loaded.recipe.train.seed if not sources.tests or config.replay or config.mix != Mix() else None,
        "template": fingerprint(tokenizer),
        "code": code_digest(),
    }
    if (kind := KINDS[loaded.recipe.objective.type]) != "chat":
        inputs["rows"] = kind
    dataset_id = "ds-" + sha256_json(inputs).removeprefix("sha256:")[:20]
    path = home() / "datasets" / dataset_id
    if (path / "manifest.json").is_file():
        say(f"dataset {dataset_id} is already prepared")
        return Dataset.open(path)
    sweep(path.parent)
    with publish_directory(path) as staging:
        manifest = {"id": dataset_id, "inputs": inputs, **_make(loaded, sources, tokenizer, staging)}
        write_json(staging / "manifest.json", manifest)
    counts = manifest["counts"]
    say(f"dataset {dataset_id}: {counts['train']} training rows, {counts['tokens']:,} tokens, "
        f"{counts['trained_tokens']:,} of them trained")
    return Dataset.open(path)


def code_digest() -> str:
    """Hash of the source of everything that turns a file into tokens: nobody has to remember to bump a version."""
    package = Path(__file__).parent.parent
    files = [p for room in ("data", "template") for p in sorted((package / room).rglob("*.py"))]
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
                    {e if "." in e or "/" in e else f"./{e}": find_files(e, loaded.folder) for e in config.evals},
                    find_files(config.replay.rows, loaded.folder) if config.replay else [], load_suites(loaded))


def _make(loaded: Loaded, sources: _Sources, tokenizer, staging: Path) -> dict:
    """The manifest, after rows and tokens of every part are in `staging`."""
    config, seed = loaded.recipe.data, loaded.recipe.train.seed
    spool = staging / SPOOL
    spool.mkdir()
    repairs = _Repairs()
    pool, system = _spooled(sources.train, loaded, tokenizer, spool / "train", repairs)
    held_out: dict[str, Sequence[Row]] = {n: _spooled(files, loaded, tokenizer, spool / f"test.{n}", repairs, system)[0]
                                          for n, files in sources.tests.items()}
    evals = {n: _spooled(files, loaded, tokenizer, spool / f"eval.{i}", repairs, system)[0]
             for i, (n, files) in enumerate(sources.evals.items())}
    evals |= {s.held_out: rows_of_suite(s) for s in sources.suites}
    findings = repairs.findings()
    for files in (sources.train, *sources.tests.values()):
        if is_text(files[0]):
            findings += style.text_findings(_named(files, loaded))
    train: Sequence[Row] = pool
    if config.dedup.exact:
        kept, found = drop_exact_duplicates(pool)
        findings += found
        train = Chosen(pool, kept)
    if not held_out:
        similar = Index(train, config.dedup.near).groups() if config.dedup.near is not None else ()
        numbers, others = split(train, config.split, seed, similar)
        train, held_out = Chosen(train, numbers), {"test": Chosen(train, others)}
    # Held-out rows are never filtered: a score must be of the rows that the model will meet.
    filtered = filters.filtered(train, config.filter, config.dedup.near)
    findings += filtered.findings
    train = Chosen(train, filtered.kept)
    numbers, shares = mix_all(train, config.mix, seed)
    train = Chosen(train, numbers)
    replayed = {}
    if config.replay:
        more, _ = _spooled(sources.replay, loaded, tokenizer, spool / "replay", repairs)
        more = Chosen(more, filters.filtered(more, config.filter, config.dedup.near).kept)
        drawn, told = replay.draw(train, more, config.replay, seed)
        train, replayed = replay.Joined(train, Chosen(more, drawn)), {"replay": len(drawn)}
        shares = shares | {"replay": [len(more), len(drawn)]}
        findings.append(told)
    pictures = Pictures()
    audited = audit(train, held_out | evals, config.dedup.near, pictures)
    sample = diversity.Sample()
    survey = quality.survey(sample.through(train))
    varied = diversity.diversity(sample)
    effects = [*filtered.effects, *filters.would_drop(train, survey, audited, config.filter)]
    findings += [*audited.findings, *survey.findings, *diversity.findings(varied),
                 *filter(None, [quality.size_advice(len(train))])]
    dropped = Overflow(config.max_tokens)
    parts = {part: write_part(part, ((row, rendered_row(tokenizer, row)) for row in rows), config, staging, dropped,
                              tokenizer, loaded.recipe.objective.type == "dpo")
             for part, rows in {TRAIN: train, **held_out}.items()}
    _empty(spool)
    findings += dropped.findings()
    trained = parts[TRAIN]
    counts = {"rows_read": len(pool), "train": trained.pop("rows"), **replayed,
              **{f"test:{n}": parts[n]["rows"] for n in held_out},
              **trained}
    return {"tests": list(held_out), "counts": counts, "mix": shares, "findings": [f.as_dict() for f in findings],
            "filters": [e.as_dict() for e in effects], "statistics": survey.statistics.as_dict(), "system": system,
            "diversity": varied, "pictures": pictures.as_dict(), "overlong": dropped.as_dict(),
            "text": style.text_card(_named(sources.train, loaded)) if is_text(sources.train[0]) else None,
            "sources": {p: [str(f) for f in fs] for p, fs in sources.all().items()}}


def _named(files: list[Path], loaded: Loaded) -> dict[str, Path]:
    return {name_of(f, loaded.folder): f for f in files}


def _spooled(files: list[Path], loaded: Loaded, tokenizer, path: Path, repairs: _Repairs,
             system: str | None = None) -> tuple[Rows, str | None]:
    """Rows of one part, on disk. Text carries the system prompt of the training text.

    Raises:
        DataError: rows that cannot be used, as `file:line: field`; files are named as the recipe sees them.
    """
    config = loaded.recipe.data
    named = _named(files, loaded)
    text = [f for f in files if is_text(f)]
    if text and len(text) != len(files):
        raise DataError("text and rows in one list of files", where=", ".join(named),
                        fix="give a directory of .txt chapters, or files of rows, not both")
    if text:
        rows, system = style.chapters_to_rows(named, config.style, system, tokenizer, config.max_tokens)
        write_rows(path, repairs.made(rows) if config.repair else rows)
        return Rows(path), system
    problems = Problems()
    rows = _rows_of(named, config.format, problems)
    write_rows(path, repairs.made(rows) if config.repair else rows)
    problems.refuse()
    require(Rows(path), loaded.recipe.objective.type)
    return Rows(path), None


class _Repairs:
    """What `quality.fix` did to the rows: how often, and where first."""

    def __init__(self) -> None:
        self.rows: dict[str, list[str]] = {}
        self.count: Counter[str] = Counter()

    def made(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            row, done = quality.fix(row)
            for what in dict.fromkeys(done):
                self.count[what] += 1
                if self.count[what] <= EXAMPLES:
                    self.rows.setdefault(what, []).append(row.where)
            yield row

    def findings(self) -> list[Finding]:
        return [Finding("repaired", "info", count, f"{count} rows were repaired: {what}",
                        "see every change with `tunesmith data diff` against the recipe without data.repair", self.rows[what])
                for what, count in self.count.most_common()]


class Problems:
    """How many, and the first of them: a million bad rows are no reason to run out of memory."""

    def __init__(self) -> None:
        self.count, self.first = 0, []

    def add(self, *problems: Problem) -> None:
        self.count += len(problems)
        self.first += problems[: SHOWN_PROBLEMS - len(self.first)]

    def refuse(self) -> None:
        """Raises DataError when there is one."""
        if self.count:
            raise DataError(f"{self.count} problem{'s' * (self.count > 1)} in the data{_shown(self.count)}",
                            problems=self.first)


def _rows_of(named: dict[str, Path], fmt: str, problems: Problems) -> Iterator[Row]:
    for name, path in named.items():
        for found in rows_of(path, name, fmt):
            if isinstance(found, Row):
                yield found
            else:
                problems.add(found)


def _empty(spool: Path) -> None:
    for path in spool.iterdir():
        path.unlink()
    spool.rmdir()


def _shown(count: int) -> str:
    return f" (the first {SHOWN_PROBLEMS} are shown)" if count > SHOWN_PROBLEMS else ""


def rendered_row(tokenizer: PreTrainedTokenizerBase, row: Row) -> Rendered | tuple[Rendered, Rendered] | Problem:
    """Tokens and mask of a row, or why it cannot be trained on. Its length is not looked at.

    Of a preference row: with the preferred answer, and with the rejected one.
    """
    try:
        rendered = render(tokenizer, row.messages, row.tools)
        return rendered if row.rejected is None else (rendered, render(tokenizer, row.question + row.rejected, row.tools))
    except TemplateError as error:
        return Problem(code="template", where=row.where, message=error.what, fix=error.fix)


def write_part(part: str, rows: Iterable[tuple[Row, Rendered | tuple[Rendered, Rendered] | Problem]], config: Data,
               folder: Path, dropped: Overflow, tokenizer: PreTrainedTokenizerBase, pairs: bool = False) -> dict[str, int]:
    """Write rows and their tokens, as `rendered_row` gives them. Returns counts of the rows that are kept.

    Raises:
        DataError: rows that cannot be trained on (the first are listed, all are counted), or none is left.
    """
    problems, refused, seen = Problems(), Overflow(config.max_tokens), 0

    def length(row: Row) -> int:
        return len(render(tokenizer, row.messages, row.tools).ids)

    def fitting(file) -> Iterator[Rendered]:
        nonlocal seen
        for row, rendered in rows:
            seen += 1
            if isinstance(rendered, Problem):
                problems.add(rendered)
                continue
            longer = max(rendered, key=lambda r: len(r.ids)) if isinstance(rendered, tuple) else rendered
            n = len(longer.ids)
            if n <= config.max_tokens:
                file.write(encode(row))
                yield rendered
            elif config.on_overflow == "split" and part == TRAIN and (made := pieces(row, config.max_tokens, length)):
                for piece in dropped.parted.add(row, made):
                    file.write(encode(piece))
                    yield render(tokenizer, piece.messages, piece.tools)
            elif config.on_overflow == "drop" or config.on_overflow == "split" and part != TRAIN:
                dropped.add(row, longer)
            else:
                refused.add(row, longer)
                problems.add(Problem(code="overlong", where=row.where, message=f"{n} tokens, and data.max_tokens is "
                                f"{config.max_tokens}{', also for one exchange alone' * (config.on_overflow == 'split')}",
                                fix="raise data.max_tokens, shorten the row, or set on_overflow: drop"))

    with open(folder / rows_file(part), "w", encoding="utf-8", newline="\n") as file:
        counts = write_tokens(folder, part, fitting(file), pairs)
    if problems.count:
        raise DataError(f"{problems.count} of {seen} rows of {part!r} cannot be used as they are{_shown(problems.count)}",
                        why=f"{refused.rows} are too long; {refused.cost}" if refused.rows else None, problems=problems.first)
    if not counts["rows"]:
        raise DataError(f"no row of {part!r} is left: all are longer than {config.max_tokens} tokens",
                        fix="raise data.max_tokens, or shorten them")
    return counts
