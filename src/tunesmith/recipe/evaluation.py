"""The recipe's `eval` and `gates`: what is measured, and how good it has to be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from tunesmith.recipe.section import Section

MetricName = Literal["exact_match", "json_f1", "token_f1", "loss", "perplexity"]


class StyleEval(Section):
    """Base and tuned write to held-out requests, and what they write is compared with the author. See docs/style.md."""

    samples: Annotated[int, Field(ge=4)] = 40
    """Held-out passages whose requests are written to, of the primary test set, drawn with the seed when there are more."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.8
    """0: greedy, which makes a small model repeat itself. The same for base and tuned, with the recipe's seed."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Sampling is from the smallest set of tokens that has this probability."""
    other: str | list[str] | None = None
    """Text of another author (.txt or .md, relative to the recipe): shows what a large distance is. Never trained on."""
    copied_words: Annotated[int, Field(ge=2)] = 13
    """The report warns when a tuned text repeats so many words in a row of the training text. 13 is what the audit takes for a
    leak (`data.leaks`)."""


class Eval(Section):
    metrics: list[MetricName] = ["exact_match", "loss"]
    baselines: list[Literal["zero_shot", "few_shot"]] = ["zero_shot"]
    shots: Annotated[int, Field(ge=1, le=32)] = 3
    """Training rows shown to the base before the question in the few_shot baseline."""
    samples: Annotated[int, Field(ge=1)] = 200
    """Rows evaluated of each test set, drawn with the seed when there are more."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 32
    style: StyleEval | None = None
    """Compare the voice of base and tuned with the author's: `style: {}` turns it on."""

    @field_validator("baselines")
    @classmethod
    def _zero_shot_is_the_base(cls, baselines: list[str]) -> list[str]:
        if "zero_shot" not in baselines:
            raise ValueError("must contain zero_shot: it is the base that the tuned model is compared with")
        return baselines


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
