"""The application: routes of OpenAI's API over a running service. The official openai clients work unchanged."""

from __future__ import annotations

from fastapi import FastAPI

from tunesmith.api import (
    chat,
    checkpoints,
    eval_runs,
    evals,
    files,
    fine_tuning,
    graders,
    guard,
    health,
    models,
    observe,
    uploads,
)
from tunesmith.api.errors import handle_errors
from tunesmith.api.service import Service

ROUTERS = (chat.router, files.router, uploads.router, fine_tuning.router, checkpoints.router, models.router, graders.router,
           evals.router, eval_runs.router, health.router, observe.router)


def create_app(service: Service) -> FastAPI:
    app = FastAPI(title="Tunesmith", docs_url=None, redoc_url=None)
    app.state.service = service
    handle_errors(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(guard.Guard, service=service)
    app.add_middleware(observe.Observed, metrics=service.metrics)
    return app
