"""Who may ask: tokens, and how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from sweeps.api.gate import SAFE
from sweeps.api.problems import Refusal
from sweeps.api.sessions import Sessions, cookie_name
from sweeps.records import Scope, TokenRow
from sweeps.store import Store
from sweeps.tokens import sha256_of

PROXIED = {"forwarded", "x-forwarded-for", "via"}
"""What a proxy adds: whoever comes through one is not at this machine, though the proxy is."""

bearer = HTTPBearer(auto_error=False, description="`sweeps token create` makes one")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


@dataclass(frozen=True)
class Asker:
    """Whoever asks, once they may."""

    actor: str
    scope: Scope
    still_may: Callable[[], bool]
    """Asked again by what lasts: whether the token is good yet."""


class Access:
    """The rules of one server."""

    def __init__(self, store: Store, *, required: bool, rate: str = "1200/minute", wrong: str = "30/minute") -> None:
        """
        Args:
            required: whether a token is asked for.
            rate: how often one client may ask, as `limits` writes it.
            wrong: how often one address may show a token that is not good.

        Raises:
            ValueError: a rate that is none.
        """
        self._store, self.required = store, required
        self._sessions = Sessions()
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._rate, self._wrong = parse(rate), parse(wrong)

    def check(self, request: Request, credentials: HTTPAuthorizationCredentials | None, scope: Scope) -> Asker:
        """
        Raises:
            Refusal: 401, 403 or 429.
        """
        address = _address(request)
        if credentials is None and not self.asks_for_token(request):
            self._count(self._rate, address)
            return Asker(f"somebody at {address}", "operate", lambda: True)

        def shown() -> str | None:
            return sha256_of(credentials.credentials) if credentials else self._sessions.digest_of(_session(request))

        digest = shown()
        if digest is None:
            raise _unknown(
                "this server wants a token: send `Authorization: Bearer TOKEN`; `sweeps token create` makes one"
            )
        token = self._good(digest, address)
        if credentials is None:
            _check_own_page(request)
        self._count(self._rate, f"token {token.name}")
        if scope == "operate" and token.scope != "operate":
            raise Refusal(403, "read-only", f"token {token.name!r} may only read: ask with one whose scope is operate")
        return Asker(
            f"token {token.name}",
            token.scope,
            lambda: shown() is not None and self._store.good_token(digest) is not None,
        )

    def asks_for_token(self, request: Request) -> bool:
        """Whether whoever asks so, and shows nothing, must show a token."""
        return self.required or not PROXIED.isdisjoint(request.headers.keys())

    def begin_session(self, request: Request, token: str) -> str:
        """What a browser is to show from now on instead of the token.

        Raises:
            Refusal: the token is not good, or too many were not.
        """
        digest = sha256_of(token)
        good = self._good(digest, _address(request))
        self._count(self._rate, f"token {good.name}")
        return self._sessions.begin(digest)

    def end_session(self, request: Request) -> None:
        self._sessions.end(_session(request))

    def _good(self, digest: str, address: str) -> TokenRow:
        # A good one is good whoever else guesses from its address: behind a proxy all clients have the same.
        token = self._store.good_token(digest)
        if token is None:
            self._count(self._wrong, f"wrong {address}")
            raise _unknown("this token is not known here, was revoked, or has expired")
        return token

    def _count(self, rate: RateLimitItem, key: str) -> None:
        if not self._limiter.hit(rate, key):
            raise Refusal(
                429,
                "too-many-requests",
                f"more than {rate.amount} requests in {rate.get_expiry()} s: wait, and ask less often",
                {"Retry-After": "5"},
            )


def _session(request: Request) -> str:
    return request.cookies.get(cookie_name(request), "")


def _address(request: Request) -> str:
    return request.client.host if request.client else "?"


def _check_own_page(request: Request) -> None:
    """A cookie goes along with whatever a browser asks. The gate has refused pages of other sites that say so; here a
    browser has to say that it is ours.

    Raises:
        Refusal: a change, and neither `Origin` nor `Sec-Fetch-Site` says from where.
    """
    said = "origin" in request.headers or request.headers.get("sec-fetch-site") == "same-origin"
    if request.method not in SAFE and not said:
        raise Refusal(403, "other-site", "a change that is asked for with a cookie has to name its page (Origin)")


def _unknown(detail: str) -> Refusal:
    return Refusal(401, "not-authenticated", detail, {"WWW-Authenticate": "Bearer"})


# In threads: they ask the database.


def reader(request: Request, credentials: Credentials) -> Asker:
    access: Access = request.app.state.access
    return access.check(request, credentials, "read")


def operator(request: Request, credentials: Credentials) -> Asker:
    access: Access = request.app.state.access
    return access.check(request, credentials, "operate")


Reader = Annotated[Asker, Depends(reader)]
Operator = Annotated[Asker, Depends(operator)]
