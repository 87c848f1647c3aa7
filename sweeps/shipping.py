"""Where the runs of sweeps go: which MLflow server, how a sweep is mirrored there, and where a person sees it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from model.examples import is_example_epoch
from model.types import BUILT_IN
from sweeps import service
from sweeps.checkpoints import trial_files
from sweeps.description import description
from sweeps.gathered import gather
from sweeps.keeper import STALE_SECONDS
from sweeps.learned import Lesson
from sweeps.mirror import POSTERIORGRAM, Mirror
from sweeps.processes import is_known_dead
from sweeps.records import Runner, SweepRow, TrialRow
from sweeps.settings import Home
from sweeps.spec import corpus_of, spec_of
from sweeps.store import PICTURES, Store
from sweeps.summary import Conclusions, best_trial, command_of, in_shells, trial_label
from tracking import views
from tracking.links import experiment_url, view_url, without_credentials
from tracking.server import check_server, local_server, store_path, store_uri
from tracking.writer import Dataset, ExperimentWriter, ModelFile, TrackingUnavailable

if TYPE_CHECKING:
    from sweeps.pictures import Kind

log = logging.getLogger(__name__)

SHIPPED_PICTURES: tuple[Kind, ...] = ("wer", "spread", "loss", "learning_rate")
"""In MLflow; the first stands in the experiment's description."""

LEARN_SECONDS = 60.0
"""What a sweep learned of its parameters takes a look at every epoch: while it runs, so seldom."""


@dataclass(frozen=True)
class Tracking:
    """Where the runs go and where a person sees them."""

    uri: str
    """What the mirror writes to."""
    shown: str
    """What is reported: the given URI, or that of the local MLflow database."""
    pages: str
    """Base address of the pages."""
    ensure_alive: Callable[[], None] = lambda: None
    """Starts a local server again if it has died."""


@contextmanager
def tracking_server(
    home: Home, given: str | None, port: int | None = None, *, required: bool = True
) -> Iterator[Tracking]:
    """The given MLflow server, checked if it is required, or a local one that lives as long as this context."""
    if given and required:
        check_server(given)
    if given and given.startswith("http"):
        yield Tracking(given, without_credentials(given), given)
    elif given:
        yield Tracking(given, given, "")
    else:
        with local_server(home.mlflow, port=port) as server:
            yield Tracking(server.url, store_uri(home.mlflow), server.url, server.ensure_alive)


def dashboard(store: Store, sweep: SweepRow, tracking: Tracking) -> str:
    """The address that opens the curves of all trials, or what starts a server that has one."""
    experiment = service.find_sweep(store, sweep.name).experiment_id
    if not tracking.pages:
        return f"mlflow ui --backend-store-uri {tracking.uri}"
    if experiment is None:
        return without_credentials(tracking.pages)
    try:
        ready = views.are_stored(tracking.pages, experiment)
    except TrackingUnavailable as away:
        log.debug("%s; the plain charts need nothing of it", away)
        ready = False
    return (
        view_url(tracking.pages, experiment, views.key("all")) if ready else experiment_url(tracking.pages, experiment)
    )


def keeper_of(store: Store, sweep: SweepRow) -> Runner | None:
    """The live process that keeps the sweep, and so ships it, if it knows a tracking server."""
    if sweep.runner is None or sweep.runner_beat_at is None or sweep.runner.yields > 1:
        return None
    stale = store.now() - sweep.runner_beat_at > STALE_SECONDS
    return None if stale or is_known_dead(sweep.runner) else sweep.runner


def server_of(sweep: SweepRow, given: str | None, home: Home) -> str | None:
    """Where a sweep's runs go: the server that is given, else the one they went to; None is the local one of this home,
    which takes the place of a home that was moved, too.
    """
    before = sweep.tracking
    if given is not None or before is None or before.startswith("http"):
        return given or before
    elsewhere = before.startswith("sqlite:") and before != store_uri(home.mlflow) and store_path(before).exists()
    return before if elsewhere else None


