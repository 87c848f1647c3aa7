"""The one door to sweeps: what the command line does is a translation of these calls."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.corpus.annotations import CorpusError
from model.corpus.check import check_corpus
from model.corpus.data import Corpus, CorpusConfig, check_fit, fit_note, load_corpus
from model.corpus.synthetic import generate
from model.diagnosis import Judgement, judge
from model.floors import Floors, floors
from model.types import BUILT_IN
from sweeps.errors import (
    DatabaseOutdated,
    NoProposal,
    NothingToDo,
    SpecChanged,
    SweepNotFound,
    TrainerChanged,
)
from sweeps.keeper import STALE_SECONDS, end_if_over, has_work
from sweeps.processes import is_gone, is_known_dead, this_runner
from sweeps.records import EpochRow, PlannedTrial, SweepRow, TrialRow
from sweeps.settings import Home
from sweeps.spec import SpecError, SweepSpec, differing_paths, digest, spec_of
from sweeps.states import SweepState
from sweeps.store import Store, without_password
from sweeps.study import Study
from sweeps.summary import Conclusions, conclusions, config_of, program, shell_line
from sweeps.trainers import (
    described,
    load_trainer,
    make_trainer,
    resolved,
    seconds_per_step,
    state_size,
    trainer_name,
)
from tracking.links import without_credentials

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prepared:
    """A spec whose corpus was read and checked."""

    spec: SweepSpec
    corpus_config: CorpusConfig
    corpus: Corpus
    floors: Floors
    notes: tuple[str, ...]
    """What the corpus left out, a sentence each, at the output stride of the spec."""
    trainer: str | None = None
    """Where a trainer of one's own is: `FILE.py:NAME` or `package.module:NAME`. None: the built-in one."""

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "corpus_hash": self.corpus.hash,
            "vocabulary_hash": self.corpus.vocabulary.hash,
            "dev_sequences": len(self.corpus.dev),
            "trainer": trainer_name(self.trainer),
            "git_commit": git_commit(),
            # A loss is not a number where no dev target fits its sentence.
            **{k: v for k, v in asdict(self.floors).items() if isinstance(v, str) or math.isfinite(v)},
        }


