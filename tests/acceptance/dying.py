"""`python -m tests.acceptance.dying`: a server that SIGKILLs itself in the middle of a write, and is started again.

It prints its port. Each line of stdin is a plan, a JSON object; at the next line, or the end, it prints how often the
server of the plan before has died. The socket outlives the server, as one of a service manager would.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from sweeps.api.access import Access
from sweeps.api.app import make_app
from sweeps.policy import Policy
from sweeps.service import SweepService
from sweeps.settings import Home
from sweeps.store import Store


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        print(sock.getsockname()[1], flush=True)
        child, deaths, plan = None, 0, {}
        while True:
            if select.select([sys.stdin.fileno()], [], [], 0.02)[0]:
                line = sys.stdin.buffer.raw.readline()  # type: ignore[attr-defined]  # unbuffered: select sees the rest
                if child is not None:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    print(deaths, flush=True)
                if not line:
                    return
                plan, deaths = json.loads(line), 0
                child = _started(sock, plan, armed=True)
            elif child is not None and os.waitpid(child, os.WNOHANG)[0]:
                deaths += 1
                child = _started(sock, plan, armed=False)


def _started(sock: socket.socket, plan: dict[str, Any], *, armed: bool) -> int:
    """A fork of this process, which has no thread: it has all imports behind it."""
    child = os.fork()
    if child:
        return child
    try:
        if armed:
            _arm(plan["commit"], plan["when"])
        home = Home(Path(plan["home"]))
        service = SweepService(Store(home.database_url), home, "", Policy((Path(plan["root"]),)))
        app = make_app(service, Access(service.store, required=False), ["127.0.0.1"])
        uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[sock])
    finally:
        os._exit(1)


def _arm(commit: int, when: str) -> None:
    """Die just before (`before`) or just after (`after`) the commit with that number, from 1."""
    write, done = Store._write, 0

    @contextmanager
    def dying(store: Store) -> Iterator[Any]:
        nonlocal done
        with write(store) as connection:
            yield connection
            done += 1
            if (done, when) == (commit, "before"):
                os.kill(os.getpid(), signal.SIGKILL)
        if (done, when) == (commit, "after"):
            os.kill(os.getpid(), signal.SIGKILL)

    Store._write = dying  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
