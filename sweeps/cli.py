"""The `sweeps` command: one module a command below `commands/`, and what an expected error looks like."""

from __future__ import annotations

import gc
import logging
import os
import sys

import typer

from sweeps import shadows

gc.disable()  # what is imported is no garbage: a tenth of a second in each command
with shadows.explained():
    from model.corpus.annotations import CorpusError
    from sweeps.commands import (
        best,
        compare,
        confirm,
        create,
        db,
        doctor,
        forecast,
        mirror,
        notify,
        register,
        replay,
        report,
        run,
        serve,
        show,
        status,
        token,
        trials,
        ui,
        verbs,
        watch,
        work,
    )
    from sweeps.errors import SweepError
    from tracking.server import ServerDidNotStart
    from tracking.writer import TrackingRefused, TrackingUnavailable

gc.freeze()
gc.enable()

app = typer.Typer(
    help="Hyperparameter sweeps for CTC sequence models, every curve in MLflow.\n\n"
    "Begin with `sweeps run examples/demo.yaml`; `sweeps run SPEC --dry-run` checks a spec and its corpus first.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    *(run.run, confirm.confirm, create.create, work.work, ui.ui),
    *(status.status, trials.trials, show.show, watch.watch, forecast.forecast),
    *(compare.compare, report.report, mirror.mirror),
    *(best.best, replay.replay, register.register, notify.notify),
    *(verbs.pause, verbs.resume, verbs.stop, verbs.cancel, verbs.enqueue, verbs.delete),
    *(serve.serve, token.actions, doctor.doctor),
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(token.app, name="token")
app.add_typer(db.app, name="db")


def main() -> None:
    """The entry point: expected errors become one line and exit code 2."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the mirror says itself, in one line, that MLflow is away
    try:
        app()
    except (SweepError, CorpusError, TrackingUnavailable, TrackingRefused, ServerDidNotStart, ValueError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}; free or correct that place, or name another", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
