"""`/healthz`: the process answers, and how busy it is."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from tunesmith.api.service import Service, service_of

router = APIRouter()


@router.get("/healthz")
async def healthz(service: Service = Depends(service_of)) -> dict:
    return {"status": "ok", **service.engines.state}
