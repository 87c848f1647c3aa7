"""What a worker's epoch costs besides training: recorded, decided, checkpointed, tracked; MLflow up, and down.

    python benchmarks/mlflow_cost.py [--trials 6] [--epochs 10] [--rounds 3] [--quick] [--json]

`sweeps run` with one worker on a generated corpus, with a clock at the worker's steps (benchmarks/sweeping.py). MLflow
is a local server of its own, or an address at which nobody answers for the whole sweep. The two take turns. Tracking is
all time in requests over HTTP, of which there are none in a worker, as another process ships: what is measured is that
this is so. Against it a plain script that logs each metric of an epoch by itself, to a server of the same kind.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median

import sweeping
from rows import Aim, Row, parser, row, show

from model.types import METRICS

TRACKING, DOWN = Aim(1, of="value"), Aim(1, of="value")
DECIDING = ("may it go on", "reserve", "record", "decide")
"""Steps of every epoch; claim, ask and tell are of a trial (benchmarks/orchestration.py)."""
BLOCKING = (*DECIDING, "checkpoint", "tracking")


def sweeps(
    folder: Path, data: Path, trials: int, epochs: int, rounds: int
) -> tuple[list[sweeping.Ran], list[sweeping.Ran]]:
    """With MLflow up, and down."""
    content = sweeping.spec(data, epochs, trials, {})
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        away = ["--tracking-uri", f"http://127.0.0.1:{taken.getsockname()[1]}", "--allow-missing-tracking"]
        pairs = [
            (
                sweeping.run(folder / f"up-{number}", content, [], clocks=True),
                sweeping.run(folder / f"down-{number}", content, away, clocks=True),
            )
            for number in range(rounds)
        ]
    return [up for up, _ in pairs], [down for _, down in pairs]


def an_epoch(ran: sweeping.Ran, steps: tuple[str, ...]) -> float:
    """Milliseconds."""
    return 1e3 * sum(ran.steps.get(step, 0.0) for step in steps) / ran.epochs


def besides(ran: sweeping.Ran) -> float:
    """Seconds of the trials in which nothing was trained."""
    return ran.trial_seconds - ran.steps["training"]


def plain_epoch(folder: Path, epochs: int) -> float:
    """Milliseconds in which a plain script logs the metrics of an epoch, one by one."""
    import mlflow

    from tracking.server import local_server

    taken = []
    with local_server(folder) as server:
        mlflow.set_tracking_uri(server.url)
        with redirect_stdout(sys.stderr), mlflow.start_run():  # it says on stdout where the run is
            for epoch in range(epochs + 1):
                began = time.perf_counter()
                for key in METRICS:
                    mlflow.log_metric(key, 0.5, step=epoch)
                taken.append(1e3 * (time.perf_counter() - began))
    return median(taken[1:])  # the first one connects


def as_rows(up: list[sweeping.Ran], down: list[sweeping.Ran], plain: float) -> list[Row]:
    script = f"{len(METRICS)} calls of mlflow.log_metric"
    rows = []
    for state, ran in (("up", up), ("down", down)):
        name = f"tracking, an epoch, MLflow {state}"
        rows.append(
            row(name, median(an_epoch(each, ("tracking",)) for each in ran), "ms", script, plain, None, TRACKING)
        )
    parts = {"record and decide": DECIDING, "checkpoint": ("checkpoint",), "all besides training": BLOCKING}
    for name, steps in parts.items():
        value = median(an_epoch(each, steps) for each in up)
        rows.append(row(f"{name}, an epoch, MLflow up", value, "ms", script, plain))
    # Of what is not training: training's own time varies by more than all of this.
    shares = [100 * (besides(b) - besides(a)) / a.trial_seconds for a, b in zip(up, down, strict=True)]
    note = (
        f"per epoch {median(1e3 * besides(each) / each.epochs for each in down):.1f} ms besides training, "
        f"{median(1e3 * besides(each) / each.epochs for each in up):.1f} ms with MLflow up; from the last trial's end "
        f"to the command's {median(each.after_seconds for each in down):.1f} s and "
        f"{median(each.after_seconds for each in up):.1f} s"
    )
    return [*rows, row("MLflow down for a whole sweep", median(shares), "% of its time", aim=DOWN, note=note)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--trials", type=int, help="of each sweep; default: 6, and 2 with --quick")
    options.add_argument("--epochs", type=int, help="of each trial; default: 10, and 3 with --quick")
    options.add_argument("--rounds", type=int, help="default: 3, and 1 with --quick")
    arguments = options.parse_args()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    quick = arguments.quick
    with tempfile.TemporaryDirectory(prefix="tracking") as name:
        folder = Path(name)
        data = sweeping.corpus(folder / "corpus", 40 if quick else 240)
        rounds = arguments.rounds or (1 if quick else 3)
        up, down = sweeps(
            folder, data, arguments.trials or (2 if quick else 6), arguments.epochs or (3 if quick else 10), rounds
        )
        found = as_rows(up, down, plain_epoch(folder / "mlflow", 3 if quick else 10))
    show(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
