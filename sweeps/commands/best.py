"""`sweeps best`: what a sweep came to, and the best trial as a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sweeps import service
from sweeps.commands.options import (
    CheckpointsOption,
    DatabaseOption,
    HomeOption,
    JsonOption,
    corpus_progress,
    opened,
)
from sweeps.confirmation import FACT
from sweeps.confirming import confirmation_of, run_of
from sweeps.errors import SweepError
from sweeps.exporting import Exported, check_free, export
from sweeps.records import SweepRow, TrialRow
from sweeps.settings import find_home
from sweeps.spec import corpus_of, spec_of
from sweeps.summary import best_trial, command_of, parameters, sentence_about, trial_label


def best(
    name: Annotated[str, typer.Argument(metavar="SWEEP")],
    trial: Annotated[
        str | None,
        typer.Option(
            metavar="TRIAL",
            help="This one, by number or name. Default: the lowest WER, or what a confirmation decided",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="Write it there: weights, commands, evidence", file_okay=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Take the place of a folder that holds something")] = False,
    corpus: Annotated[
        Path | None, typer.Option(help="Where the corpus is on this machine, if not where the sweep was made")
    ] = None,
    checkpoints: CheckpointsOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """The best trial of a sweep; with --export as a folder that somebody else can use.

    The folder holds the weights, the command that trains them again (POSIX shells, PowerShell), the evidence and how
    far to trust it, and SHA256SUMS.
    """
    where, words = find_home(home), sys.stderr if as_json else sys.stdout
    if to is not None:
        check_free(to, force)
    with opened(where, database) as store:
        sweep = service.find_sweep(store, name)
        confirmed = confirmation_of(store, sweep) if trial is None and FACT in sweep.facts else None
        if confirmed is not None:
            chosen = run_of(store, confirmed, confirmed.decided)
        else:
            chosen = store.trial(sweep.id, trial) if trial is not None else best_trial(store.trials(sweep.id))
        if chosen is None or chosen.best_wer is None:
            which = "it" if trial is None else f"its trial {trial}"
            raise SweepError(f"sweep {name!r}: {which} has no epoch with a WER yet; `sweeps watch {name}` follows it")
        exported = None
        if to is not None:
            with corpus_progress(words) as progress:
                exported = export(
                    store, where, sweep, chosen, to, checkpoint_folder=checkpoints, corpus=corpus, force=force,
                    progress=progress,
                )  # fmt: skip
    found = as_values(sweep, chosen, exported)
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    print(f"{name}: trial {trial_label(chosen)}, dev WER {chosen.best_wer:.1%} at epoch {chosen.best_epoch}")
    print(f"  {parameters(chosen)}\n  {sentence_about(chosen)}")
    if confirmed is not None:
        print(f"  {confirmed.sentence} This is its run with the lowest dev WER.")
    if exported is None:
        print(f"  {found['command'] or 'trained by ' + sweep.facts['trainer']}")
        return
    if exported.interval is not None:
        low, high = exported.interval
        print(f"  95 % interval over the sentences of dev: {low:.1%} to {high:.1%}; chosen on dev, so dev flatters it")
    print(f"{exported.folder}: {', '.join(exported.files)}")
    for what, why in exported.missing.items():
        print(f"  not in it: {what}: {why}")


def as_values(sweep: SweepRow, trial: TrialRow, exported: Exported | None) -> dict[str, Any]:
    return {
        "sweep": sweep.name,
        "number": trial.number,
        "name": trial.name,
        "trial_state": trial.state.value,
        "verdict": trial.verdict,
        "wer": trial.best_wer,
        "epoch": trial.best_epoch,
        "hyperparameters": trial.hyperparameters,
        "overrides": trial.overrides,
        "command": command_of(sweep, trial, spec_of(sweep), corpus_of(sweep)),
        "interval": exported and exported.interval,
        "folder": exported and str(exported.folder),
        "files": exported and list(exported.files),
        "missing": exported and dict(exported.missing),
    }
