"""Every error in OpenAI's shape: `{"error": {message, type, param, code}}`, with a status that its clients do not retry
unless another try may help. What went wrong inside is said on stderr, and to the client only by which request it was."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tunesmith.api.schemas import explain
from tunesmith.errors import BusyError, NotFoundError, TunesmithError, UsageError

KEY = re.compile(r"sk-[A-Za-z0-9_-]{8,}")


class BadParameter(UsageError):
    """A request that cannot be answered because of one of its parameters: 400, or another status."""

    def __init__(self, what: str, param: str | None = None, code: str | None = None, status: int = 400, *,
                 kind: str = "invalid_request_error", headers: Mapping[str, str] | None = None):
        super().__init__(what)
        self.param, self.code, self.status, self.kind, self.headers = param, code, status, kind, headers


def not_found(what: str, id: str, param: str | None = None) -> BadParameter:
    """As OpenAI says it of files and jobs. Of what another project has, it says the same."""
    return BadParameter(f"No such {what}: {id}", param, "not_found", 404)


def error_body(message: str, code: str | None = None, param: str | None = None, kind: str = "invalid_request_error") -> dict:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def words(error: TunesmithError) -> str:
    """What a client is told. What failed inside is told without its reason, which may name what is nobody's business."""
    return f"{error.what} ({error.why})" if error.why and error.exit_code == 2 else error.what


def refusal(error: BadParameter) -> JSONResponse:
    return JSONResponse(error_body(words(error), error.code, error.param, error.kind), error.status, headers=error.headers)


def unexpected(request_id: str | None, error: BaseException) -> JSONResponse:
    """Tell stderr everything but keys, and the client which request it was and what we say of it, if that names no path."""
    what = error.what if isinstance(error, TunesmithError) and not isinstance(error, OSError) else \
        "The server had an error while processing your request"
    told = "".join(traceback.format_exception(error))
    sys.stderr.write(KEY.sub("sk-...", f"request {request_id} failed:\n{told}"))
    sys.stderr.flush()
    return JSONResponse(error_body(f"{what}. The server's log says more under {request_id}.", kind="server_error"),
                        500)


def handle_errors(app: FastAPI) -> None:

    @app.exception_handler(NotFoundError)
    async def model_not_found(_request, error: NotFoundError):
        return JSONResponse(error_body(error.what, "model_not_found" if "model" in error.what else "not_found"), 404)

    @app.exception_handler(BusyError)
    async def overloaded(_request, error: BusyError):
        return JSONResponse(error_body(f"{error.what}: {error.fix}", "overloaded", kind="server_error"), 503,
                            headers={"Retry-After": "1"})

    @app.exception_handler(TunesmithError)
    async def refused(request: Request, error: TunesmithError):
        if isinstance(error, BadParameter):
            return refusal(error)
        if error.exit_code != 2:
            return unexpected(getattr(request.state, "request_id", None), error)
        return JSONResponse(error_body(words(error)), 400)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request, error: RequestValidationError):
        return JSONResponse(error_body(*explain(error.errors())), 400)

    @app.exception_handler(HTTPException)
    async def http(_request, error: HTTPException):
        return JSONResponse(error_body(str(error.detail)), error.status_code, headers=error.headers)