def git_commit() -> str:
    """The commit of the working directory, for the record; empty where there is none."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, encoding="utf-8")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def prepare(
    spec: SweepSpec, home: Home, progress: Progress | None = None, trainer: str | None = None, *, force: bool = False
) -> Prepared:
    """Generate the corpus if asked to, read it whole, and find what knowing nothing scores on it.

    Args:
        trainer: a trainer of one's own, `FILE.py:NAME` or `package.module:NAME`. It is imported: never take it from
            a request or a spec.
        force: take a corpus that the check finds a fatal fault in.

    Raises:
        SpecError: the corpus cannot be used; says which file, why, and the way out.
        TrainerNotFound: that trainer cannot be used.
    """
    trainer = resolved(trainer)
    if trainer is not None:
        load_trainer(trainer)
    try:
        generated = None
        if spec.corpus.generated is not None:
            generated = generate(spec.corpus.generated, home.corpora, progress)
        config = spec.corpus.config(generated)
        corpus = load_corpus(config, cache=home.scans, progress=progress)
        for values in () if force else ({}, *spec.first_trials.values()):
            check_fit(corpus.train, values.get("output_stride", spec.trainer.output_stride))
    except CorpusError as error:
        raise SpecError(str(error)) from error
    if "cuda" in {spec.trainer.device, *(values.get("device") for values in spec.first_trials.values())}:
        _check_cuda()
    stride = spec.trainer.output_stride
    fatal = check_corpus(config, stride, cache=home.scans).fatal
    if fatal and not force:
        faults = [f"corpus: {finding.code}: {finding.evidence} {finding.advice}" for finding in fatal]
        raise SpecError("\n".join([*faults, "corpus: nothing was trained; --force trains on it all the same"]))
    short = (note for split in (corpus.train, corpus.dev) if (note := fit_note(split, stride)) is not None)
    return Prepared(spec, config, corpus, floors(corpus, stride), (*corpus.notes, *short), trainer)


def _check_cuda() -> None:
    from model.ctc import pick_device

    try:
        pick_device("cuda")
    except ValueError as error:
        raise SpecError(f"trainer.{error}") from error


def open_sweep(store: Store, prepared: Prepared) -> SweepRow:
    """The sweep of that name, made if there is none. An existing one keeps its budget until it is this process's.

    Raises:
        SpecChanged: a sweep of that name was made from another spec or corpus.
        TrainerChanged: or is trained by another trainer.
    """
    spec = prepared.spec
    identity = _identity(spec, prepared.facts)
    known = store.find_sweep(spec.name)
    if known is None:
        planned = [PlannedTrial(**plan._asdict()) for plan in spec.planned()]
        content = stored(spec, prepared.corpus_config)
        return store.create_sweep(
            spec.name, content, digest(identity), spec.budget.model_dump(), prepared.facts, planned
        )
    used, given = known.facts.get("trainer", BUILT_IN), prepared.facts["trainer"]
    if used != given:
        raise TrainerChanged(spec.name, used, given, BUILT_IN)
    # Not by digest: a field that a newer version adds, at its default, is no difference.
    differing = differing_paths(_identity(spec_of(known), known.facts), identity)
    if differing:
        raise SpecChanged(spec.name, differing)
    return known


def _identity(spec: SweepSpec, facts: dict[str, Any]) -> dict[str, Any]:
    hashes = {name: facts[name] for name in ("corpus_hash", "vocabulary_hash")}
    return {**spec.identity(), **hashes}


def stored(spec: SweepSpec, corpus: CorpusConfig) -> dict[str, Any]:
    """The spec as the database keeps it: plain JSON, with the corpus where it was found."""
    return {**spec.model_dump(mode="json"), "found": corpus.model_dump(mode="json")}


def proposal_of(sweep: SweepRow) -> dict[str, float]:
    """The bounds of the learning rate, `low` and `high`, that a sweep's alarm proposes.

    Raises:
        NoProposal: it has not alarmed, or its alarm proposes none.
    """
    alarm = sweep.facts.get("alarm")
    if alarm is None or alarm["proposal"] is None:
        raise NoProposal(sweep.name, alarm and alarm["advice"])
    return dict(alarm["proposal"])


def accept_proposal(store: Store, sweep: SweepRow, spec: SweepSpec) -> None:
    """From now on the sampler draws learning rates from the bounds that the sweep's alarm proposed, and a trial at
    their (geometric) middle comes first. Done again it changes nothing.

    Raises:
        NoProposal: see `proposal_of`.
        TrialsSpent: the budget has no trial left for it.
    """
    bounds = proposal_of(sweep)
    middle = float(f"{math.sqrt(bounds['low'] * bounds['high']):.2g}")
    trial = PlannedTrial("proposal", {**spec.in_the_space({}), "learning_rate": middle}, {}, True)
    store.enqueue(sweep.id, trial, {"learning_rate_bounds": {**bounds, "by": "alarm"}})


def find_sweep(store: Store, name: str) -> SweepRow:
    """
    Raises:
        SweepNotFound: with the nearest names.
    """
    sweep = store.find_sweep(name)
    if sweep is None:
        raise SweepNotFound(name, [s.name for s in store.sweeps()])
    return sweep


def sweeps_named(store: Store, names: Sequence[str]) -> list[SweepRow]:
    """Those of these names, or all where none is given; one that was deleted is left out."""
    return [sweep for sweep in store.sweeps() if not names or sweep.name in names]


def pause(store: Store, name: str) -> SweepRow:
    """No new epoch begins; the trials under way are handed back at the end of the one in hand.

    Raises:
        SweepNotFound, ValueError: there is none, or its state does not allow it; so for every verb.
    """
    return _step(store, name, SweepState.PAUSED, "paused by a command; resume it, or run it again")


def resume(store: Store, name: str) -> SweepRow:
    """Workers may claim its trials again; one that alarmed or failed goes on as well.

    Raises:
        NothingToDo: its budget is used up.
    """
    sweep = find_sweep(store, name)
    if not has_work(sweep, store.trials(sweep.id)):
        raise NothingToDo(name)
    return _step(store, name, SweepState.RUNNING, "")


def stop(store: Store, name: str) -> SweepRow:
    """No new trial begins; those under way run to their ends."""
    return _step(store, name, SweepState.STOPPING, "stopped by a command")


def cancel(store: Store, name: str) -> SweepRow:
    """It ends for good: the epochs in hand are dropped, no trial goes on."""
    return _step(store, name, SweepState.CANCELLING, "cancelled by a command")


def _step(store: Store, name: str, state: SweepState, reason: str) -> SweepRow:
    sweep = find_sweep(store, name)
    store.set_sweep_state(sweep.id, state, reason)
    end_if_over(store, sweep.id)  # a sweep on which nobody works ends here
    return find_sweep(store, name)


def delete(
    store: Store, name: str, home: Home, checkpoints: Path | None, delete_experiment: Callable[[SweepRow], None]
) -> None:
    """Remove a sweep: its rows, its Optuna study, its checkpoints and pictures, and its experiment. Done again after a
    crash it goes on.

    Args:
        delete_experiment: removes what MLflow has of it; called once nobody works on the sweep any more.

    Raises:
        SweepBusy: a process works on it.
    """
    sweep = find_sweep(store, name)
    if sweep.runner is not None and sweep.runner.yields == 0:
        store.take_runner(sweep.id, this_runner(), STALE_SECONDS, is_known_dead)  # refused while it is run
    store.begin_delete(sweep.id, lambda worker: is_gone(worker.host, worker.pid, worker.process_started))
    delete_experiment(sweep)
    with closing(Study(store.url, spec_of(sweep))) as study:
        study.delete()
    for folder in ((checkpoints or home.checkpoints) / name, home.pictures(name), home.logs(name)):
        shutil.rmtree(folder, ignore_errors=True)
    store.delete_sweep(sweep.id)  # last: what comes before can be done again


def find_trial(store: Store, path: str) -> tuple[SweepRow, TrialRow]:
    """A trial by `SWEEP/NUMBER` or `SWEEP/NAME`.

    Raises:
        SweepNotFound, TrialNotFound: with the nearest names.
    """
    name, _, trial = path.partition("/")
    sweep = find_sweep(store, name)
    return sweep, store.trial(sweep.id, trial)


def conclusions_of(store: Store, sweep: SweepRow, *, lessons: bool = True) -> Conclusions:
    """What a sweep came to so far; `lessons`, what it learned of its parameters, take a look at every epoch."""
    epochs = store.sweep_epochs(sweep.id) if lessons else None
    return conclusions(sweep, store.trials(sweep.id), store.decisions(sweep.id), spec_of(sweep), epochs)


def judgement_of(sweep: SweepRow, trial: TrialRow, rows: Sequence[EpochRow]) -> Judgement | None:
    """What a trial's epochs tell; None where they cannot be judged (no epoch, or a sweep that kept no floors)."""
    if not rows or trial.hyperparameters is None or not {"constant_wer", "constant_loss"} <= sweep.facts.keys():
        return None
    config = config_of(spec_of(sweep), trial)
    return judge([row.report() for row in rows], config, sweep.floors, dev_sequences=sweep.facts.get("dev_sequences"))


