"""An HTTP proxy on loopback in front of a real MLflow server, with faults that are switched while it runs.

| mode | what a client sees |
|---|---|
| `pass` | the server |
| `refuse` | the connection is closed without an answer |
| `hang:SECONDS` | the request arrives, its answer comes so much later |
| `error500` | status 500; the server hears nothing |
| `half` | of a batch of metrics the first half arrives, and the answer is status 500; all else passes |

`python -m tests.faults.mlflow_proxy URL MODE_FILE` prints its own address and serves until its standard input closes;
the mode is what the file says at each request, `pass` where there is none.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

MODES = ("pass", "refuse", "hang", "error500", "half")
_OF_ONE_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}


class Proxy(ThreadingHTTPServer):
    """Serves while the context of `proxied` lasts. `mode` may be set at any time, and holds from the next request."""

    daemon_threads = True

    def __init__(self, upstream: str, mode: Callable[[], str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream)
        self.mode = "pass"
        self._read_mode = mode
        self.seen: Counter[str] = Counter()
        """Requests by the mode that they met."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def mode_now(self) -> tuple[str, float]:
        """The mode and its seconds.

        Raises:
            ValueError: there is no such mode.
        """
        name, _, seconds = (self._read_mode() if self._read_mode else self.mode).partition(":")
        if name not in MODES:
            raise ValueError(f"mode {name!r} is none of {', '.join(MODES)}")
        return name, float(seconds or 0)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away meanwhile is no error of ours; all else is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        mode, seconds = self.server.mode_now()
        self.server.seen[mode] += 1
        match mode:
            case "refuse":
                self.close_connection = True
            case "error500":
                self._send(500, b'{"error_code": "INTERNAL_ERROR", "message": "a fault on purpose"}')
            case "half" if self.path.endswith("/runs/log-batch") and (metrics := json.loads(body).get("metrics")):
                batch = {**json.loads(body), "metrics": metrics[: len(metrics) // 2]}
                self._forward(json.dumps(batch).encode())
                self._send(500, b'{"error_code": "INTERNAL_ERROR", "message": "half of it, on purpose"}')
            case _:
                status, headers, content = self._forward(body)
                time.sleep(seconds)
                self._send(status, content, headers)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(
            self.server.upstream.hostname or "", self.server.upstream.port, timeout=60
        )
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _OF_ONE_HOP}
        try:
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except ConnectionError:
            return 502, [], b"{}"
        finally:
            upstream.close()

    def _send(self, status: int, content: bytes, headers: list[tuple[str, str]] | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers or [("Content-Type", "application/json")]:
            if name.lower() not in _OF_ONE_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests say what went wrong."""


@contextmanager
def proxied(upstream: str, mode: Callable[[], str] | None = None) -> Iterator[Proxy]:
    """A running proxy.

    Args:
        upstream: `http://HOST:PORT` of the MLflow server.
        mode: asked at each request instead of the proxy's own `mode`.
    """
    with Proxy(upstream, mode) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), name="proxy")
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


def main(upstream: str, mode_file: Path) -> None:
    def mode() -> str:
        try:
            return mode_file.read_text(encoding="utf-8").strip() or "pass"
        except FileNotFoundError:
            return "pass"

    with proxied(upstream, mode) as proxy:
        print(proxy.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
