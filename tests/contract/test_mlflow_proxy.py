"""The proxy of the fault suite, as a process of its own: what a client and the server see in each mode."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BATCH = "/api/2.0/mlflow/runs/log-batch"


class Upstream(BaseHTTPRequestHandler):
    """Answers with what it was sent, and keeps it."""

    heard: list[tuple[str, str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append((self.path, self.headers["Authorization"] or "", json.loads(body)))
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def upstream() -> Iterator[str]:
    Upstream.heard = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def post(url: str, content: object) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", "Authorization": "Basic x"}
    request = urllib.request.Request(url, json.dumps(content).encode(), headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_each_mode_does_what_it_says(upstream: str, tmp_path: Path) -> None:
    mode = tmp_path / "mode"
    command = [sys.executable, "-m", "tests.faults.mlflow_proxy", upstream, str(mode)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdin is not None
        assert proxy.stdout is not None
        url = proxy.stdout.readline().strip()
        batch = {"run_id": "r", "metrics": [1, 2, 3, 4, 5], "tags": ["t"]}

        assert post(f"{url}/any?a=b", {"x": 1}) == (201, {"x": 1})
        assert Upstream.heard == [("/any?a=b", "Basic x", {"x": 1})]

        for fault in ("error500", "refuse"):
            mode.write_text(fault, encoding="utf-8")
            if fault == "error500":
                assert post(url + BATCH, batch)[0] == 500
            else:
                with pytest.raises((http.client.RemoteDisconnected, urllib.error.URLError, ConnectionError)):
                    post(url + BATCH, batch)
        assert len(Upstream.heard) == 1, "the server heard nothing of these"

        mode.write_text("half\n", encoding="utf-8")
        assert post(url + BATCH, batch)[0] == 500
        assert Upstream.heard[-1] == (BATCH, "Basic x", {**batch, "metrics": [1, 2]})
        assert post(url + BATCH, {"tags": ["t"]})[0] == 201, "there is no half of none"

        mode.write_text("hang:0.5", encoding="utf-8")
        begun = time.monotonic()
        assert post(url + BATCH, batch) == (201, batch)
        assert time.monotonic() - begun >= 0.5
        assert Upstream.heard[-1][2] == batch

        mode.unlink()
        assert post(url + BATCH, batch) == (201, batch)
        proxy.stdin.close()
        assert proxy.wait(10) == 0