@dataclass(frozen=True)
class Plan:
    """What a sweep would cost at most: nothing pruned, no patience."""

    parameters: int
    """Of the student; of a trainer of one's own, the numbers in its state."""
    seconds_per_epoch: float
    epochs: int
    hours: float
    disk_bytes: int


def plan(prepared: Prepared) -> Plan:
    """Measure a few training steps of an untrained trainer, and multiply.

    Raises:
        SpecError: the device that the spec asks for is not there.
    """
    from model.ctc import CTCTrainer

    spec = prepared.spec
    try:
        trainer = make_trainer(prepared.trainer, spec.trainer, prepared.corpus)
        if isinstance(trainer, CTCTrainer):  # no weight changes, and dev is measured once
            parameters = sum(p.numel() for p in trainer.model.parameters())
            seconds = trainer.measure_epoch_seconds()
        else:
            parameters = state_size(trainer)
            steps = math.ceil(len(prepared.corpus.train) / spec.trainer.batch_size)
            seconds = steps * seconds_per_step(trainer)
    except ValueError as error:
        raise SpecError(str(error)) from error
    except Exception as error:
        if prepared.trainer is None:
            raise
        raise SpecError(f"{prepared.trainer}: fails on its first steps ({described(error)}); mend it") from error
    named = [values.get("epochs", spec.trainer.epochs) for values in spec.first_trials.values()]
    epochs = sum(named) + (spec.budget.trials - len(named)) * spec.trainer.epochs
    epochs = min(epochs, spec.budget.total_epochs or epochs)
    hours = min(epochs * seconds / spec.workers / 3600, spec.budget.hours or float("inf"))
    # Weights and AdamW's two moments in float32, the last two checkpoints and the best one; a curve is about 2 kB an
    # epoch in our tables and MLflow's together.
    disk = spec.budget.trials * 3 * 3 * 4 * parameters + 2000 * epochs
    return Plan(parameters, seconds, epochs, hours, disk)


def load_home_store(home: Home, database: str | None) -> Store:
    """The database of this home, or the one named.

    Raises:
        DatabaseOutdated: with the command that upgrades it.
        DatabaseUnavailable, ValueError: see `Store`.
    """
    home.root.mkdir(parents=True, exist_ok=True)
    try:
        return Store(database or home.database_url)
    except DatabaseOutdated as old:
        raise DatabaseOutdated(old.url, old.revision, old.needed, upgrade_command(home, database)) from None


def ui_command(name: str, home: Home, database: str | None, tracking_uri: str | None) -> str:
    """The command that opens a sweep's dashboard again. Passwords are left out: the environment has them."""
    words = _command(home, database, "ui", name)
    if tracking_uri:
        words += ["--tracking-uri", without_credentials(tracking_uri)]
    return shell_line(words)


def upgrade_command(home: Home, database: str | None) -> str:
    """The command that brings the database of this home, or the one named, up to date."""
    return shell_line(_command(home, database, "db", "upgrade"))


def _command(home: Home, database: str | None, *words: str) -> list[str]:
    command = [program("sweeps"), *words]
    if home.root != Path(".sweeps").resolve():
        command += ["--home", str(home.root)]
    if database:
        command += ["--database", without_password(database)]
    return command
