"""The pages' routes. What they show is all there without a script; the script keeps it up to date."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import parse_qs

import jinja2
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute

from sweeps.api import problems
from sweeps.api.access import Access, Reader
from sweeps.api.pages import assets
from sweeps.api.pages.shown import (
    CHANGED,
    EVENTS,
    MOST_DECISIONS,
    VERBS,
    Verb,
    changed,
    clock,
    lessons,
    listed,
    path_of,
    percent,
    short,
    shown,
)
from sweeps.api.problems import Refusal
from sweeps.api.remembered import Remembered
from sweeps.api.routes import After, Operating, Reading, SweepName
from sweeps.api.sessions import cookie_name
from sweeps.interface import PAGE
from sweeps.learned import HOW
from sweeps.report import measured
from sweeps.summary import trial_label

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # With no-referrer a browser would not say of our own forms that they are ours.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
FOR_GOOD = {"Cache-Control": "public, max-age=31536000, immutable"}
LOCAL = re.compile(r"/(?:sweeps/[^/?#\\\x00-\x20]{1,700})?")
"""Pages that a login may lead to."""

EXPECTED: tuple[type[Exception], ...] = (Refusal, RequestValidationError, *problems.STATUS)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PageRoute(APIRoute):
    """A route whose errors are pages as well."""

    def get_route_handler(self) -> Handler:
        answer = super().get_route_handler()

        async def answer_or_say(request: Request) -> Response:
            try:
                return await answer(request)
            except EXPECTED as error:
                return _problem(request, error)

        return answer_or_say


router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/")
def sweeps(request: Request, service: Reading, asker: Reader) -> Response:
    """Every sweep."""
    return _page(request, "sweeps.html", sweeps=listed(service), asker=asker)


@router.get("/sweeps/{name}")
def sweep(name: SweepName, request: Request, service: Reading, asker: Reader, after: After = -1) -> Response:
    """One sweep."""
    found = shown(service, name, asker.scope, request.app.state.tracking, after)
    return _page(request, "sweep.html", sweep=found, asker=asker)


@router.get("/sweeps/{name}/changes")
def changes(
    name: SweepName,
    request: Request,
    service: Reading,
    asker: Reader,
    trial: Annotated[list[int] | None, Query(max_length=CHANGED)] = None,
    after: After = 0,
) -> Response:
    """What of the page of a sweep may have changed: its head, the rows of those trials, events after one."""
    found = changed(service, name, asker.scope, request.app.state.tracking, trial or (), after)
    return _page(request, "changes.html", sweep=found, asker=asker)


@router.get("/sweeps/{name}/learned")
def learned(name: SweepName, request: Request, service: Reading, asker: Reader) -> Response:
    """What was learned of the parameters: over 100,000 epochs that takes seconds."""
    remembered: Remembered = request.app.state.remembered
    found = remembered.conclusions(service, name)
    return _page(
        request, "learned.html", name=name, lessons=lessons(found), how=HOW, forecast=found.forecast, asker=asker
    )


@router.get("/sweeps/{name}/decisions")
def decisions(name: SweepName, request: Request, service: Reading, asker: Reader) -> Response:
    """What condemned trials, where they are too many for the page of the sweep."""
    found = [(decision, measured(decision)) for decision in service.decisions(name)]
    return _page(request, "decisions.html", name=name, decisions=found, asker=asker)


@router.post("/sweeps/{name}/{verb}")
def ask(name: SweepName, verb: Annotated[Verb, Path()], service: Operating) -> Response:
    """Pause, resume, stop or cancel it."""
    getattr(service, verb)(name)
    return RedirectResponse(path_of(name), 303, HEADERS)


async def _form(request: Request) -> Mapping[str, str]:
    """The fields of a form."""
    try:
        fields = parse_qs((await request.body()).decode("utf-8"), max_num_fields=10)
    except ValueError as error:
        raise Refusal(422, "invalid-request", f"the form cannot be read: {error}") from None
    return {name: values[0] for name, values in fields.items()}


Form = Annotated[Mapping[str, str], Depends(_form)]


@router.get("/login")
def login_form(request: Request) -> Response:
    return _login(request, "/", "", 200)


@router.post("/login")
def login(request: Request, form: Form) -> Response:
    """Take a token, and give the browser a session instead of it."""
    access: Access = request.app.state.access
    to = form.get("to", "/")
    to = to if LOCAL.fullmatch(to) else "/"
    try:
        session = access.begin_session(request, form.get("token", "").strip())
    except Refusal as refused:
        return _login(request, to, str(refused), refused.status, refused.headers)
    answer = RedirectResponse(to, 303, HEADERS)
    # Behind a proxy that speaks TLS only the browser knows that it does.
    secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https:")
    answer.set_cookie(cookie_name(request), session, httponly=True, secure=secure, samesite="strict")
    return answer


@router.post("/logout")
def logout(request: Request) -> Response:
    access: Access = request.app.state.access
    access.end_session(request)
    answer = RedirectResponse("/login", 303, HEADERS)
    answer.delete_cookie(cookie_name(request), httponly=True, samesite="strict")
    return answer


@router.get("/assets/{version}/{name}")
async def asset(version: str, name: str) -> Response:
    """Style, scripts, picture. They are public: without a token they are needed to ask for one."""
    if version != assets.VERSION or name not in assets.CONTENT:
        raise Refusal(404, "not-found", "there is no such file: reload the page")
    return Response(assets.CONTENT[name], media_type=assets.type_of(name), headers={**HEADERS, **FOR_GOOD})


def _login(request: Request, to: str, said: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return _page(request, "login.html", status, headers, to=to, said=said, asker=None)


def _problem(request: Request, error: Exception) -> Response:
    """What went wrong, as a page; for want of a token, the form that asks for one."""
    told = problems.answer_to(request, error)
    said = json.loads(bytes(told.body))
    headers = {name: told.headers[name] for name in ("Retry-After", "WWW-Authenticate") if name in told.headers}
    if said["status"] == 401:
        to = request.url.path if request.method == "GET" and LOCAL.fullmatch(request.url.path) else "/"
        return _login(request, to, "", 401, headers)
    return _page(request, "problem.html", said["status"], headers, problem=said, asker=None)


def _page(
    request: Request, template: str, status: int = 200, headers: Mapping[str, str] | None = None, **names: Any
) -> Response:
    access: Access = request.app.state.access
    html = TEMPLATES.get_template(template).render(tokens=access.asks_for_token(request), **names)
    return HTMLResponse(html, status, {**HEADERS, **(headers or {})})


def _templates() -> jinja2.Environment:
    folder = files("sweeps.api.pages") / "templates"
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "short": short, "clock": clock, "path": path_of, "label": trial_label}
    environment.globals |= {
        "assets": f"/assets/{assets.VERSION}",
        "VERBS": VERBS,
        "EVENTS": EVENTS,
        "PAGE": PAGE,
        "MOST_DECISIONS": MOST_DECISIONS,
    }
    return environment


TEMPLATES = _templates()
