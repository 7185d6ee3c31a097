"""What requests may carry. Fields that change nothing here are accepted and ignored, as OpenAI's own server does;
fields that would change the answer and are not supported yet are an error, never silently dropped."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

Stop = str | Annotated[list[str], Field(max_length=4)] | None
NOT_YET: dict[str, tuple] = {
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "logit_bias": ({},),
    "response_format": ({"type": "text"},), "frequency_penalty": (0,), "presence_penalty": (0,), "echo": (False,),
    "best_of": (1,), "suffix": ("",), "audio": (), "top_k": (-1, 0), "min_p": (0,), "repetition_penalty": (1,)}
"""Fields that are refused, with the values at which they say nothing."""
UNSUPPORTED = "unsupported_parameter"
MAX_TOP = 20
"""Likely tokens that can be asked for beside each one, as in OpenAI's chat."""


class ApiModel(BaseModel):
    model_config = ConfigDict(extra="allow")


class StreamOptions(ApiModel):
    include_usage: bool = False


class Sampling(ApiModel):
    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def scored(self) -> int | None:
        """How many likely tokens to name beside each, None for no log-probabilities at all."""
        return None

    @property
    def echoed(self) -> bool:
        return False

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self):
        for name, value in (self.model_extra or {}).items():
            if name in NOT_YET and value is not None and value not in NOT_YET[name]:
                raise _unsupported(f"`{name}`", name)
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(s for s in given if s)


class ChatMessage(ApiModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]]

    @model_validator(mode="before")
    @classmethod
    def _no_calls(cls, value):
        if isinstance(value, dict) and (value.get("tool_calls") or value.get("function_call")):
            raise _unsupported("`tool_calls` in a message", "messages")
        return value

    @field_validator("content")
    @classmethod
    def _text_only(cls, value):
        if isinstance(value, list):
            if any(p.get("type") != "text" or not isinstance(p.get("text"), str) for p in value):
                raise _unsupported("a content part other than text", "messages")
            return "".join(p["text"] for p in value)
        return value

    def as_message(self) -> dict[str, str]:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class ChatRequest(Sampling):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None

    @model_validator(mode="after")
    def _top_of_something(self):
        if self.top_logprobs and not self.logprobs:
            raise _unsupported("`top_logprobs` without `logprobs: true`", "top_logprobs")
        return self

    @property
    def scored(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampling):
    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    """0 only with echo: then nothing is generated, and the prompt alone can be scored."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    echo: bool | None = None

    @property
    def scored(self) -> int | None:
        return self.logprobs

    @property
    def echoed(self) -> bool:
        return bool(self.echo)


FIELDS = {*ChatRequest.model_fields, *CompletionRequest.model_fields, *ChatMessage.model_fields, *StreamOptions.model_fields}
"""Names that an error may give as its `param`."""
UNIONS: set[str] = set()
"""Fields whose value is one of several kinds: in the place of an error the kind follows, which is no field."""


def explain(errors: list[dict]) -> tuple[str, str | None, str | None]:
    """(message, code, param) of a request that does not validate, as OpenAI words them: `messages[0].role`."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"the request body is not JSON: {first['ctx']['error']}", None, None
    if first["type"] == UNSUPPORTED:
        return first["msg"], first["ctx"].get("code", UNSUPPORTED), first["ctx"]["param"]
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


def _unsupported(what: str, param: str) -> PydanticCustomError:
    return PydanticCustomError(UNSUPPORTED, "{what} is not supported by this server", {"what": what, "param": param})


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
