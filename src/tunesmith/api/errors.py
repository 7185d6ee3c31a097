"""Every error in OpenAI's shape: `{"error": {message, type, param, code}}`, with a status that its clients do not retry
unless another try may help."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tunesmith.api.schemas import explain
from tunesmith.errors import NotFoundError, TunesmithError, UsageError


class BadParameter(UsageError):
    """A request that cannot be answered because of one of its parameters: 400, or another status."""

    def __init__(self, what: str, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(what)
        self.param, self.code, self.status = param, code, status


def not_found(what: str, id: str, param: str | None = None) -> BadParameter:
    """As OpenAI says it of files and jobs. Of what another project has, it says the same."""
    return BadParameter(f"No such {what}: {id}", param, "not_found", 404)


def error_body(message: str, code: str | None = None, param: str | None = None, kind: str = "invalid_request_error") -> dict:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def words(error: TunesmithError) -> str:
    return f"{error.what} ({error.why})" if error.why else error.what


def handle_errors(app: FastAPI) -> None:

    @app.exception_handler(NotFoundError)
    async def model_not_found(_request, error: NotFoundError):
        return JSONResponse(error_body(error.what, "model_not_found" if "model" in error.what else "not_found"), 404)

    @app.exception_handler(TunesmithError)
    async def refused(_request, error: TunesmithError):
        if isinstance(error, BadParameter):
            return JSONResponse(error_body(words(error), error.code, error.param), error.status)
        if error.exit_code != 2:
            return JSONResponse(error_body(words(error), kind="server_error"), 500)
        return JSONResponse(error_body(words(error)), 400)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request, error: RequestValidationError):
        return JSONResponse(error_body(*explain(error.errors())), 400)

    @app.exception_handler(HTTPException)
    async def http(_request, error: HTTPException):
        return JSONResponse(error_body(str(error.detail)), error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_request, error: Exception):
        return JSONResponse(error_body(f"{type(error).__name__}: {error}", kind="server_error"), 500)
