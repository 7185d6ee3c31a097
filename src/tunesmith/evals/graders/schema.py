"""What a grader may say: OpenAI's types, strictly. An unknown field is an error, as is a template that can never be filled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tunesmith.evals.graders import formula, template

UNSUPPORTED = "unsupported_parameter"
LONGEST_TEMPLATE = 200_000
MOST = 50
"""Graders of one eval, and parts of one `multi`."""


def _template(text: str) -> str:
    template.paths(text)
    return text


def flat(content: Any) -> str:
    """The text of a message's content: a text, a part {"type": "input_text", "text": ...}, or a list of both.

    Raises PydanticCustomError for parts that are no text, ValueError for what is none of these.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(flat(part) for part in content if not isinstance(part, list) or _nested())
    kind = content.get("type") if isinstance(content, dict) else None
    if kind in ("input_image", "input_audio", "image_url", "input_file"):
        raise PydanticCustomError(UNSUPPORTED, "{what} is not supported by this server",
                                  {"what": f"a content part of type {kind}", "param": "content"})
    if kind not in ("input_text", "output_text", "text") or not isinstance(content.get("text"), str):
        raise ValueError("content is a text, or parts with a `type` of input_text or output_text and a `text`")
    return content["text"]


def _nested() -> bool:
    raise ValueError("a list of parts in a list of parts")


def _content(content: Any) -> Any:
    text = flat(content)
    if len(text) > LONGEST_TEMPLATE:
        raise ValueError(f"more than {LONGEST_TEMPLATE} characters")
    _template(text)
    return content


Template = Annotated[str, Field(max_length=LONGEST_TEMPLATE), AfterValidator(_template)]
Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Message(Strict):
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[str | dict[str, Any] | list[str | dict[str, Any]], AfterValidator(_content)]
    type: Literal["message"] | None = None

    @property
    def text(self) -> str:
        return flat(self.content)

    @property
    def speaker(self) -> str:
        return "system" if self.role == "developer" else self.role


Messages = Annotated[list[Message], Field(min_length=1, max_length=256)]


class StringCheck(Strict):
    type: Literal["string_check"]
    name: Name
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"]
    """Equal; not equal; contains the reference; contains it in any case."""


class TextSimilarity(Strict):
    type: Literal["text_similarity"]
    name: Name
    input: Template
    reference: Template
    evaluation_metric: Literal["cosine", "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4",
                               "rouge_5", "rouge_l"]
    pass_threshold: Number | None = None


class Python(Strict):
    """Refused: code from a request is never executed."""

    type: Literal["python"]
    name: Name
    source: str
    image_tag: str | None = None
    pass_threshold: Number | None = None


class JudgeSampling(Strict):
    max_completions_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    reasoning_effort: str | None = None
    """Accepted and without effect: the models served here have no such setting."""


class ScoreModel(Strict):
    type: Literal["score_model"]
    name: Name
    model: Name
    input: Messages
    range: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    sampling_params: JudgeSampling | None = None
    pass_threshold: Number | None = None

    @field_validator("range")
    @classmethod
    def _rises(cls, value):
        if value is not None and not value[0] < value[1]:
            raise ValueError("the first number must be below the second")
        return value

    @property
    def bounds(self) -> tuple[float, float]:
        return (self.range[0], self.range[1]) if self.range else (0.0, 1.0)


class LabelModel(Strict):
    type: Literal["label_model"]
    name: Name
    model: Name
    input: Messages
    labels: Annotated[list[Name], Field(min_length=1, max_length=100)]
    passing_labels: Annotated[list[Name], Field(max_length=100)]

    @model_validator(mode="after")
    def _subset(self):
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels stand in it twice")
        if missing := set(self.passing_labels) - set(self.labels):
            raise ValueError(f"passing_labels must be among labels; {sorted(missing)[0]!r} is not")
        return self


Single = Annotated[StringCheck | TextSimilarity | Python | ScoreModel | LabelModel, Field(discriminator="type")]


class Multi(Strict):
    type: Literal["multi"]
    name: Name
    graders: Annotated[dict[Name, Single], Field(min_length=1, max_length=MOST)]
    """By the names that the formula uses. One grader alone, as the clients' types have it, goes by its own name."""
    calculate_output: Annotated[str, Field(min_length=1, max_length=formula.LONGEST)]
    pass_threshold: Number | None = None

    @field_validator("graders", mode="before")
    @classmethod
    def _alone(cls, value):
        if isinstance(value, dict) and isinstance(value.get("type"), str) and isinstance(value.get("name"), str):
            return {value["name"]: value}
        return value

    @model_validator(mode="after")
    def _adds_up(self):
        if missing := formula.names(self.calculate_output) - set(self.graders):
            raise ValueError(f"calculate_output names {sorted(missing)[0]!r}, which is not among graders")
        return self


Grader = Annotated[StringCheck | TextSimilarity | Python | ScoreModel | LabelModel | Multi, Field(discriminator="type")]
AnyGrader = StringCheck | TextSimilarity | Python | ScoreModel | LabelModel | Multi


def parts(grader: AnyGrader) -> Iterator[AnyGrader]:
    """The grader, and those inside it."""
    yield grader
    if isinstance(grader, Multi):
        yield from grader.graders.values()


def judges(grader: AnyGrader) -> set[str]:
    """Names of the models that it asks."""
    return {g.model for g in parts(grader) if isinstance(g, ScoreModel | LabelModel)}


def threshold(grader: AnyGrader) -> float:
    """From which score on a sample passes: what the grader says, else all of a check, half of a range, and half of 1.

        string_check, label_model   1
        score_model                 pass_threshold, else the middle of its range
        text_similarity, multi      pass_threshold, else 0.5
    """
    given = getattr(grader, "pass_threshold", None)
    if given is not None:
        return given
    if isinstance(grader, ScoreModel):
        return math.fsum(grader.bounds) / 2
    return 1.0 if isinstance(grader, StringCheck | LabelModel) else 0.5