def mirror_of(
    store: Store,
    sweep: SweepRow,
    home: Home,
    tracking: Tracking,
    *,
    may_ship: Callable[[], bool] = lambda: True,
    progress: Callable[[int, int], None] = lambda number, epochs: None,
) -> Mirror:
    """The mirror of a sweep into that server, from what the database knows of the sweep."""

    def open_() -> ExperimentWriter:
        from tracking.mlflow_writer import open_experiment

        experiment = open_experiment(tracking.uri, sweep.name, tracking.shown)
        spec = spec_of(sweep)
        searched = list(spec.space.searched())
        last = max(filter(is_example_epoch, range(1, spec.trainer.epochs + 1)))
        experiment.set_tags(views.tags(searched, views.Images(POSTERIORGRAM, last), sweep.created_at))
        return experiment

    learned_at, learned_of = -math.inf, ""
    lessons: Sequence[Lesson] = ()

    def conclusions(now: SweepRow) -> Conclusions:
        nonlocal learned_at, learned_of, lessons
        if now.state == learned_of and time.monotonic() - learned_at < LEARN_SECONDS:
            return replace(service.conclusions_of(store, now, lessons=False), lessons=lessons)
        found = service.conclusions_of(store, now)
        learned_at, learned_of, lessons = time.monotonic(), now.state, found.lessons
        return found

    def describe() -> str:
        now, rows = service.find_sweep(store, sweep.name), store.trials(sweep.id)
        spec, best = spec_of(now), best_trial(rows)
        command = command_of(now, best, spec, corpus_of(now)) if best else None
        drawn = now.facts.get(PICTURES)
        shown = [(drawn["run"], path) for path in drawn["paths"][:1]] if drawn else []
        return description(now, rows, spec, in_shells(command) if command else [], conclusions(now), shown)

    def draw(over: bool) -> dict[str, bytes]:
        from sweeps.pictures import png  # seconds of imports, that no command waits for
        from sweeps.report import ARTIFACT, report

        of = gather(service.SweepService(store, home, ""), sweep.name)
        drawn = {f"{PICTURES}/{kind}.png": png(kind, of) for kind in SHIPPED_PICTURES}
        return {**drawn, ARTIFACT: report(of).encode()} if over else drawn

    return Mirror(
        *(store, sweep, spec_of(sweep), tags_of(sweep), dataset_of(sweep), open_, describe, home.pictures(sweep.name)),
        draw=draw,
        best_model=lambda trial: best_model(store, home, sweep.name, trial),
        may_ship=may_ship,
        ensure_server=tracking.ensure_alive,
        progress=progress,
    )


def best_model(
    store: Store, home: Home, name: str, trial: TrialRow, checkpoints: Path | None = None
) -> ModelFile | None:
    """The weights of the sweep's best trial at its best epoch; None where they are on another machine, or are those of
    a trainer of one's own, which only its own code can load.

    Args:
        checkpoints: folder of the checkpoints, if not in home.
    """
    sweep = service.find_sweep(store, name)
    file = trial_files((checkpoints or home.checkpoints) / name, trial.number).best
    if sweep.facts.get("trainer", BUILT_IN) != BUILT_IN or "width" not in sweep.facts or not file.exists():
        return None
    return ModelFile(
        key=f"{name}@{sweep.created_at:.3f}/best/{trial.number}/{trial.best_epoch}",
        name=f"{name}-best",
        file=file,
        loader="model.served",
        requirements=[f"{package}=={version(package)}" for package in ("ctc-sweeps", "torch", "numpy")],
        width=sweep.facts["width"],
        facts={
            "sweep": name,
            "trial": trial_label(trial),
            "epoch": str(trial.best_epoch),
            "dev_wer": f"{trial.best_wer:.4f}",
            "corpus_hash": str(sweep.facts.get("corpus_hash", "")),
        },
    )


def dataset_of(sweep: SweepRow) -> Dataset:
    """The sweep's corpus, as the tracker shows it beside each run."""
    corpus, sizes = corpus_of(sweep), ("train_sequences", "dev_sequences", "glosses", "constant_wer", "vocabulary_hash")
    facts = {name: sweep.facts[name] for name in sizes if name in sweep.facts}
    return Dataset(corpus.path.name, str(sweep.facts.get("corpus_hash", "")), str(corpus.path), facts)


def tags_of(sweep: SweepRow) -> dict[str, str]:
    """What every run of a sweep is tagged with, and its experiment."""
    facts = ("corpus_hash", "vocabulary_hash", "trainer", "git_commit")
    known = {name: str(sweep.facts[name]) for name in facts if name in sweep.facts}
    return {"corpus": str(corpus_of(sweep).path), **known}
