"""Who asks: the project whose things a request may see, and what its key allows.

Without keys there is one project, and everybody on this machine is its owner. So a request has to come from this machine, and
not from a page of somebody else's that a browser here shows: such a page can send requests to loopback, under a name that its
owner lets point there (DNS rebinding) or as a form. A browser says where a page is from, and foreign pages are refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from tunesmith.api.errors import BadParameter
from tunesmith.api.service import Service
from tunesmith.jobs import keys
from tunesmith.jobs.places import DEFAULT_PROJECT

Scope = Literal["admin", "train", "infer"]
SCOPES: tuple[Scope, ...] = keys.SCOPES
INCLUDED_IN = {"infer": {"infer", "train", "admin"}, "train": {"train", "admin"}, "admin": {"admin"}}
"""The scopes of a key that allow what needs a scope."""


@dataclass(frozen=True, slots=True)
class Caller:
    project_id: str
    key_id: str | None
    """None: nobody has to show a key (loopback, and no key was made)."""
    scopes: frozenset[Scope]


def authenticate(service: Service, headers: Headers) -> Caller:
    """Raises BadParameter: 401 for a key that is none, 403 for a page of somebody else's."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else ""
    with service.database.read() as connection:
        row = keys.holder(connection, key) if key else None
        if row is None and service.keyless and not keys.any_made(connection):
            _refuse_foreign_pages(headers)
            return Caller(DEFAULT_PROJECT, None, frozenset(SCOPES))
    if row is None:
        what = "Incorrect API key provided." if key else "You didn't provide an API key: send `Authorization: Bearer KEY`."
        raise BadParameter(f"{what} `tunesmith access key add` makes one.", None, "invalid_api_key", 401,
                           headers={"WWW-Authenticate": "Bearer"})
    if headers.get("openai-project") not in (None, "", row["project_id"]):
        raise BadParameter("OpenAI-Project header should match project for API key", None, "mismatched_project", 401,
                           headers={"WWW-Authenticate": "Bearer"})
    return Caller(row["project_id"], row["id"], frozenset(row["scopes"]))


async def who(request: Request, _documented: object = Depends(HTTPBearer(auto_error=False))) -> Caller:
    """The caller. The guard has asked already for what is below /v1."""
    if (caller := getattr(request.state, "caller", None)) is None:
        caller = await run_in_threadpool(authenticate, request.app.state.service, request.headers)
        request.state.caller = caller
    return caller


def may(scope: Scope) -> Callable[..., Caller]:
    """A dependency: the caller, if its key has this scope; `admin` has every scope, `train` that of `infer`."""

    async def check(caller: Caller = Depends(who)) -> Caller:
        if not caller.scopes & INCLUDED_IN[scope]:
            raise BadParameter(f"this key may not do that: it lacks the scope `{scope}`", None, "insufficient_scope", 403)
        return caller

    return check


def _refuse_foreign_pages(headers: Headers) -> None:
    host, origin = headers.get("host", ""), headers.get("origin")
    if not is_loopback(_name_in(host)):
        raise BadParameter(f"without API keys this server answers to names of this machine only, not to {host[:255]!r}",
                           None, "foreign_host", 403)
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise BadParameter("without API keys this server does not answer to other sites' pages", None, "foreign_origin", 403)
    if headers.get("sec-fetch-site") == "cross-site":
        raise BadParameter("without API keys this server does not answer to other sites' pages", None, "foreign_origin", 403)


def is_loopback(name: str) -> bool:
    """Whether an address, or `localhost`, is this machine for itself."""
    if name.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _name_in(host: str) -> str:
    """`[::1]:8321` -> `::1`"""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
