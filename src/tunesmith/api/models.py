"""`/v1/models`: what a caller may ask for by name."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from tunesmith.api.caller import Caller, may
from tunesmith.api.page import listed
from tunesmith.api.service import Service, service_of

router = APIRouter()


@router.get("/v1/models")
def models(caller: Caller = Depends(may("infer")), service: Service = Depends(service_of)) -> dict:
    return listed(service.engines.named(caller.project_id))


@router.get("/v1/models/{name:path}")
def model(name: str, caller: Caller = Depends(may("infer")), service: Service = Depends(service_of)) -> dict:
    return service.engines.describe(name, caller.project_id)


@router.delete("/v1/models/{name:path}")
def delete(name: str, caller: Caller = Depends(may("train")), service: Service = Depends(service_of)) -> dict:
    """Fine-tuned models of the caller's project only."""
    service.engines.forget(name, caller.project_id)
    return {"id": name, "object": "model", "deleted": True}
