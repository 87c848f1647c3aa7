"""Making a sweep: its corpus is read and checked, and what knowing nothing scores on it is found."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from model.corpus.annotations import CorpusError
from model.corpus.check import check_corpus
from model.corpus.data import Corpus, CorpusConfig, check_fit, fit_note, load_corpus
from model.corpus.synthetic import generate
from model.floors import Floors, floors
from model.types import BUILT_IN
from sweeps.errors import SpecChanged, TrainerChanged
from sweeps.records import PlannedTrial, SweepRow
from sweeps.settings import Home
from sweeps.spec import SpecError, SweepSpec, differing_paths, digest, spec_of
from sweeps.store import Store
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
        for values in () if force else ({}, *spec.first_trials.values()):
            check_fit(corpus.train, values.get("output_stride", spec.trainer.output_stride))
    except CorpusError as error:
        raise SpecError(str(error)) from error
    if check_device and "cuda" in {
        spec.trainer.device,
        *(values.get("device") for values in spec.first_trials.values()),
    }:
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
