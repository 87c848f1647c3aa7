"""A sweep as it happens, as server-sent events."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable

from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from sweeps.api.problems import Refusal
from sweeps.errors import DatabaseUnavailable, SweepNotFound
from sweeps.interface import LOOK_SECONDS, Change
from sweeps.service import Watch

MOST_STREAMS = 100
"""Each looks at the database once a second."""
MOST_OF_ONE = 20
"""Of one token, or of one address where none is asked for: tabs of a browser."""
SEND_SECONDS = 20.0
"""A client that takes nothing for so long has gone, or fills our memory."""
ALIVE_LOOKS = 15
"""After so many a comment says that the connection lives, and the token is looked at again."""

_change = TypeAdapter(Change)


class Streams:
    """How many there are."""

    def __init__(self, most: int = MOST_STREAMS, most_of_one: int = MOST_OF_ONE) -> None:
        self._most, self._most_of_one, self._lock = most, most_of_one, threading.Lock()
        self._of: Counter[str] = Counter()

    def enter(self, asker: str) -> None:
        """
        Raises:
            Refusal: there are as many as there may be.
        """
        with self._lock:
            if self._of.total() >= self._most or self._of[asker] >= self._most_of_one:
                detail = "as many live connections are open as there may be: close one, or ask again in a while"
                raise Refusal(503, "busy", detail, {"Retry-After": "5"})
            self._of[asker] += 1

    def leave(self, asker: str) -> None:
        with self._lock:
            self._of[asker] -= 1
            self._of += Counter()  # drops those at zero


class Live(EventSourceResponse):
    """One of the streams. It leaves them however it ends, and be it that its client went before it began."""

    def __init__(self, streams: Streams, asker: str, watch: Watch, still_may: Callable[[], bool]) -> None:
        """
        Raises:
            Refusal: see `Streams`.
        """
        streams.enter(asker)
        self._streams, self._asker = streams, asker
        super().__init__(_events(watch, still_may))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, in_time(send))
        finally:
            self._streams.leave(self._asker)


def in_time(send: Send) -> Send:
    async def send_in_time(message: Message) -> None:
        async with asyncio.timeout(SEND_SECONDS):
            await send(message)

    return send_in_time


async def _events(watch: Watch, still_may: Callable[[], bool]) -> AsyncIterator[bytes]:
    looks = 0
    while True:
        try:
            changes = await run_in_threadpool(watch.look)
        except DatabaseUnavailable:  # the next look tries again
            changes = []
        except SweepNotFound:
            yield format_sse_event(data_str="{}", event="gone")
            return
        for change in changes:
            data = _change.dump_json(change).decode("utf-8")
            yield format_sse_event(data_str=data, event=change.kind, id=str(change.id))
        if watch.over:
            yield format_sse_event(data_str="{}", event="over")
            return
        looks += 1
        if looks % ALIVE_LOOKS == 0:
            if not await run_in_threadpool(_may, still_may):
                return
            yield format_sse_event(comment="there")
        await asyncio.sleep(LOOK_SECONDS)


def _may(still_may: Callable[[], bool]) -> bool:
    try:
        return still_may()
    except DatabaseUnavailable:  # nothing is told meanwhile; asked again later
        return True
