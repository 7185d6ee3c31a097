"""What requests may carry. Fields that change nothing here are accepted and ignored, as OpenAI's own server does;
fields that would change the answer and are not supported yet are an error, never silently dropped."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Stop = str | Annotated[list[str], Field(max_length=4)] | None
NOT_YET = {"tools": None, "tool_choice": ("none", "auto"), "functions": None, "logprobs": (False, 0), "logit_bias": ({},),
           "response_format": ({"type": "text"},), "frequency_penalty": (0,), "presence_penalty": (0,), "echo": (False,),
           "best_of": (1,), "suffix": ("",), "audio": None, "top_logprobs": (0,)}
"""Fields that are refused, with the values at which they say nothing."""


class ApiModel(BaseModel):
    model_config = ConfigDict(extra="allow")


class StreamOptions(ApiModel):
    include_usage: bool = False


class Sampling(ApiModel):
    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    seed: int | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self):
        for name, value in (self.model_extra or {}).items():
            if name in NOT_YET and value is not None and value not in (NOT_YET[name] or ()):
                raise ValueError(f"`{name}` is not supported by this server")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(s for s in given if s)


class ChatMessage(ApiModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None

    @field_validator("content")
    @classmethod
    def _text_only(cls, value):
        if isinstance(value, list):
            if any(p.get("type") != "text" or not isinstance(p.get("text"), str) for p in value):
                raise ValueError("content parts other than text are not supported by this server")
            return "".join(p["text"] for p in value)
        return value

    def as_message(self) -> dict[str, str]:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content or ""}


class ChatRequest(Sampling):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class CompletionRequest(Sampling):
    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
