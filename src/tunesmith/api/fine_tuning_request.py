"""What `POST /v1/fine_tuning/jobs` may carry: OpenAI's fields, and `tunesmith` for sections of a recipe.

A field that is not known is refused with the nearest one that is: a hyperparameter with a typing error must not train.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tunesmith.api.schemas import FIELDS, UNSUPPORTED

Auto = Literal["auto"]
Id = Annotated[str, Field(min_length=1, max_length=255)]
DEEPEST = 32
KINDS = ("supervised", "dpo")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Hyperparameters(Strict):
    n_epochs: Auto | Annotated[int, Field(strict=True, ge=1, le=50)] = "auto"
    batch_size: Auto | Annotated[int, Field(strict=True, ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(strict=True, gt=0, le=1e6)] = "auto"


class PreferenceHyperparameters(Hyperparameters):
    beta: Auto | Annotated[float, Field(strict=True, gt=0, le=2)] = "auto"


class Supervised(Strict):
    hyperparameters: Hyperparameters | None = None


class Dpo(Strict):
    hyperparameters: PreferenceHyperparameters | None = None


class Method(Strict):
    type: Annotated[str, Field(max_length=64)]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _what_there_is(self):
        if self.type not in KINDS:
            raise refused("unsupported", f"The method {self.type!r} is not supported by this server, which has "
                          f"{' and '.join(KINDS)}", "method.type")
        if other := [k for k in (*KINDS, "reinforcement") if k != self.type and getattr(self, k) is not None]:
            raise refused("invalid_value", f"method.{other[0]} is given, and method.type is {self.type!r}",
                          f"method.{other[0]}")
        return self


class Wandb(Strict):
    project: Annotated[str, Field(min_length=1, max_length=128)]
    name: Annotated[str, Field(max_length=128)] | None = None
    entity: Annotated[str, Field(max_length=128)] | None = None
    tags: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=64)] | None = None


class Integration(Strict):
    type: Annotated[str, Field(max_length=64)]
    wandb: Wandb | None = None

    @model_validator(mode="after")
    def _only_wandb(self):
        if self.type != "wandb":
            raise refused("unsupported", f"The integration {self.type!r} is not supported by this server, which has wandb",
                          "integrations")
        if self.wandb is None:
            raise refused("missing_required_parameter", "Missing required parameter: integrations.wandb", "integrations.wandb")
        return self


class CreateJob(Strict):
    """`tunesmith`: sections of a recipe (method, train, data, eval, gates, objective), as `extra_body` of OpenAI's client."""

    model: Id
    training_file: Id
    validation_file: Id | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
                        Field(max_length=16)] | None = None
    integrations: Annotated[list[Integration], Field(max_length=5)] | None = None
    tunesmith: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _can_be_kept(cls, value):
        if what := unfit(value):
            raise refused("invalid_value", f"the request has {what}", None)
        return value

    def asked(self) -> dict[str, Any]:
        """The method with every hyperparameter, numbers or `auto`. `method` counts before the older `hyperparameters`."""
        kind = self.method.type if self.method else "supervised"
        given = (getattr(self.method, kind) and getattr(self.method, kind).hyperparameters) if self.method else \
            self.hyperparameters
        whole = given or (Hyperparameters() if kind == "supervised" else PreferenceHyperparameters())
        return {"type": kind, kind: {"hyperparameters": whole.model_dump(mode="json")}}


def unfit(value: Any) -> str | None:
    """What no database or file can keep of a value from JSON, or None."""
    level = [value]
    for _ in range(DEEPEST):
        inside: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inside += [*one, *one.values()]
            elif isinstance(one, list):
                inside += one
            elif isinstance(one, str) and ("\0" in one or not one.isascii() and _half(one)):
                return "text with a character that cannot be kept (NUL, or half of a surrogate pair)"
            elif isinstance(one, float) and not math.isfinite(one):
                return "a number that is not finite"
            elif isinstance(one, int) and not -(2**63) <= one < 2**63:
                return "a number of more than 64 bits"
        level = inside
    return f"objects and lists more than {DEEPEST} deep" if level else None


def refused(code: str, message: str, param: str | None) -> PydanticCustomError:
    return PydanticCustomError(UNSUPPORTED, "{message}", {"message": message, "param": param, "code": code})


def _half(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


FIELDS.update(*(m.model_fields for m in (CreateJob, Method, Supervised, PreferenceHyperparameters, Integration, Wandb)),
              ("limit", "after", "order", "project_id", "project_ids"))
