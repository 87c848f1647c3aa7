"""Making a sweep: its corpus is read and checked, and what knowing nothing scores on it is found."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from model.corpus.annotations import CorpusError
from model.corpus.check import check_corpus
from model.corpus.data import Corpus, CorpusConfig, check_fit, fit_note, load_corpus
from model.corpus.synthetic import generate
from model.floors import Floors, floors
from model.types import BUILT_IN
from sweeps import budget as budgets
from sweeps import warm_start
from sweeps.errors import CannotWork, NoWarmStart, SpecChanged, SweepNotFound, TrainerChanged
from sweeps.records import PlannedTrial, PriorRow, SweepRow
from sweeps.settings import Home
from sweeps.spec import Choices, SpecError, SweepSpec, corpus_of, differing_paths, digest, spec_of
from sweeps.store import CONFIGURATIONS, Store
from sweeps.trainers import (
    described,
    load_trainer,
    make_trainer,
    resolved,
    seconds_per_step,
    state_size,
    trainer_name,
)

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
            "train_sequences": len(self.corpus.train),
            "dev_sequences": len(self.corpus.dev),
            "glosses": len(self.corpus.vocabulary) - 1,
            "width": self.corpus.width,
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
    spec: SweepSpec,
    home: Home,
    progress: Progress | None = None,
    trainer: str | None = None,
    *,
    force: bool = False,
    check_device: bool = True,
) -> Prepared:
    """Generate the corpus if asked to, read it whole, and find what knowing nothing scores on it.

    Args:
        trainer: a trainer of one's own, `FILE.py:NAME` or `package.module:NAME`. It is imported: never take it from
            a request or a spec.
        force: take a corpus that the check finds a fatal fault in.
        check_device: whether it is to be trained here, so that a GPU must be here.

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
        for stride in () if force else strides(spec):
            check_fit(corpus.train, stride)
    except CorpusError as error:
        raise SpecError(str(error)) from error
    if check_device and "cuda" in {
        spec.trainer.device,
        *(values.get("device") for values in spec.first_trials.values()),
    }:
        device_here("cuda")
    longest = strides(spec)[-1]
    fatal = check_corpus(config, longest, cache=home.scans).fatal
    if fatal and not force:
        faults = [f"corpus: {finding.code}: {finding.evidence} {finding.advice}" for finding in fatal]
        raise SpecError("\n".join([*faults, "corpus: nothing was trained; --force trains on it all the same"]))
    short = (note for split in (corpus.train, corpus.dev) if (note := fit_note(split, longest)) is not None)
    return Prepared(spec, config, corpus, floors(corpus, spec.trainer.output_stride), (*corpus.notes, *short), trainer)


def strides(spec: SweepSpec) -> list[int]:
    """The output strides that trials of a sweep may have."""
    searched = spec.space.parameters().get("output_stride")
    named = [values.get("output_stride", spec.trainer.output_stride) for values in spec.first_trials.values()]
    given = searched.choices if isinstance(searched, Choices) else (spec.trainer.output_stride,)
    return sorted({*map(int, given), *named})


def device_here(wanted: str) -> str:
    """`cpu` or `cuda`: where a trial with that `trainer.device` is trained on this machine.

    Raises:
        SpecError: CUDA is wanted and there is none.
    """
    from model.ctc import pick_device

    try:
        return pick_device(wanted).type
    except ValueError as error:
        raise SpecError(f"trainer.{error}") from error


def corpus_config_here(
    sweep: SweepRow, home: Home, given: Path | None = None, progress: Progress | None = None
) -> CorpusConfig:
    """Where the corpus of a sweep lies on this machine. Arguments as `corpus_here`."""
    spec, config = spec_of(sweep), corpus_of(sweep)
    if given is not None:
        return config.model_copy(update={"path": given})
    if spec.corpus.generated is not None and not config.path.exists():
        return config.model_copy(update={"path": generate(spec.corpus.generated, home.corpora, progress)})
    return config


def corpus_here(sweep: SweepRow, home: Home, given: Path | None = None, progress: Progress | None = None) -> Corpus:
    """The corpus of a sweep, as it was when the sweep was made; one that was generated is generated again.

    Args:
        given: where it lies on this machine, if not where the sweep was made.

    Raises:
        CannotWork: it is not here, or is another one.
    """
    try:
        corpus = load_corpus(corpus_config_here(sweep, home, given, progress), cache=home.scans, progress=progress)
    except CorpusError as error:
        raise CannotWork(sweep.name, str(error)) from error
    if corpus.hash != sweep.facts["corpus_hash"]:
        raise CannotWork(
            sweep.name, f"{corpus.folder}: changed since the sweep began; put it back, or begin another sweep"
        )
    return corpus


def check_trainer(sweep: SweepRow, reference: str | None) -> None:
    """
    Raises:
        CannotWork: the sweep is trained by another trainer than the one named.
    """
    used, given = sweep.facts.get("trainer", trainer_name(None)), trainer_name(reference)
    if used != given:
        way_out = "leave --trainer out" if used == trainer_name(None) else f"name {used} with --trainer"
        raise CannotWork(sweep.name, f"it is trained by {used}, and the trainer given here is {given}: {way_out}")


