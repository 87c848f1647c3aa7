"""The whole app."""

from __future__ import annotations

import threading
from collections.abc import Collection

from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from sweeps.api import problems
from sweeps.api.access import Access, reader
from sweeps.api.gate import Gate
from sweeps.api.live import Streams
from sweeps.api.metrics import Requests, SweepsCollector
from sweeps.api.pages.routes import router as pages
from sweeps.api.ready import Ready
from sweeps.api.remembered import Remembered
from sweeps.api.routes import router
from sweeps.service import SweepService

VERSION = "1"
MOST_PREPARING = 2
"""Corpora that are read at the same time."""


def make_app(service: SweepService, access: Access, hosts: Collection[str], tracking_uri: str | None = None) -> FastAPI:
    """
    Args:
        service: answers; its `actor` is replaced by whoever asks.
        hosts: names that the server is asked for by; see `Gate`.
        tracking_uri: the MLflow server that the pages link to; None: the one that a sweep says it is on.
    """
    # None of FastAPI's pages, which fetch their scripts from elsewhere.
    app = FastAPI(
        title="Sweeps", version=VERSION, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.state.service, app.state.access = service, access
    app.state.preparing, app.state.streams = threading.Semaphore(MOST_PREPARING), Streams()
    app.state.remembered, app.state.tracking = Remembered(), tracking_uri
    registry = CollectorRegistry()
    registry.register(SweepsCollector(service.store))
    problems.install(app)
    app.include_router(router)
    app.include_router(pages)

    @app.get("/v1/openapi.json", dependencies=[Depends(reader)], include_in_schema=False)
    def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        """The process answers, without a thread: those may all be waiting for the database. Asked without a token, as
        `readyz`: neither tells anything of the sweeps.
        """
        return {"status": "alive"}

    ready = Ready(service.store)

    @app.get("/readyz", include_in_schema=False)
    def readyz() -> dict[str, str]:
        """The database can be written."""
        ready.look()
        return {"status": "ready"}

    @app.get("/metrics", dependencies=[Depends(reader)], include_in_schema=False)
    def metrics() -> Response:
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    app.add_middleware(Requests, registry=registry)
    app.add_middleware(Gate, hosts=hosts)
    return app
