"""The app of the service behind a real socket, in this process, and sweeps for it to tell of."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from sweeps.api.access import Access
from sweeps.api.app import make_app
from sweeps.policy import Policy
from sweeps.records import Claim, EpochRow
from sweeps.service import SweepService
from sweeps.settings import Home
from sweeps.states import TrialState
from sweeps.store import Store
from tests.corpora import write_corpus
from tests.rows import VALUES, decision_row, epoch_row

LOCAL = ("localhost", "127.0.0.1")
STEPS = {"epochs": 3, "hidden": 16, "channels": 16, "batch_size": 4}


def corpus(folder: Path) -> Path:
    """A corpus that is read at once, without a fatal fault."""
    sentences = {split: [f"{a} {b}" for a in "ABCD" for b in "ABCD" if a != b] for split in ("train", "dev")}
    return write_corpus(folder, sentences)


def spec(name: str, path: Path | str, **changes: Any) -> dict[str, Any]:
    """A spec of four trials, the first of them named."""
    return {
        "name": name,
        "corpus": str(path),
        "trainer": dict(STEPS),
        "space": {"patience": {"low": 1, "high": 5}},
        "first_trials": {"first": {"learning_rate": 1e-3}},
        "budget": {"trials": 4},
        **changes,
    }


def policy_of(root: Path, trainers: Mapping[str, str] | None = None) -> Policy:
    return Policy((root.resolve(),), dict(trainers or {}))


@contextmanager
def serving(
    store: Store,
    home: Home,
    policy: Policy,
    *,
    required: bool = False,
    port: int = 0,
    rate: str = "100000/minute",
    wrong: str = "100000/minute",
    hosts: Collection[str] = LOCAL,
) -> Iterator[str]:
    """Inside, a server on loopback answers; yields its address. Live streams end with it."""
    access = Access(store, required=required, rate=rate, wrong=wrong)
    app = make_app(SweepService(store, home, "", policy), access, hosts)
    config = uvicorn.Config(app, log_config=None, port=port, timeout_graceful_shutdown=0, lifespan="off")
    server = uvicorn.Server(config)
    sock = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="server")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        sock.close()
        assert not thread.is_alive()


def begun(store: Store, sweep_id: int, worker: str = "w") -> Claim:
    """A trial that a worker has claimed and given values."""
    claim = store.claim(sweep_id, worker, 600.0)
    assert claim is not None
    if claim.hyperparameters is None:
        store.set_hyperparameters(claim, VALUES, None)
    return claim


def trained(store: Store, sweep_id: int, epochs: int = 3, state: TrialState = TrialState.COMPLETE) -> Claim:
    """A trial from its claim to its end, as a worker writes it; one that is pruned with the decision against it."""
    claim = begun(store, sweep_id)
    rows: list[EpochRow] = [epoch_row(epoch, 0.9 / (epoch + claim.number)) for epoch in range(1, epochs + 1)]
    for row in rows:
        assert store.reserve_epoch(claim, row.epoch)
        store.record(claim, [row])
    pruned = state is TrialState.PRUNED
    decision = decision_row(claim.number, trial_id=claim.trial_id, epoch=epochs) if pruned else None
    store.finish(claim, state, "learned", "It is over.", "too_slow" if pruned else None, {"best_wer": 0.1}, decision)
    return claim
