"""The recipe's `eval` and `gates`: what is measured, and how good it has to be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from tunesmith.recipe.section import Section

MetricName = Literal["exact_match", "json_f1", "token_f1", "loss", "perplexity"]


class Eval(Section):
    metrics: list[MetricName] = ["exact_match", "loss"]
    baselines: list[Literal["zero_shot", "few_shot"]] = ["zero_shot"]
    shots: Annotated[int, Field(ge=1, le=32)] = 3
    """Training rows shown to the base before the question in the few_shot baseline."""
    samples: Annotated[int, Field(ge=1)] = 200
    """Rows evaluated of each test set, drawn with the seed when there are more."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 32

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
