"""Errors as problem documents (RFC 9457): one body on every route."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from model.corpus.annotations import CorpusError
from sweeps import errors
from sweeps.spec import SpecError
from tracking.server import ServerDidNotStart
from tracking.writer import TrackingRefused, TrackingUnavailable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer."""

RETRY_SECONDS = 2
LONGEST_DETAIL = 8_000

STATUS: Mapping[type[Exception], int] = {
    errors.SweepNotFound: 404,
    errors.TrialNotFound: 404,
    errors.SpecChanged: 409,
    errors.TrainerChanged: 409,
    errors.SweepExists: 409,
    errors.TrialExists: 409,
    errors.TrialTried: 409,
    errors.NoWarmStart: 409,
    errors.SweepBusy: 409,
    errors.NothingToDo: 409,
    errors.TrialsSpent: 409,
    errors.WrongState: 409,
    SpecError: 422,
    CorpusError: 422,
    errors.TrainerNotFound: 422,
    errors.DatabaseUnavailable: 503,
    errors.DatabaseOutdated: 503,
    TrackingUnavailable: 503,
    ServerDidNotStart: 503,
    TrackingRefused: 409,
    errors.SweepError: 400,
}
"""By the nearest class. What is not here is a fault of ours."""


class Problem(BaseModel):
    """What went wrong, with the value, the rule it broke and the way out."""

    type: str = Field(
        description="of the error, stable: /problems/sweep-not-found", examples=["/problems/sweep-not-found"]
    )
    title: str
    status: int
    detail: str = Field(description="for a person; a line for each fault")
    members: dict[str, Any] = Field({}, description="of the error: `paths` that differ, for one")


class Refusal(Exception):
    """A request that is not let in."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.code, self.headers = status, code, dict(headers or {})
        super().__init__(detail)


def problem(
    status: int,
    code: str,
    detail: str,
    members: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    body = {
        "type": f"/problems/{code}",
        "title": code.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail if len(detail) <= LONGEST_DETAIL else f"{detail[:LONGEST_DETAIL]}…",
        "members": dict(members or {}),
    }
    return _Problem(body, status, headers=dict(headers or {}))


class _Problem(JSONResponse):
    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        # With escapes: half of a surrogate pair, quoted from a request, is no UTF-8.
        return json.dumps(content, allow_nan=False).encode("ascii")


def install(app: FastAPI) -> None:
    """Have every error of the app become a problem."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Refusal, _refused)
    for kind in STATUS:
        app.add_exception_handler(kind, _expected)
    app.add_exception_handler(Exception, _unexpected)


def answer_to(request: Request, error: Exception) -> JSONResponse:
    """The problem document of an error that is expected."""
    if isinstance(error, Refusal):
        return _refused(request, error)
    if isinstance(error, RequestValidationError):
        return _invalid(request, error)
    return _expected(request, error)


def status_of(error: Exception) -> int:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def _expected(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, errors.DatabaseUnavailable | errors.DatabaseOutdated):
        return _without_database(error)
    status = status_of(error)
    plain = (str, int, float, list, tuple)
    members = {name: value for name, value in vars(error).items() if isinstance(value, plain)}
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else {}
    return problem(status, errors.code_of(type(error)), str(error), members, headers)


def _without_database(error: Exception) -> JSONResponse:
    """Where the database is and why it cannot be had is not for whoever asks, who may have no token."""
    log.warning("%s", error)
    detail = "the server cannot use its database just now: ask again in a while; its log has more"
    return problem(503, errors.code_of(type(error)), detail, headers={"Retry-After": str(RETRY_SECONDS)})


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return problem(error.status, error.code, str(error), headers=error.headers)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    lines = [f"{'.'.join(str(part)[:100] for part in fault['loc'])}: {fault['msg']}" for fault in faults[:20]]
    if len(faults) > len(lines):
        lines.append(f"and {len(faults) - len(lines)} more faults")
    return problem(422, "invalid-request", "\n".join(lines))


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    return problem(
        error.status_code, phrase.lower().replace(" ", "-"), str(error.detail or phrase), headers=error.headers
    )


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """Its text stays in the log: it may name what a client should not see."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    # With the headers: this answer is made outside of all middleware.
    return problem(500, "internal-error", "the server met a fault of its own; its log has more", headers=HEADERS)
