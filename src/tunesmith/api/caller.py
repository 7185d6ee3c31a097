"""Who asks: the project whose things a request may see, and what its key allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fastapi import Depends, Request

from tunesmith.api.errors import BadParameter
from tunesmith.jobs.places import DEFAULT_PROJECT

Scope = Literal["admin", "train", "infer"]
SCOPES: tuple[Scope, ...] = ("admin", "train", "infer")


@dataclass(frozen=True, slots=True)
class Caller:
    project_id: str
    key_id: str | None
    """None: nobody has to show a key (loopback, and no key was made)."""
    scopes: frozenset[Scope]


def who(request: Request) -> Caller:
    return Caller(DEFAULT_PROJECT, None, frozenset(SCOPES))


def may(scope: Scope) -> Callable[..., Caller]:
    """A dependency: the caller, if its key has this scope; `admin` has every scope."""

    def check(caller: Caller = Depends(who)) -> Caller:
        if not caller.scopes & {scope, "admin"}:
            raise BadParameter(f"this key may not do that: it lacks the scope `{scope}`", None, "insufficient_scope", 403)
        return caller

    return check
