"""The application: routes of OpenAI's API over a running service. The official openai clients work unchanged."""

from __future__ import annotations

from fastapi import FastAPI

from tunesmith.api import chat, checkpoints, fine_tuning, health, models
from tunesmith.api.errors import handle_errors
from tunesmith.api.service import Service

ROUTERS = (chat.router, fine_tuning.router, checkpoints.router, models.router, health.router)


def create_app(service: Service) -> FastAPI:
    app = FastAPI(title="Tunesmith", docs_url=None, redoc_url=None)
    app.state.service = service
    handle_errors(app)
    for router in ROUTERS:
        app.include_router(router)
    return app
