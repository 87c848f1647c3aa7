"""The one door to sweeps: what the command line does is a translation of these calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.annotations import CorpusError
from model.data import Corpus, CorpusConfig, load_corpus
from model.probes import constant_sentence
from model.synthetic import generate
from sweeps.errors import SpecChanged, SweepNotFound
from sweeps.records import PlannedTrial, SweepRow, TrialRow
from sweeps.settings import Home
from sweeps.spec import SpecError, SweepSpec, differing_paths, digest
from sweeps.store import Store
from sweeps.summary import program, shell_line
from tracking.links import without_credentials

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prepared:
    """A spec whose corpus was read and checked."""

    spec: SweepSpec
    corpus_config: CorpusConfig
    corpus: Corpus
    constant_sentence: str
    constant_wer: float

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "corpus_hash": self.corpus.hash,
            "vocabulary_hash": self.corpus.vocabulary.hash,
            "constant_wer": self.constant_wer,
            "constant_sentence": self.constant_sentence,
        }


def prepare(spec: SweepSpec, home: Home, progress: Progress | None = None) -> Prepared:
    """Generate the corpus if asked to, read it whole, and find what knowing nothing scores on it.

    Raises:
        SpecError: the corpus cannot be used; says which file, why, and the way out.
    """
    try:
        generated = None
        if spec.corpus.generated is not None:
            generated = generate(spec.corpus.generated, home.corpora, progress)
        config = spec.corpus.config(generated)
        corpus = load_corpus(config, cache=home.scans, progress=progress)
    except CorpusError as error:
        raise SpecError(str(error)) from error
    if "cuda" in {spec.trainer.device, *(values.get("device") for values in spec.first_trials.values())}:
        _check_cuda()
    sentence, wer = constant_sentence(corpus.train.references, corpus.dev.references)
    return Prepared(spec, config, corpus, sentence, wer)


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


def spec_of(sweep: SweepRow) -> SweepSpec:
    """The spec a sweep was made from, with its budget of today."""
    content = {k: v for k, v in sweep.spec.items() if k != "found"}
    return SweepSpec.model_validate({**content, "budget": sweep.budget})


def corpus_of(sweep: SweepRow) -> CorpusConfig:
    """Where a sweep's corpus was when the sweep was made."""
    return CorpusConfig.model_validate(sweep.spec["found"])


def find_sweep(store: Store, name: str) -> SweepRow:
    """
    Raises:
        SweepNotFound: with the nearest names.
    """
    sweep = store.find_sweep(name)
    if sweep is None:
        raise SweepNotFound(name, [s.name for s in store.sweeps()])
    return sweep


def find_trial(store: Store, path: str) -> tuple[SweepRow, TrialRow]:
    """A trial by `SWEEP/NUMBER` or `SWEEP/NAME`.

    Raises:
        SweepNotFound, TrialNotFound: with the nearest names.
    """
    name, _, trial = path.partition("/")
    sweep = find_sweep(store, name)
    return sweep, store.trial(sweep.id, trial)


@dataclass(frozen=True)
class Plan:
    """What a sweep would cost at most: nothing pruned, no patience."""

    parameters: int
    seconds_per_epoch: float
    epochs: int
    hours: float
    disk_bytes: int


def plan(prepared: Prepared) -> Plan:
    """Measure a few training steps of an untrained student (no weight changes) and dev once, and multiply.

    Raises:
        SpecError: the device that the spec asks for is not there.
    """
    from model.ctc import CTCTrainer

    spec = prepared.spec
    try:
        trainer = CTCTrainer(spec.trainer, prepared.corpus)
    except ValueError as error:
        raise SpecError(str(error)) from error
    parameters = sum(p.numel() for p in trainer.model.parameters())
    seconds = trainer.measure_epoch_seconds()
    named = [values.get("epochs", spec.trainer.epochs) for values in spec.first_trials.values()]
    epochs = sum(named) + (spec.budget.trials - len(named)) * spec.trainer.epochs
    epochs = min(epochs, spec.budget.total_epochs or epochs)
    hours = min(epochs * seconds / spec.workers / 3600, spec.budget.hours or float("inf"))
    # Weights and AdamW's two moments in float32, the last checkpoint and the best one; a curve is about 2 kB an epoch
    # in our tables and MLflow's together.
    disk = spec.budget.trials * 2 * 3 * 4 * parameters + 2000 * epochs
    return Plan(parameters, seconds, epochs, hours, disk)


def load_home_store(home: Home, database: str | None) -> Store:
    """The database of this home, or the one named."""
    home.root.mkdir(parents=True, exist_ok=True)
    return Store(database or home.database_url)


def ui_command(name: str, home: Home, database: str | None, tracking_uri: str | None) -> str:
    """The command that opens a sweep's dashboard again. Passwords are left out: the environment has them."""
    words = [program("sweeps"), "ui", name]
    if home.root != Path(".sweeps").resolve():
        words += ["--home", str(home.root)]
    if database:
        words += ["--database", without_credentials(database)]
    if tracking_uri:
        words += ["--tracking-uri", without_credentials(tracking_uri)]
    return shell_line(words)
