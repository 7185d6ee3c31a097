"""Engines are made here, of the kind that the operator chose."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tunesmith.engine.precision import Choice
from tunesmith.jobs.settings import EngineSettings
from tunesmith.models.base import Base
from tunesmith.serving.interface import BaseEngine

KEY = "TUNESMITH_VLLM_KEY"
"""Environment variable with the key of a vLLM server at a URL: no file of ours holds it."""


def make_engine(base: Base, choice: Choice, settings: EngineSettings) -> BaseEngine:
    """An engine that serves this base.

    Raises:
        UsageError: vLLM is not installed, or the server at the URL serves another base. VllmError: it does not start.
    """
    from tunesmith.models.load import tokenizer_of

    dtype, created = str(choice.dtype).removeprefix("torch."), int(time.time())
    if settings.type == "vllm":
        from tunesmith.serving.vllm import VllmEngine, VllmOptions

        options = VllmOptions(url=settings.url, key=os.environ.get(KEY) or None, max_loras=settings.max_loras,
                              adapters=Path(settings.adapters) if settings.adapters else None,
                              max_cpu_loras=settings.max_cpu_loras, max_lora_rank=settings.max_lora_rank,
                              arguments=tuple(settings.arguments))
        return VllmEngine(base, tokenizer_of(base), dtype, created, options)
    from tunesmith.serving.engine import Engine

    cache = settings.cache_megabytes and settings.cache_megabytes << 20
    return Engine(base, tokenizer_of(base), dtype, choice.device, created, adapter_bytes=settings.adapters_megabytes << 20,
                  cache_bytes=cache, waiting_most=settings.waiting)
