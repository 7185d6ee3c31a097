"""What requests may carry, field by field (docs/chat.md). A field that changes nothing here is accepted and ignored, as at
OpenAI; one that would change the answer and cannot be done is an error, and so is one that nobody knows."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WrapValidator, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tunesmith.data.messages import Bad, read_messages

MAX_TOP = 20
"""Likely tokens that can be asked for beside each one, as in OpenAI's chat."""
MAX_CHOICES = 128
UNSUPPORTED, UNKNOWN = "unsupported_parameter", "unknown_parameter"
IGNORED = {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
           "prompt_cache_options", "reasoning_effort", "verbosity", "moderation", "prediction"}
"""Of OpenAI's: where an answer is kept, billed, routed or cached, and how long another model may think."""
HARMLESS: dict[str, tuple] = {"modalities": (["text"],), "audio": (), "web_search_options": (), "suffix": ("",)}
"""What is refused, but for values that say nothing."""
MESSAGE_KEYS = {"refusal", "annotations", "audio", "weight", "reasoning_content"}
"""What answers and rows of training data carry beside a message, ignored."""

Stop = str | Annotated[list[str], Field(max_length=4)] | None
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class ApiModel(BaseModel):
    model_config = ConfigDict(extra="allow")


class Known(ApiModel):
    """No field that is not declared, or ignored on purpose."""

    @model_validator(mode="after")
    def _nothing_unknown(self):
        for name, value in (self.model_extra or {}).items():
            if name in HARMLESS:
                if value is not None and value not in HARMLESS[name]:
                    raise _unsupported(f"`{name}`", name)
            elif name not in IGNORED:
                raise PydanticCustomError(UNKNOWN, "Unknown parameter: '{param}'.", {"param": name})
        return self


class StreamOptions(ApiModel):
    include_usage: bool = False