def open_sweep(
    store: Store, prepared: Prepared, about: Mapping[str, Any] = MappingProxyType({}), *, force: bool = False
) -> SweepRow:
    """The sweep of that name, made if there is none. An existing one keeps its budget until it is this process's.

    Args:
        about: facts beyond those of the corpus, if it is made.
        force: begin it from earlier sweeps also where their trainers were set otherwise.

    Raises:
        SweepNotFound, NoWarmStart: it cannot begin from the sweeps that its spec names.
        SpecChanged: a sweep of that name was made from another spec or corpus.
        TrainerChanged: or is trained by another trainer.
    """
    spec = prepared.spec
    identity = _identity(spec, prepared.facts)
    known = store.find_sweep(spec.name)
    if known is None:
        planned = [PlannedTrial(**plan._asdict()) for plan in spec.planned()]
        content = stored(spec, prepared.corpus_config)
        priors, found = _warm_start(store, prepared, force)
        facts = {**prepared.facts, **found, **_countable(spec, planned), **about}
        return store.create_sweep(
            spec.name, content, digest(identity), spec.budget.model_dump(), facts, planned, priors
        )
    used, given = known.facts.get("trainer", BUILT_IN), prepared.facts["trainer"]
    if used != given:
        raise TrainerChanged(spec.name, used, given, BUILT_IN)
    # Not by digest: a field that a newer version adds, at its default, is no difference.
    differing = differing_paths(_identity(spec_of(known), known.facts), identity)
    if differing:
        raise SpecChanged(spec.name, differing)
    return known


def _countable(spec: SweepSpec, planned: Sequence[PlannedTrial]) -> dict[str, Any]:
    """How many trials the space has room for, where that is counted: a named trial that repeats another takes none."""
    most = spec.most_configurations()
    if most is None:
        return {}
    inside = [trial.hyperparameters for trial in planned if trial.in_space]
    return {CONFIGURATIONS: most + sum(values in inside[:n] for n, values in enumerate(inside))}


def _warm_start(store: Store, prepared: Prepared, force: bool) -> tuple[list[PriorRow], dict[str, Any]]:
    """What the sampler is shown of the earlier sweeps that the spec names, and the fact that says so.

    Raises:
        SweepNotFound: there is no such sweep.
        NoWarmStart: it measured something else, or (without `force`) trained otherwise.
    """
    priors: list[PriorRow] = []
    sources = []
    for name in prepared.spec.warm_start:
        earlier = store.find_sweep(name)
        if earlier is None:
            raise SweepNotFound(name, [sweep.name for sweep in store.sweeps()])
        if differing := warm_start.other_task(earlier, prepared.facts):
            raise NoWarmStart(
                f"warm start: sweep {name!r} measured something else: {', '.join(differing)}; leave it out"
            )
        if (differing := warm_start.other_trainer(earlier, prepared.spec)) and not force:
            raise NoWarmStart(
                f"warm start: trials of sweep {name!r} were trained otherwise: {', '.join(differing)}; train as it "
                "did, leave it out, or take its trials all the same with --force"
            )
        rows, source = warm_start.taken(earlier, store.curves(earlier), prepared.spec)
        priors += rows
        sources.append(source)
    return warm_start.numbered(priors), {warm_start.FACT: warm_start.as_fact(sources)} if sources else {}


def _identity(spec: SweepSpec, facts: dict[str, Any]) -> dict[str, Any]:
    hashes = {name: facts[name] for name in ("corpus_hash", "vocabulary_hash")}
    return {**spec.identity(), **hashes}


def stored(spec: SweepSpec, corpus: CorpusConfig) -> dict[str, Any]:
    """The spec as the database keeps it: plain JSON, with the corpus where it was found."""
    return {**spec.model_dump(mode="json"), "found": corpus.model_dump(mode="json")}


@dataclass(frozen=True)
class Plan:
    """What a sweep would cost at most: nothing pruned, no patience."""

    parameters: int
    """Of the student; of a trainer of one's own, the numbers in its state."""
    seconds_per_epoch: float
    epochs: int
    hours: float
    device_hours: float
    """Those of all workers added up."""
    money: float | None
    """What these cost; None without a price."""
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
    budget = spec.budget.model_dump()
    limits = budgets.training_left(budget, budgets.Spending(0, 0.0, 0.0), spec.workers, seconds)
    device_seconds = min([epochs * seconds, *limits.values()])
    hours = device_seconds / spec.workers / 3600
    cost = budgets.cost(budget, device_seconds)
    # Weights and AdamW's two moments in float32, the last two checkpoints and the best one; a curve is about 2 kB an
    # epoch in our tables and MLflow's together.
    disk = spec.budget.trials * 3 * 3 * 4 * parameters + 2000 * epochs
    return Plan(parameters, seconds, epochs, hours, device_seconds / 3600, cost, disk)
