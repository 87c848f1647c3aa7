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

from sweeps.api.problems import Refusal
from sweeps.records import Scope
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
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._rate, self._wrong = parse(rate), parse(wrong)

    def check(self, request: Request, credentials: HTTPAuthorizationCredentials | None, scope: Scope) -> Asker:
        """
        Raises:
            Refusal: 401, 403 or 429.
        """
        address = request.client.host if request.client else "?"
        if not self.required and credentials is None and PROXIED.isdisjoint(request.headers.keys()):
            self._count(self._rate, address)
            return Asker(f"somebody at {address}", lambda: True)
        if credentials is None:
            raise _unknown(
                "this server wants a token: send `Authorization: Bearer TOKEN`; `sweeps token create` makes one"
            )
        digest = sha256_of(credentials.credentials)
        # A good one is good whoever else guesses from its address: behind a proxy all clients have the same.
        token = self._store.good_token(digest)
        if token is None:
            self._count(self._wrong, f"wrong {address}")
            raise _unknown("this token is not known here, was revoked, or has expired")
        self._count(self._rate, f"token {token.name}")
        if scope == "operate" and token.scope != "operate":
            raise Refusal(403, "read-only", f"token {token.name!r} may only read: ask with one whose scope is operate")
        return Asker(f"token {token.name}", lambda: self._store.good_token(digest) is not None)

    def _count(self, rate: RateLimitItem, key: str) -> None:
        if not self._limiter.hit(rate, key):
            raise Refusal(
                429,
                "too-many-requests",
                f"more than {rate.amount} requests in {rate.get_expiry()} s: wait, and ask less often",
                {"Retry-After": "5"},
            )


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