class Sampling(Known):
    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Bias] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    ignore_eos: bool | None = None
    adapters: Annotated[dict[Annotated[str, Field(max_length=255)], Annotated[float, Field(ge=-8, le=8)]],
                        Field(max_length=8)] | None = None
    """Adapters that answer together, each with its weight, on the base that `model` names. Ours, not OpenAI's."""

    @model_validator(mode="before")
    @classmethod
    def _text_is_text(cls, value):
        try:
            if isinstance(value, dict):
                json.dumps(value, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise PydanticCustomError(UNSUPPORTED, "the request holds half of a surrogate pair, which is no character, or is "
                                      "nested too deep", {"param": None}) from error
        return value

    @model_validator(mode="after")
    def _options_of_a_stream(self):
        if self.stream_options and not self.stream:
            raise _refused("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
        return self

    @property
    def scored(self) -> int | None:
        """How many likely tokens to name beside each, None for no log-probabilities at all."""
        return None

    @property
    def echoed(self) -> bool:
        return False

    @property
    def copies(self) -> int:
        """Answers to be made of each prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(s for s in given if s)


class ChatMessage(ApiModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None

    @field_validator("content")
    @classmethod
    def _text_only(cls, value):
        if isinstance(value, list):
            texts = [p.get(p["type"]) if p.get("type") in ("text", "refusal") else None for p in value]
            if any(not isinstance(t, str) for t in texts):
                raise _unsupported("a content part other than text", "messages")
            return "".join(texts)
        return value

    @model_validator(mode="after")
    def _says_something(self):
        if unknown := next((k for k in self.model_extra or {} if k not in MESSAGE_KEYS), None):
            raise _refused("Unknown parameter", field=unknown, code=UNKNOWN)
        refusal = (self.model_extra or {}).get("refusal")
        if self.content is None and self.role == "assistant" and isinstance(refusal, str):
            self.content = refusal
        if self.content is None and not (self.tool_calls or self.function_call):
            raise _refused("text belongs here", field="content", code=None if "content" in self.model_fields_set else "missing")
        if self.tool_calls or self.function_call:
            self._read()
        return self

    def as_message(self) -> dict[str, Any]:
        """As rows of training data hold it, so that the template writes what it wrote in training."""
        if self.tool_calls or self.function_call:
            return self._read()
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        names = {k: v for k in ("name", "tool_call_id") if (v := getattr(self, k)) is not None}
        return {"role": role, "content": self.content or "", **names}

    def _read(self) -> dict[str, Any]:
        given = {k: v for k in ("role", "content", "name", "tool_call_id", "tool_calls", "function_call")
                 if (v := getattr(self, k)) is not None}
        try:
            return read_messages({"m": [given]}, "m", {})[0]
        except Bad as error:
            field, message, _ = error.args
            raise _refused(message, field=field.removeprefix("m[0]").lstrip(".")) from error


class FunctionOf(ApiModel):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolOf(ApiModel):
    type: Literal["function"]
    function: FunctionOf


def _as_given(value, validate):
    """What was sent, once it is known to be right: templates write the keys of a tool in the order in which they came."""
    validate(value)
    return value


class JsonSchema(ApiModel):
    name: Name
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(ApiModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _with_its_schema(self):
        if self.type == "json_schema" and self.json_schema is None:
            raise _refused("Field required", field="json_schema", code="missing")
        return self

    @property
    def schema_of_answers(self) -> dict | None:
        """None: any text."""
        if self.type == "text":
            return None
        given = self.json_schema.schema_ if self.json_schema else None
        return {"type": "object"} if given is None else given


class ChatRequest(Sampling):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Annotated[ToolOf, WrapValidator(_as_given)]], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Annotated[FunctionOf, WrapValidator(_as_given)]], Field(max_length=128)] | None = None
    function_call: Literal["none", "auto"] | dict[str, Any] | None = None

    @model_validator(mode="after")
    def _together(self):
        if self.top_logprobs and not self.logprobs:
            raise _unsupported("`top_logprobs` without `logprobs: true`", "top_logprobs")
        if self.tools and self.functions:
            raise _refused("give tools alone: `functions` is their older name", "functions")
        return self

    @property
    def scored(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampling):
    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    """0 only with echo: then nothing is generated, and the prompt alone can be scored."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    """OpenAI takes up to 5."""
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None

    @model_validator(mode="after")
    def _best_of_what(self):
        if self.best_of and self.best_of < (self.n or 1):
            raise _refused("best_of must be at least n", "best_of")
        if self.best_of and self.best_of > 1 and self.stream:
            raise _refused("best_of cannot be streamed: the best is known at the end", "best_of")
        return self

    @property
    def scored(self) -> int | None:
        return 0 if self.logprobs is None and self.copies > (self.n or 1) else self.logprobs

    @property
    def copies(self) -> int:
        return max(self.best_of or 1, self.n or 1)

    @property
    def echoed(self) -> bool:
        return bool(self.echo)


FIELDS = {"schema", *ChatRequest.model_fields, *CompletionRequest.model_fields, *ChatMessage.model_fields,
          *StreamOptions.model_fields, *FunctionOf.model_fields, *ToolOf.model_fields, *ResponseFormat.model_fields}
"""Names that an error may give as its `param`."""
UNIONS: set[str] = set()
"""Fields whose value is one of several kinds: in the place of an error the kind follows, which is no field."""


def explain(errors: list[dict]) -> tuple[str, str | None, str | None]:
    """(message, code, param) of a request that does not validate, as OpenAI words them: `messages[0].role`."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"the request body is not JSON: {first['ctx']['error']}", None, None
    if first["type"] in (UNSUPPORTED, UNKNOWN):
        return first["msg"], first["ctx"].get("code", first["type"]), first["ctx"]["param"]
    if first["type"] == REFUSED:
        return _explain_refused(first)
    param = _param(first["loc"])
    if first["type"] == "extra_forbidden" and isinstance(name := first["loc"][-1], str):
        near = get_close_matches(name, FIELDS, 1)
        param = f"{param}.{name}" if param and param.split(".")[-1] != name else name
        return f"Unknown parameter: '{param}'.{f' Did you mean {near[0]!r}?' if near else ''}", "unknown_parameter", param
    if param is None:
        return "the request body must be a JSON object, sent as application/json", None, None
    # A value that fits no member of a union is reported once a member.
    tried = dict.fromkeys(e["msg"].removeprefix("Value error, ") for e in errors if _param(e["loc"]) == param)
    return f"{param}: {'; or '.join(tried)}", "missing_required_parameter" if first["type"] == "missing" else None, param


REFUSED = "refused"


def _unsupported(what: str, param: str) -> PydanticCustomError:
    return PydanticCustomError(UNSUPPORTED, "{what} is not supported by this server", {"what": what, "param": param})


def _refused(message: str, param: str = "", *, field: str = "", code: str | None = None) -> PydanticCustomError:
    """Of a parameter, or of a field of the object that is validated."""
    return PydanticCustomError(REFUSED, "{message}", {"message": message, "param": param, "field": field, "code": code})


def _explain_refused(error: dict) -> tuple[str, str | None, str | None]:
    about = error["ctx"]
    if about["param"]:
        return error["msg"], about["code"], about["param"]
    param = ".".join(p for p in (_param(error["loc"]), about["field"]) if p)
    if about["code"] == "missing":
        return f"{param}: Field required", "missing_required_parameter", param
    if about["code"] == UNKNOWN:
        return f"Unknown parameter: '{param}'.", UNKNOWN, param
    return f"{param}: {error['msg']}", about["code"], param


def _param(location: tuple) -> str | None:
    """The fields on the way to an error. What is not a field (a position in the text, the member of a union) ends it."""
    path, kind_next = "", False
    for part in location[1:]:
        if isinstance(part, int) and path:
            path += f"[{part}]"
        elif kind_next:
            kind_next = False
        elif part in FIELDS:
            path += f".{part}" if path else part
            kind_next = part in UNIONS
        else:
            break
    return path or None
