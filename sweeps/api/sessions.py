"""Sessions of browsers: what a cookie stands for. They live in this process: one that is started anew asks again."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass

from fastapi import Request

from sweeps.tokens import sha256_of

SECONDS = 12 * 3600.0
"""A working day; the token itself may end sooner, and then its sessions have."""
MOST = 1_000


def cookie_name(request: Request) -> str:
    """With the port: cookies do not tell ports apart, and two servers of one machine must not log each other out."""
    return f"sweeps-{request.url.port or 'session'}"


@dataclass(frozen=True)
class _Session:
    digest: str
    """Of its token."""
    until: float


class Sessions:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by: dict[str, _Session] = {}  # by the digest of what the cookie holds, the oldest first

    def begin(self, digest: str) -> str:
        """What the cookie is to hold; the oldest session goes where there are too many."""
        session, now = secrets.token_urlsafe(32), time.monotonic()
        with self._lock:
            self._by = {key: each for key, each in self._by.items() if each.until > now}
            if len(self._by) >= MOST:
                del self._by[next(iter(self._by))]
            self._by[sha256_of(session)] = _Session(digest, now + SECONDS)
        return session

    def digest_of(self, session: str) -> str | None:
        """The digest of the token that it was begun with; None where it has ended, or never was."""
        with self._lock:
            found = self._by.get(sha256_of(session))
        return found.digest if found is not None and found.until > time.monotonic() else None

    def end(self, session: str) -> None:
        with self._lock:
            self._by.pop(sha256_of(session), None)
