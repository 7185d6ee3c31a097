"""What requests about evals may carry: OpenAI's types, strictly."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from tunesmith.api.schemas import FIELDS, UNIONS, ResponseFormat
from tunesmith.errors import DataError
from tunesmith.evals.graders import schema as graders
from tunesmith.evals.graders.schema import MOST, Grader, Messages, Name, Strict
from tunesmith.evals.graders.template import read_path
from tunesmith.jobs.evaluation.rows import plain

Text = Annotated[str, Field(max_length=255, pattern=r"^[^\x00]*$")]
Key = Annotated[str, Field(max_length=64)]
Metadata = Annotated[dict[Key, Annotated[str, Field(max_length=512)]], Field(max_length=16)]


def _plain(value: Any) -> Any:
    try:
        plain(value, "it")
    except DataError as error:
        raise ValueError(error.what) from error
    return value


class Body(Strict):

    @model_validator(mode="before")
    @classmethod
    def _can_be_said_again(cls, value: Any) -> Any:
        return _plain(value)


class GraderRun(Body):
    grader: Grader
    model_sample: Annotated[str, Field(max_length=1_000_000)]
    item: dict[str, Any] | None = None


class GraderValidate(Body):
    grader: Grader


class CustomConfig(Strict):
    type: Literal["custom"]
    item_schema: dict[str, Any]
    include_sample_schema: bool = False


class LogsConfig(Strict):
    type: Literal["logs"]
    metadata: dict[str, Any] | None = None


class StoredCompletionsConfig(Strict):
    type: Literal["stored_completions"]
    metadata: dict[str, Any] | None = None


class EvalCreate(Body):
    name: Text | None = None
    metadata: Metadata | None = None
    data_source_config: Annotated[CustomConfig | LogsConfig | StoredCompletionsConfig, Field(discriminator="type")]
    testing_criteria: Annotated[list[Grader], Field(min_length=1, max_length=MOST)]


class EvalUpdate(Body):
    name: Text | None = None
    metadata: Metadata | None = None


class Row(Strict):
    item: dict[str, Any]
    sample: dict[str, Any] | None = None


class FileContent(Strict):
    type: Literal["file_content"]
    content: Annotated[list[Row], Field(min_length=1)]


class FileId(Strict):
    type: Literal["file_id"]
    id: Name


class StoredCompletions(Strict):
    """Refused: nothing is stored here."""

    type: Literal["stored_completions"]
    metadata: dict[str, Any] | None = None
    model: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    limit: int | None = None


class Responses(Strict):
    """Refused: nothing is stored here."""

    type: Literal["responses"]
    metadata: dict[str, Any] | None = None
    model: str | None = None
    instructions_search: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    reasoning_effort: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    users: list[str] | None = None
    tools: list[str] | None = None


class TemplateMessages(Strict):
    type: Literal["template"]
    template: Messages


def _item_path(text: str) -> str:
    if read_path(text)[0] != "item":
        raise ValueError("only what an item holds can be a prompt: item.NAME")
    return text


class ItemReference(Strict):
    type: Literal["item_reference"]
    item_reference: Annotated[str, Field(max_length=1000), AfterValidator(_item_path)]


InputMessages = Annotated[TemplateMessages | ItemReference, Field(discriminator="type")]


class CommonSampling(Strict):
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    reasoning_effort: str | None = None
    """Accepted and without effect: the models served here have no such setting."""
    tools: list[dict[str, Any]] | None = None


class Sampling(CommonSampling):
    response_format: ResponseFormat | None = None


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOf(Strict):
    format: TextFormat | None = None
    verbosity: str | None = None
    """Accepted and without effect."""


class ResponsesSampling(CommonSampling):
    text: TextOf | None = None


class Jsonl(Strict):
    type: Literal["jsonl"]
    source: Annotated[FileContent | FileId, Field(discriminator="type")]


class Completions(Strict):
    type: Literal["completions"]
    source: Annotated[FileContent | FileId | StoredCompletions, Field(discriminator="type")]
    model: Name | None = None
    input_messages: InputMessages | None = None
    sampling_params: Sampling | None = None


class ResponsesRun(Strict):
    type: Literal["responses"]
    source: Annotated[FileContent | FileId | Responses, Field(discriminator="type")]
    model: Name | None = None
    input_messages: InputMessages | None = None
    sampling_params: ResponsesSampling | None = None


class RunCreate(Body):
    name: Text | None = None
    metadata: Metadata | None = None
    data_source: Annotated[Jsonl | Completions | ResponsesRun, Field(discriminator="type")]


for _model in (GraderRun, GraderValidate, CustomConfig, LogsConfig, EvalCreate, EvalUpdate, Row, FileContent, FileId, Responses,
               StoredCompletions, TemplateMessages, ItemReference, Sampling, ResponsesSampling, Completions, RunCreate, TextOf,
               graders.StringCheck, graders.TextSimilarity, graders.Python, graders.ScoreModel, graders.LabelModel,
               graders.Multi, graders.Message, graders.JudgeSampling):
    FIELDS.update(_model.model_fields)
FIELDS.update(("eval_id", "run_id", "item_id", "after", "limit", "order", "order_by", "status"))
UNIONS.update(("grader", "testing_criteria", "data_source_config", "data_source", "source", "input_messages"))
