"""Sweeps over HTTP: `Client` asks a `sweeps serve` what `SweepService` answers, with the same values and errors.

from sweeps import Client

with Client("http://127.0.0.1:8765") as sweeps:
    sweeps.create(open("spec.yaml").read())
    sweeps.wait("phoenix")
    print(sweeps.best("phoenix"))
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import TypeAdapter, ValidationError

from sweeps.budget import IMPROVEMENT
from sweeps.errors import NotAllowed, ServerUnavailable, SweepError, SweepNotFound, TrialNotFound, revived
from sweeps.interface import MOST_BEYOND, PAGE, Best, Change, Created, Spec, Sweeps
from sweeps.records import ActionRow, Curve, DecisionRow, EpochRow, EventRow, SweepStatus, TrialRow
from sweeps.states import TrialState

if TYPE_CHECKING:
    from sweeps.forecast import Forecast
    from sweeps.summary import Conclusions

T = TypeVar("T")

TRIES = 5
"""Of a request that got no answer. Each can be made twice: the second changes nothing."""
PATIENCE_SECONDS = 300.0
"""How long whoever waits for a sweep waits for a server that is not there."""
FIRST_PAUSE_SECONDS = 0.3
"""Between two tries; doubled each time. Where the server says how long it wants, that, up to the longest."""
LONGEST_PAUSE_SECONDS = 10.0
AGAIN = (429, 502, 503, 504)
"""Answers after which it is worth asking again."""
SECONDS = 30.0
CREATE_SECONDS = 600.0
"""The server reads the corpus first."""
SILENCE_SECONDS = 60.0
"""A live connection that has not even said that it lives is made anew."""


def token_of_environment() -> str | None:
    """`SWEEPS_TOKEN`, else what the file that `SWEEPS_TOKEN_FILE` names holds.

    Raises:
        SweepError: that file cannot be read.
    """
    if token := os.environ.get("SWEEPS_TOKEN"):
        return token
    if file := os.environ.get("SWEEPS_TOKEN_FILE"):
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SweepError(f"SWEEPS_TOKEN_FILE: {file}: cannot be read ({error})") from None
    return None


class Client(Sweeps):
    """The sweeps of a server.

    Raises, from every call:
        NotAllowed: no token, one that is not good, or one that may only read.
        ServerUnavailable: it cannot be reached, or failed.
    """

    def __init__(self, server: str, token: str | None = None, *, seconds: float = SECONDS) -> None:
        """
        Args:
            server: its address, `http://HOST:PORT`.
            token: default: see `token_of_environment`.
            seconds: what an answer may take.

        Raises:
            SweepError: an address that is none.
        """
        try:
            parts = urlsplit(server)
            fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
        except ValueError:
            fine = False
        if not fine:
            shown = server.rpartition("@")[2]
            raise SweepError(f"server {shown!r}: write its address alone, http://127.0.0.1:8765 say")
        token = token or token_of_environment()
        if token is not None and not (token.isascii() and token.isprintable()):
            raise SweepError("the token has characters that none has: copy it again")
        self.server, self._seconds = server.rstrip("/"), seconds
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=f"{self.server}/v1", headers=headers, timeout=seconds)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create(
        self, spec: Spec, *, trials: int | None = None, trainer: str | None = None, force: bool = False
    ) -> Created:
        body = {"spec": spec, "trials": trials, "trainer": trainer, "force": force}
        return self._ask(Created, "POST", "/sweeps", body=body, seconds=max(CREATE_SECONDS, self._seconds))

    def sweeps(self) -> list[SweepStatus]:
        return self._ask(list[SweepStatus], "GET", "/sweeps")

    def sweep(self, name: str) -> SweepStatus:
        return self._ask(SweepStatus, "GET", _path(name))

    def trials(
        self, name: str, *, after: int = -1, limit: int = PAGE, state: TrialState | None = None
    ) -> list[TrialRow]:
        query = {"after": after, "limit": limit} | ({} if state is None else {"state": state.value})
        return self._ask(list[TrialRow], "GET", _path(name, "trials"), query)

    def trial(self, name: str, trial: str | int) -> TrialRow:
        return self._ask(TrialRow, "GET", _path(name, "trials", trial))

    def curve(self, name: str, trial: str | int) -> list[EpochRow]:
        return self._ask(list[EpochRow], "GET", _path(name, "trials", trial, "curve"))

    def curves(
        self,
        name: str,
        metrics: Sequence[str] = ("dev/wer",),
        *,
        after: int = -1,
        limit: int = PAGE,
        beyond: Mapping[int, int] | None = None,
    ) -> dict[int, Curve]:
        query = {"metric": list(metrics), "after": after, "limit": limit}
        if beyond is None:
            return self._ask(dict[int, Curve], "GET", _path(name, "curves"), query)
        known, found = [f"{number}:{epoch}" for number, epoch in beyond.items()], dict[int, Curve]()
        for start in range(0, max(len(known), 1), MOST_BEYOND):
            some = {**query, "beyond": known[start : start + MOST_BEYOND] or [""]}
            found |= self._ask(dict[int, Curve], "GET", _path(name, "curves"), some)
        return dict(sorted(found.items())[:limit])

    def latest(self, name: str, *, after: int = -1, limit: int = PAGE) -> dict[int, EpochRow]:
        return self._ask(dict[int, EpochRow], "GET", _path(name, "latest"), {"after": after, "limit": limit})

    def decisions(self, name: str) -> list[DecisionRow]:
        return self._ask(list[DecisionRow], "GET", _path(name, "decisions"))

    def best(self, name: str) -> Best | None:
        found: Best | None = self._ask(Best | None, "GET", _path(name, "best"))  # type: ignore[arg-type]
        return found

    def conclusions(self, name: str) -> Conclusions:
        from sweeps.summary import Conclusions

        return self._ask(Conclusions, "GET", _path(name, "conclusions"))

    def forecast(self, name: str, improvement: float = IMPROVEMENT) -> Forecast:
        from sweeps.forecast import Forecast

        return self._ask(Forecast, "GET", _path(name, "forecast"), {"improvement": improvement})

    def events(self, name: str, *, after: int = 0, limit: int = PAGE) -> list[EventRow]:
        return self._ask(list[EventRow], "GET", _path(name, "events"), {"after": after, "limit": limit})

    def pause(self, name: str) -> SweepStatus:
        return self._ask(SweepStatus, "POST", _path(name, "pause"))

    def resume(self, name: str, *, trials: int | None = None) -> SweepStatus:
        return self._ask(SweepStatus, "POST", _path(name, "resume"), body={"trials": trials})

    def stop(self, name: str) -> SweepStatus:
        return self._ask(SweepStatus, "POST", _path(name, "stop"))

    def cancel(self, name: str) -> SweepStatus:
        return self._ask(SweepStatus, "POST", _path(name, "cancel"))

    def enqueue(
        self, name: str, values: Mapping[str, Any], *, trial_name: str | None = None, repeat: bool = False
    ) -> TrialRow:
        body = {"values": dict(values), "name": trial_name} | ({"repeat": True} if repeat else {})
        return self._ask(TrialRow, "POST", _path(name, "trials"), body=body)

    def delete(self, name: str, *, keep_mlflow: bool = False, created_at: float | None = None) -> None:
        if created_at is None:
            created_at = self.sweep(name).sweep.created_at
        try:
            self._send("DELETE", _path(name), {"keep_mlflow": keep_mlflow, "created_at": created_at})
        except SweepNotFound:  # it was there: an earlier try has deleted it
            return

    def live(self, name: str, *, after: int | None = None) -> Iterator[Change]:
        """As `Sweeps.live`; a connection that breaks is made again, for `PATIENCE_SECONDS`, and nothing is missed."""
        tries, heard_at = 0, time.monotonic()
        while True:
            begun_at = time.monotonic()
            try:
                query = {} if after is None else {"after": after}
                timeout = httpx.Timeout(self._seconds, read=SILENCE_SECONDS)
                with self._http.stream("GET", _path(name, "live"), params=query, timeout=timeout) as answer:
                    if not answer.is_success:
                        answer.read()
                        failed, pause = _error(answer), _pause(answer, tries)
                        if answer.status_code not in AGAIN:
                            raise failed
                    else:
                        for kind, data in _server_sent(_lines(answer.iter_text())):
                            if kind == "over":
                                return
                            if kind == "gone":
                                raise SweepNotFound(name)
                            change = self._read(Change, data)
                            after, heard_at = change.id, time.monotonic()
                            yield change
                        failed, pause = ServerUnavailable(self.server, "it ends live connections"), _pause(None, tries)
            except httpx.TransportError as error:
                failed = ServerUnavailable(self.server, f"{type(error).__name__}: {error}")
                pause = _pause(None, tries)
            if time.monotonic() - heard_at > PATIENCE_SECONDS:
                raise failed
            tries = 0 if time.monotonic() - begun_at > LONGEST_PAUSE_SECONDS else tries + 1
            time.sleep(pause)

    def wait(self, name: str, timeout: float = float("inf")) -> SweepStatus:
        """As `Sweeps.wait`; a server that is started anew meanwhile is waited for, for `PATIENCE_SECONDS`."""
        deadline, heard_at = time.monotonic() + timeout, time.monotonic()
        while True:
            try:
                return super().wait(name, deadline - time.monotonic())
            except ServerUnavailable:
                now = time.monotonic()
                if now > deadline or now - heard_at > PATIENCE_SECONDS:
                    raise

    def actions(self, *, after: int = 0, limit: int = PAGE) -> list[ActionRow]:
        return self._ask(list[ActionRow], "GET", "/actions", {"after": after, "limit": limit})

    def _ask(
        self,
        kind: type[T],
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> T:
        return self._read(kind, self._send(method, path, query, body, seconds).content)

    def _read(self, kind: type[T], answer: str | bytes) -> T:
        try:
            found: T = _adapter(kind).validate_json(answer)
            return found
        except ValidationError as error:
            fault = error.errors()[0]
            why = f"an answer of another version? {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            raise ServerUnavailable(self.server, why) from None

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> httpx.Response:
        for attempt in range(TRIES):
            try:
                answer = self._http.request(method, path, params=query, json=body, timeout=seconds or self._seconds)
            except httpx.TransportError as fault:
                error: SweepError = ServerUnavailable(self.server, f"{type(fault).__name__}: {fault}")
                pause = _pause(None, attempt)
            except (httpx.InvalidURL, TypeError, ValueError) as fault:  # what JSON cannot say, a NaN for one
                raise SweepError(f"{path}: cannot be asked for: {fault}") from None
            else:
                if answer.is_success:
                    return answer
                error, pause = _error(answer), _pause(answer, attempt)
                if answer.status_code not in AGAIN:
                    raise error
            if attempt + 1 < TRIES:
                time.sleep(pause)
        raise error


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Making one takes milliseconds."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _pause(answer: httpx.Response | None, tries: int) -> float:
    """Seconds until the next try."""
    wanted = "" if answer is None else answer.headers.get("retry-after", "")
    ours = FIRST_PAUSE_SECONDS * 2.0**tries
    return min(max(float(wanted), ours), LONGEST_PAUSE_SECONDS) if wanted.isdecimal() else ours


def _path(name: str, *more: str | int) -> str:
    """
    Raises:
        SweepNotFound, TrialNotFound: a name that none has, and that would lead elsewhere in a path.
    """
    for part in (name, *more):
        if str(part) in ("", ".", "..") or "/" in str(part):
            raise SweepNotFound(name) if part is name else TrialNotFound(name, str(part))
    return "/".join(["/sweeps", *(quote(str(part), safe="") for part in (name, *more))])


def _error(answer: httpx.Response) -> SweepError:
    """The error that the server met, from its problem document (RFC 9457)."""
    try:
        problem = answer.json()
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        return ServerUnavailable(str(answer.url.copy_with(query=None)), f"HTTP {answer.status_code}")
    if answer.status_code in (401, 403):
        return NotAllowed(detail)
    kind = str(problem.get("type", "")).rpartition("/")[2]
    members = {key: tuple(v) if isinstance(v, list) else v for key, v in problem.get("members", {}).items()}
    return revived(kind, detail, members) or (
        ServerUnavailable(str(answer.url.copy_with(query=None)), detail)
        if answer.status_code >= 500
        else SweepError(detail)
    )


def _lines(texts: Iterator[str]) -> Iterator[str]:
    """Their lines. Not those of `str.splitlines`: a text within JSON may hold U+2028 as it is."""
    rest = ""
    for text in texts:
        *lines, rest = (rest + text).split("\n")
        yield from lines


def _server_sent(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Kind and data of each server-sent event."""
    kind, data = "message", list[str]()
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line == "":
            if data:
                yield kind, "\n".join(data)
            kind, data = "message", []
        elif field == "event":
            kind = value
        elif field == "data":
            data.append(value)
