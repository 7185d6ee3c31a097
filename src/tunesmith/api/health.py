"""Is it alive (`/healthz`: restart it if not), and can it be sent requests (`/readyz`: send them elsewhere if not)."""

from __future__ import annotations

import sqlalchemy as sa
from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from tunesmith.api.service import Service, service_of

router = APIRouter()


@router.get("/healthz")
async def healthz(service: Service = Depends(service_of)) -> dict:
    """The process answers; how busy it is."""
    return {"status": "ok", **service.engines.state}


@router.get("/readyz")
def readyz(service: Service = Depends(service_of)) -> JSONResponse:
    """200 when everything that a request needs is there, else 503 with what is not."""
    checks = {"database": _answers(service), "generation": all(e.alive for e in service.engines.all),
              "queue": service.dispatcher is None or service.dispatcher.alive}
    ready = all(checks.values())
    return JSONResponse({"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503)


def _answers(service: Service) -> bool:
    try:
        with service.database.read() as connection:
            connection.execute(sa.select(1))
    except sa.exc.SQLAlchemyError:
        return False
    return True
