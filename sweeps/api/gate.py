"""What is looked at before a request is a request: which name it came for, from which page, and how large it is."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sweeps.api.problems import HEADERS, problem

MOST_BYTES = 1 << 20
LONGEST_PATH = 2_000
SAFE = ("GET", "HEAD", "OPTIONS")
BODY_SECONDS = 30.0


class Gate:
    """ASGI middleware. A page of another site must not speak for the person before it, be it by a name that leads here
    (Host), by a form (Origin) or by whatever else it loads (Sec-Fetch-Site); a body that is too large is not read to
    its end.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], most_bytes: int = MOST_BYTES) -> None:
        """
        Args:
            hosts: names that this server is asked for by, without ports; "*" for any.
        """
        self._app, self._hosts, self._most_bytes = app, frozenset(host.lower() for host in hosts), most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answered.setdefault(name, value)
            await send(message)

        async def refuse(status: int, code: str, detail: str) -> None:
            await problem(status, code, detail)(scope, receive, send_with_headers)

        if not self._is_ours(headers.get("host", "")):
            await refuse(421, "wrong-host", "this server is not asked for by that name: --allowed-host adds one")
            return
        if len(scope["raw_path"]) + len(scope["query_string"]) > LONGEST_PATH:
            await refuse(414, "path-too-long", f"a path may have {LONGEST_PATH} characters")
            return
        origin = headers.get("origin")
        if scope["method"] not in SAFE and origin is not None and _place(origin) != headers.get("host"):
            await refuse(403, "other-site", f"a page of {origin[:200]} may not ask for changes here")
            return
        if _from_another_site(scope["method"], headers):
            await refuse(403, "other-site", "a page of another site may link here, and ask for nothing else")
            return
        try:
            body = await self._body(headers, receive)
        except TimeoutError:
            await refuse(408, "too-slow", f"a request may take {BODY_SECONDS:.0f} s to arrive")
            return
        if body is None:
            await refuse(413, "too-large", f"a request may have {self._most_bytes} bytes")
            return
        replayed: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return replayed.pop() if replayed else await receive()

        await self._app(scope, receive_again, send_with_headers)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        return "*" in self._hosts or (name is not None and name in self._hosts)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole of it; None where it is too large."""
        announced = headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced[:20]) > self._most_bytes:
            return None
        body, more = bytearray(), True
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > self._most_bytes:
                    return None
        return bytes(body)


def _from_another_site(method: str, headers: Headers) -> bool:
    """Whether a browser says that another site's page is behind this, and not a person who follows a link. Other ports
    of this machine are other sites too. What is no browser says nothing.
    """
    if headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none"):
        return False
    return method not in SAFE or headers.get("sec-fetch-mode") != "navigate"


def _place(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
