"""A base that is adapted by something PEFT does not do, with as much of PeftModel's face as the house uses."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from tunesmith.errors import AdapterError


class Adapted(nn.Module):
    """The base, its adapter's settings, and a switch."""

    adapted_by: str
    """Name of the module of `tunesmith.methods` whose verbs are for this model."""

    def __init__(self, base: nn.Module, config: dict):
        super().__init__()
        self.base = base
        self.enabled = True
        self._settings = config
        self._start: dict[str, int] | None = None

    @property
    def peft_config(self) -> dict[str, dict]:
        return {"default": self._settings}

    @property
    def config(self):
        return self.base.config

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def get_base_model(self) -> nn.Module:
        return self.base

    def set_adapter(self, name: str) -> None:
        if name not in self.peft_config:
            raise AdapterError(f"no adapter {name!r} here", why="this method has one adapter on a base")

    def forward(self, *args, **kwargs):
        return self.base(*args, **kwargs)

    def generate(self, *args, **kwargs):
        return self.base.generate(*args, **kwargs)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base answers as if it was never adapted."""
        before = self.enabled
        self._switch(False)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, on: bool) -> None:
        self.enabled = on

    def trained(self) -> dict[str, nn.Parameter]:
        """The adapter's tensors by the names they have in its file."""
        raise NotImplementedError

    def remember_start(self) -> None:
        """Take marks of the adapter as it is now: for methods whose start is not the absence of a change."""
        self._start = {name: _mark(p) for name, p in self.trained().items()}

    def unmoved(self) -> bool:
        """Every number is what it was at the start. False where the start is not known."""
        return self._start is not None and all(_mark(p) == self._start[name] for name, p in self.trained().items())


def _mark(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())


def alone(model: nn.Module, directory: Path) -> nn.Module:
    """The model, when it is a base. Raises AdapterError when it already carries an adapter."""
    if hasattr(model, "peft_config"):
        raise AdapterError("this adapter does not go beside another one", where=str(directory),
                           why="it changes what all layers of the base see", fix="load it on a base of its own")
    return model


@torch.no_grad()
def copy_into(trained: dict[str, nn.Parameter], tensors: dict[str, torch.Tensor]) -> None:
    """Set tensors in place. Raises ValueError when names or shapes differ."""
    from tunesmith.methods.files import same_tensors

    same_tensors(tensors, trained)
    for name, parameter in trained.items():
        parameter.copy_(tensors[name])
