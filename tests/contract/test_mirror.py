"""What the database holds reaches the tracker: on the recording twin, and on a real MLflow server."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from model.examples import Examples, examples, is_example_epoch, posteriorgram
from sweeps.errors import DatabaseUnavailable
from sweeps.mirror import STATUS, Mirror, run_name
from sweeps.records import Claim, DecisionRow, PlannedTrial, SweepRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.summary import config_of
from tests.faults.mlflow_proxy import proxied
from tests.rows import VALUES, epoch_row
from tracking.mlflow_writer import open_experiment
from tracking.recording_writer import RecordingExperiment, RecordingRun
from tracking.server import LocalServer, local_server
from tracking.writer import ENDED, Dataset, ExperimentWriter, ModelFile, TrackingRefused, TrackingUnavailable

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "x", "budget": {"trials": 100}})
TAGS = {"corpus_hash": "c", "git_commit": "g"}
DATASET = Dataset("si5", "c", "data/si5", {"dev_sequences": 111})

Content = dict[str, dict[str, Any]]
"""What a tracker holds: by trial number, `name params tags curves status end`."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One database for all: each test has a sweep of its own."""
    store = Store(f"sqlite:///{(tmp_path_factory.mktemp('mirror') / 'sweeps.db').as_posix()}")
    yield store
    store.close()


@pytest.fixture
def sweep(store: Store) -> SweepRow:
    return new_sweep(store)


def new_sweep(store: Store) -> SweepRow:
    planned = [PlannedTrial("fixed", VALUES, {"schedule": "constant"}, False)]
    row = store.create_sweep(uuid.uuid4().hex, {}, "digest", {"trials": 100}, {"constant_wer": 0.9}, planned)
    store.set_sweep_state(row.id, SweepState.RUNNING)
    return row


def begin(store: Store, sweep: SweepRow, *wers: float | None) -> Claim:
    """A worker of its own claims a trial and records these epochs."""
    claim = store.claim(sweep.id, f"worker {uuid.uuid4()}", 60)
    assert claim is not None
    store.set_hyperparameters(claim, VALUES, None)
    go_on(store, claim, *wers)
    return claim


def go_on(store: Store, claim: Claim, *wers: float | None) -> None:
    done = store.trial(claim.sweep_id, claim.number).epochs
    store.record(claim, [epoch_row(done + n, wer) for n, wer in enumerate(wers, start=1)])


def against(claim: Claim, action: Literal["stopped", "audited"], siblings: list[int]) -> DecisionRow:
    said = {"reason": "Größe 手語.", "counterfactual": "More would have kept it."}
    compared = {"numbers": {"spread": 0.02}, "thresholds": {"needed": 0.3}, "siblings": siblings}
    return DecisionRow(claim.trial_id, claim.number, 3, "futile", "never_learned", **said, **compared, action=action)


def end(store: Store, claim: Claim, state: TrialState = TrialState.COMPLETE, verdict: str | None = "learned") -> None:
    store.finish(claim, state, verdict, f"It is {state}.", "rule", {})


def mirror(
    store: Store,
    sweep: SweepRow,
    experiment: ExperimentWriter,
    describe: Callable[[], str] = lambda: "so far",
    **more: Any,
) -> Mirror:
    return Mirror(store, sweep, SPEC, TAGS, DATASET, lambda: experiment, describe, **more)


def expected(store: Store, sweep: SweepRow) -> Content:
    """What the tracker should hold, by what the database holds."""
    content: Content = {}
    for trial in store.trials(sweep.id):
        if trial.hyperparameters is None:
            continue
        config, decision = config_of(SPEC, trial), store.decision(trial.id)
        curves: dict[str, list[tuple[int, int, float]]] = {}
        for row in store.epochs(trial.id):
            for name, value in row.metrics.items():
                curves.setdefault(name, []).append((row.epoch, round(1000 * (row.recorded_at or 0)), value))
        content[str(trial.number)] = {
            "name": run_name(trial),
            "params": {name: str(value) for name, value in config.model_dump().items()},
            "tags": {
                **TAGS,
                "sweep": sweep.name,
                "number": str(trial.number),
                "name": trial.name or "",
                "trial_state": trial.state.value,
                "verdict": trial.verdict or "",
                "collapse": str(trial.verdict in ("never_learned", "collapsed")).lower(),
                "rule": trial.rule or "",
                "reason": trial.reason,
                "counterfactual": decision.counterfactual if decision else "",
                "decision": json.dumps(decision.as_json()) if decision else "",
                "audited": "true" if decision and decision.action == "audited" else "false",
                "attempt": str(trial.attempt),
                "seed": str(config.seed),
            },
            "curves": curves,
            "status": STATUS[trial.state],
            "end": None if trial.finished_at is None else round(1000 * trial.finished_at),
        }
    return content


def held(experiment: RecordingExperiment) -> Content:
    return {
        run.tags.get("number", "not tagged yet"): {
            "name": run.name,
            "params": run.params,
            "tags": run.tags,
            "curves": run.curves,
            "status": run.status,
            "end": run.end_time_ms,
        }
        for run in list(experiment.runs.values())
    }


def three_trials(store: Store, sweep: SweepRow) -> Claim:
    """One that failed, one that was pruned and one that runs as an audit, which is returned."""
    end(store, begin(store, sweep), TrialState.FAILED, None)
    stopped = begin(store, sweep, 1.0, 1.0, 0.95)
    decision = against(stopped, "stopped", [0])
    store.finish(stopped, TrialState.PRUNED, "never_learned", "It is pruned.", "futile", {}, decision)
    claim = begin(store, sweep, 1.0, None, 0.4)
    store.audit(claim, against(claim, "audited", []))
    return claim


# the twin


def test_all_of_it_arrives(store: Store, sweep: SweepRow) -> None:
    three_trials(store, sweep)
    experiment = RecordingExperiment(experiment_id="77")
    assert mirror(store, sweep, experiment).ship() == 3
    assert held(experiment) == expected(store, sweep)
    assert [run["name"] for run in held(experiment).values()] == ["0 fixed: failed", "1: never learned", "2: running"]
    assert [run["tags"]["collapse"] for run in held(experiment).values()] == ["false", "true", "false"]
    assert experiment.tags == {"sweep": sweep.name, **TAGS}
    assert experiment.description == "so far"
    again = store.find_sweep(sweep.name)
    assert again is not None
    assert (again.tracking, again.experiment_id) == ("memory", "77")
    assert store.pending(sweep.id) == []
    assert {t.run_id for t in store.trials(sweep.id)} == {run.run_id for run in experiment.runs.values()}


def test_a_decision_is_shown_and_fits_into_a_tag_however_many_it_was_compared_with(
    store: Store, sweep: SweepRow
) -> None:
    claim = begin(store, sweep, 1.0)
    experiment = RecordingExperiment()
    shipping = mirror(store, sweep, experiment)
    shipping.ship()
    assert held(experiment)["0"]["tags"]["audited"] == "false"
    store.audit(claim, against(claim, "audited", list(range(5000))))
    assert shipping.ship() == 1
    tags = held(experiment)["0"]["tags"]
    assert (tags["audited"], tags["counterfactual"]) == ("true", "More would have kept it.")
    shown = json.loads(tags["decision"])
    assert (shown["rule"], shown["reason"], shown["siblings"]) == ("futile", "Größe 手語.", 5000)


def test_what_goes_on_is_followed(store: Store, sweep: SweepRow) -> None:
    claim = three_trials(store, sweep)
    experiment = RecordingExperiment()
    shipping = mirror(store, sweep, experiment)
    shipping.ship()
    assert shipping.ship() == 0
    go_on(store, claim, 0.3)
    assert shipping.ship() == 1
    assert held(experiment) == expected(store, sweep)
    end(store, claim)
    assert shipping.ship() == 1
    assert held(experiment) == expected(store, sweep)


def test_a_metric_that_is_not_finite_leaves_a_gap(store: Store, sweep: SweepRow) -> None:
    begin(store, sweep, 1.0, None, 0.4)
    experiment = RecordingExperiment()
    mirror(store, sweep, experiment).ship()
    ((_, run),) = held(experiment).items()
    assert [step for step, _, _ in run["curves"]["dev/wer"]] == [1, 3]
    assert [step for step, _, _ in run["curves"]["dev/loss"]] == [1, 2, 3]


def test_a_trial_that_was_not_asked_for_yet_is_not_shown(store: Store, sweep: SweepRow) -> None:
    begin(store, sweep, 1.0)
    assert store.claim(sweep.id, "worker", 60) is not None
    experiment = RecordingExperiment()
    assert mirror(store, sweep, experiment).finish(5)
    assert list(held(experiment)) == ["0"]


def test_a_planned_trial_that_waits_is_scheduled(store: Store, sweep: SweepRow) -> None:
    experiment = RecordingExperiment()
    mirror(store, sweep, experiment).ship()
    assert held(experiment) == expected(store, sweep)
    assert held(experiment)["0"]["status"] == "SCHEDULED"


@pytest.mark.parametrize("state", [state for state in TrialState if state.terminal])
def test_every_end_has_its_status(store: Store, sweep: SweepRow, state: TrialState) -> None:
    end(store, begin(store, sweep, 0.5), state)
    experiment = RecordingExperiment()
    mirror(store, sweep, experiment).ship()
    run = held(experiment)["0"]
    wanted = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAILED": "FAILED", "CANCELLED": "KILLED"}
    assert (run["status"], run["tags"]["trial_state"]) == (wanted[state.value], state.value)
    assert run["end"] is not None


def test_a_trial_that_is_resumed_runs_again_in_the_same_run(store: Store, sweep: SweepRow) -> None:
    experiment = RecordingExperiment()
    claim = begin(store, sweep, 1.0)
    mirror(store, sweep, experiment).ship()
    store.hand_back(claim, "interrupted")
    mirror(store, sweep, experiment).ship()
    assert (held(experiment)["0"]["status"], held(experiment)["0"]["end"]) == ("SCHEDULED", None)
    again = store.claim(sweep.id, "other", 60)
    assert again is not None
    go_on(store, again, 0.5)
    mirror(store, sweep, experiment).ship()
    assert held(experiment) == expected(store, sweep)
    assert (held(experiment)["0"]["status"], held(experiment)["0"]["tags"]["attempt"]) == ("RUNNING", "2")


def test_what_it_read_is_shown_at_its_epochs_and_in_one_table(store: Store, sweep: SweepRow) -> None:
    claim, experiment = begin(store, sweep), RecordingExperiment()
    shipping = mirror(store, sweep, experiment)
    for epoch in range(1, 7):
        read = {epoch: examples_at(epoch)} if is_example_epoch(epoch) else {}
        store.record(claim, [epoch_row(epoch)], read)
        store.record(claim, [epoch_row(epoch)], {epoch: examples_at(99)})  # it is there already
        if epoch in (2, 3, 6):
            shipping.ship()
    (run,) = experiment.runs.values()
    epochs = [1, 2, 3, 4, 6]
    assert run.images == {("posteriorgram", epoch): posteriorgram(examples_at(epoch), epoch) for epoch in epochs}
    head, *rows = run.tables["sentences.json"]
    assert head == ["epoch", "sentence", "reference", "hypothesis"]
    assert rows == [[epoch, "dev-1", "REGEN MORGEN", f"HAAR {epoch}"] for epoch in epochs]
    assert run.datasets == {"c": DATASET}


def examples_at(epoch: int) -> Examples:
    log_probs = np.log(np.full((5, 3), 1 / 3)) - epoch
    sentences = [("dev-1", "REGEN MORGEN", f"HAAR {epoch}")]
    return examples(sentences, "dev-1", [1, 2], log_probs, ["<blank>", "REGEN", "MORGEN"])


def test_pictures_lie_in_the_best_run_and_move_with_it(store: Store, sweep: SweepRow) -> None:
    end(store, begin(store, sweep, 0.8))
    experiment, drawn = RecordingExperiment(), [b"first", b"second", b"third"]
    shipping = mirror(store, sweep, experiment, draw=lambda over: {"pictures/wer.png": drawn.pop(0)})

    def where() -> dict[str, dict[str, bytes]]:
        return {run.tags["number"]: run.artifacts for run in experiment.runs.values() if run.artifacts}

    shipping.ship()
    shipping.ship(final=True)
    assert where() == {}, "they are dear: they come after a minute, and at the end of the sweep"
    store.set_sweep_state(sweep.id, SweepState.COMPLETE)
    shipping.ship(final=True)
    assert where() == {"0": {"pictures/wer.png": b"first"}}
    shipping.ship(final=True)
    assert len(drawn) == 2, "nothing has changed"
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    end(store, begin(store, sweep, 0.5))
    store.set_sweep_state(sweep.id, SweepState.COMPLETE)
    shipping.ship(final=True)
    assert where() == {"1": {"pictures/wer.png": b"second"}}
    found = store.find_sweep(sweep.name)
    assert found is not None
    run_id = store.trials(sweep.id)[1].run_id
    assert found.facts["pictures"] == {"run": run_id, "paths": ["pictures/wer.png"]}
    store.forget_mirrored(sweep.id)
    found = store.find_sweep(sweep.name)
    assert found is not None
    assert "pictures" not in found.facts


def test_a_picture_that_cannot_be_drawn_stops_no_curve(
    store: Store, sweep: SweepRow, caplog: pytest.LogCaptureFixture
) -> None:
    end(store, begin(store, sweep, 0.8))
    store.set_sweep_state(sweep.id, SweepState.COMPLETE)
    experiment = RecordingExperiment()
    assert mirror(store, sweep, experiment, draw=lambda over: {}["none"]).finish(5)
    assert "pictures could not be drawn" in caplog.text
    assert held(experiment) == expected(store, sweep)


@pytest.mark.parametrize("ended", [True, False])
def test_the_best_model_is_kept_when_the_sweep_is_over(
    store: Store, sweep: SweepRow, tmp_path: Path, ended: bool
) -> None:
    for wer in (0.8, 0.4, 0.6):
        end(store, begin(store, sweep, wer))
    if ended:
        store.set_sweep_state(sweep.id, SweepState.COMPLETE)
    experiment, asked = RecordingExperiment(), []

    def best(trial: TrialRow) -> ModelFile:
        asked.append(trial.number)
        return ModelFile(f"best/{trial.number}", "s-best", tmp_path / "x.pt", "model.served", [], 90, {})

    shipping = mirror(store, sweep, experiment, best_model=best)
    shipping.ship()
    assert shipping.finish(5)
    shipping.ship(final=True)
    assert asked == ([1] if ended else [])
    assert [(run, step) for run, step, _ in experiment.models.values()] == (
        [(store.trials(sweep.id)[1].run_id, 1)] if ended else []
    )


def test_more_trials_than_a_page_arrive(store: Store, sweep: SweepRow) -> None:
    for _ in range(60):
        end(store, begin(store, sweep, 0.5))
    experiment = RecordingExperiment()
    shipping = mirror(store, sweep, experiment)
    assert shipping.ship() == 60
    assert held(experiment) == expected(store, sweep)
    assert len(experiment.runs) == 60
    assert shipping.ship() == 0


def test_more_epochs_than_a_page_arrive(store: Store, sweep: SweepRow) -> None:
    for _ in range(3):
        begin(store, sweep, *[0.5] * 600)
    experiment = RecordingExperiment()
    assert mirror(store, sweep, experiment).finish(30)
    assert held(experiment) == expected(store, sweep)


# trouble


class Fault:
    """One call of a tracker, counted from 1, that does not come back: it had arrived, or it had not."""

    def __init__(self, at: int = 0, *, arrived: bool = False) -> None:
        self.at, self.arrived, self.calls = at, arrived, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.calls += 1
            lost = self.calls == self.at
            if lost and not self.arrived:
                raise TrackingUnavailable("no answer")
            found = function(*args)
            if lost:
                raise TrackingUnavailable("no answer")
            return Torn(found, self) if isinstance(found, RecordingRun) else found

        return call


class Torn:
    """An experiment or a run whose calls go through a fault."""

    def __init__(self, target: Any, fault: Fault) -> None:
        self._target, self._fault = target, fault

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return self._fault.around(value) if callable(value) else value


def torn(experiment: RecordingExperiment, fault: Fault) -> Any:
    return Torn(experiment, fault)


def test_whichever_call_is_lost_the_same_content_arrives(store: Store) -> None:
    whole = Fault()
    sweep = new_sweep(store)
    three_trials(store, sweep)
    mirror(store, sweep, torn(RecordingExperiment(), whole)).ship()
    assert whole.calls > 10
    for at in range(1, whole.calls + 1):
        for arrived, died in ((False, False), (True, False), (True, True)):
            sweep = new_sweep(store)
            three_trials(store, sweep)
            experiment = RecordingExperiment(experiment_id=f"{at}")
            shipping = mirror(store, sweep, torn(experiment, Fault(at, arrived=arrived)))
            with pytest.raises(TrackingUnavailable):
                shipping.ship()
            if died:  # the process, too
                shipping = mirror(store, sweep, experiment)
            assert shipping.finish(5)
            assert held(experiment) == expected(store, sweep), (at, arrived, died)
            assert experiment.tags == {"sweep": sweep.name, **TAGS}
            assert experiment.description == "so far"
            found = store.find_sweep(sweep.name)
            assert found is not None
            assert found.experiment_id == f"{at}"


def test_what_was_not_marked_is_shipped_again_and_changes_nothing(
    store: Store, sweep: SweepRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_trials(store, sweep)
    experiment = RecordingExperiment()
    with monkeypatch.context() as patch:
        patch.setattr(store, "mark_mirrored", lambda *_: None)
        for _ in range(3):
            assert mirror(store, sweep, experiment).ship() == 3
    assert held(experiment) == expected(store, sweep)
    mirror(store, sweep, experiment).ship()
    assert held(experiment) == expected(store, sweep)


class Away:
    """A server that is not there, or refuses everything."""

    def __init__(self, error: Exception) -> None:
        self.error, self.asked = error, 0

    def __call__(self) -> ExperimentWriter:
        self.asked += 1
        raise self.error


def mirror_to(store: Store, sweep: SweepRow, open_experiment: Callable[[], ExperimentWriter]) -> Mirror:
    return Mirror(store, sweep, SPEC, TAGS, DATASET, open_experiment, lambda: "so far")


def test_finish_waits_no_longer_than_it_was_told(store: Store, sweep: SweepRow) -> None:
    three_trials(store, sweep)
    shipping = mirror_to(store, sweep, Away(TrackingUnavailable("refused the connection")))
    begun = time.monotonic()
    assert not shipping.finish(0.5)
    assert time.monotonic() - begun < 3
    assert shipping.trouble == "refused the connection"
    assert len(store.pending(sweep.id)) == 3, "nothing is lost"


def test_finish_does_not_wait_for_a_call_that_hangs(
    store: Store, sweep: SweepRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, answer = threading.Event(), threading.Event()

    def hang() -> ExperimentWriter:
        called.set()
        answer.wait(30)
        raise TrackingUnavailable("timed out")

    monkeypatch.setattr("sweeps.mirror.PAUSE_SECONDS", 0.05)
    shipping = mirror_to(store, sweep, hang)
    shipping.start()
    assert called.wait(10)
    begun = time.monotonic()
    assert not shipping.finish(0.3)
    assert time.monotonic() - begun < 5
    assert shipping.trouble == "a call to it has not come back"
    answer.set()


def test_finish_does_not_ask_again_for_what_was_refused(store: Store, sweep: SweepRow) -> None:
    away = Away(TrackingRefused("the experiment is deleted"))
    shipping = mirror_to(store, sweep, away)
    assert not shipping.finish(30)
    assert away.asked == 1
    assert shipping.trouble == "the experiment is deleted"


def test_in_the_background_it_outlives_every_trouble(
    store: Store, sweep: SweepRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.mirror.PAUSE_SECONDS", 0.1)
    claim = three_trials(store, sweep)
    experiment, troubles = RecordingExperiment(), [RuntimeError("odd"), TrackingUnavailable("away")]

    def opened() -> ExperimentWriter:
        if troubles:
            raise troubles.pop()
        return experiment

    shipping = mirror_to(store, sweep, opened)
    shipping.start()
    seen = set()
    deadline = time.monotonic() + 30
    while held(experiment) != expected(store, sweep) and time.monotonic() < deadline:
        seen.add(shipping.trouble)
        time.sleep(0.01)
    assert seen == {"", "away", "RuntimeError: odd"}
    go_on(store, claim, 0.2)
    assert shipping.finish(5)
    assert shipping.trouble == ""
    assert held(experiment) == expected(store, sweep)


# one server and another


@pytest.mark.parametrize(
    "other",
    [
        RecordingExperiment(experiment_id="1", tracking="http://b"),  # another server
        RecordingExperiment(experiment_id="2", tracking="http://a"),  # another experiment
        RecordingExperiment(experiment_id="1", tracking="http://a"),  # an emptied one, which counts from 1 again
    ],
)
def test_what_was_shipped_elsewhere_is_shipped_whole(
    store: Store, sweep: SweepRow, other: RecordingExperiment, caplog: pytest.LogCaptureFixture
) -> None:
    claim = three_trials(store, sweep)
    mirror(store, sweep, RecordingExperiment(tracking="http://a")).ship()
    assert caplog.text == ""
    go_on(store, claim, 0.5)
    mirror(store, sweep, other).ship()
    assert held(other) == expected(store, sweep)
    assert {t.run_id for t in store.trials(sweep.id)} == {run.run_id for run in other.runs.values()}
    assert f"MLflow at {other.tracking} has not the runs of sweep {sweep.name}" in caplog.text
    assert (other.tags, other.description) == ({"sweep": sweep.name, **TAGS}, "so far")
    found = store.find_sweep(sweep.name)
    assert found is not None
    assert (found.tracking, found.experiment_id) == (other.tracking, other.experiment_id)


def test_back_at_the_first_server_nothing_is_there_twice(store: Store, sweep: SweepRow) -> None:
    claim = three_trials(store, sweep)
    first, second = RecordingExperiment(tracking="http://a"), RecordingExperiment(tracking="http://b")
    for experiment in (first, second, first):
        mirror(store, sweep, experiment).ship()
        go_on(store, claim, 0.5)
    mirror(store, sweep, first).ship()
    assert held(first) == expected(store, sweep)


def test_the_same_server_is_not_sent_anything_twice(store: Store, sweep: SweepRow) -> None:
    three_trials(store, sweep)
    experiment = RecordingExperiment()
    mirror(store, sweep, experiment).ship()
    assert mirror(store, sweep, experiment).ship() == 0


def test_a_mirror_at_work_follows_when_all_marks_are_dropped(store: Store, sweep: SweepRow) -> None:
    claim = three_trials(store, sweep)
    experiment = RecordingExperiment()
    shipping = mirror(store, sweep, experiment)
    shipping.ship()
    experiment.runs.clear()
    experiment.tags.clear()
    experiment.description = ""
    store.forget_mirrored(sweep.id)
    assert shipping.ship() == 3
    go_on(store, claim, 0.2)
    assert shipping.ship() == 1
    assert held(experiment) == expected(store, sweep)
    assert (experiment.tags, experiment.description) == ({"sweep": sweep.name, **TAGS}, "so far")


def test_marks_that_were_dropped_in_the_middle_of_a_pass_are_not_set_by_it(
    store: Store, sweep: SweepRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_trials(store, sweep)
    experiment = RecordingExperiment()
    shipping = mirror(store, sweep, experiment)
    shipping.ship()
    store.mark_mirrored(store.trial(sweep.id, 1).id, store.trial(sweep.id, 1).run_id, [], 0)
    mark = store.mark_mirrored

    def dropped_first(*args: Any) -> None:
        store.forget_mirrored(sweep.id)
        mark(*args)

    monkeypatch.setattr(store, "mark_mirrored", dropped_first)
    shipping.ship()
    assert [p.trial.number for p in store.pending(sweep.id)] == [0, 1, 2]


# two mirrors at once


class Twins:
    """One experiment in which each of two mirrors makes runs before it sees the other's, as in a server between a
    search and a creation.
    """

    def __init__(self) -> None:
        self.all: dict[str, RecordingRun] = {}
        self.settled: list[str] = []

    def writer(self) -> Any:
        return _Twin(self)


class _Twin(RecordingExperiment):
    def __init__(self, twins: Twins) -> None:
        super().__init__()
        self.twins = twins

    def run(self, *args: Any, **more: Any) -> RecordingRun:
        run = super().run(*args, **more)
        self.twins.all.setdefault(run.run_id, run)
        return run

    def existing(self, run_id: str) -> RecordingRun:
        if run_id not in self.twins.all:
            raise TrackingRefused(f"run {run_id} is deleted")
        return self.twins.all[run_id]

    def settle(self, key: str, run_id: str) -> RecordingRun:
        for other in [run.run_id for run in self.twins.all.values() if run.key == key and run.run_id != run_id]:
            del self.twins.all[other]
        self.runs[key] = self.existing(run_id)
        return self.runs[key]

    def holds(self, run_id: str) -> bool:
        return run_id in self.twins.all

    def unfinished(self) -> Mapping[str, str]:
        return {run.run_id: run.key for run in self.twins.all.values() if run.status not in ENDED}


def in_twins(twins: Twins) -> Content:
    whole = RecordingExperiment()
    for run in twins.all.values():
        assert run.key not in whole.runs, "a trial has two runs"
        whole.runs[run.key] = run
    return held(whole)


def test_of_two_mirrors_that_make_the_same_runs_one_set_is_left(store: Store, sweep: SweepRow) -> None:
    claim = three_trials(store, sweep)
    twins = Twins()
    one, other = (mirror(store, sweep, twins.writer()) for _ in range(2))
    pending = store.pending
    # The second one makes its whole pass after the first has read what is pending, and before it has sent any.
    passes = iter([lambda: other.ship(), lambda: 0])

    def read_then_frozen(*args: Any, **more: Any) -> Any:
        found = pending(*args, **more)
        store.pending = pending  # type: ignore[method-assign]
        next(passes)()
        return found

    store.pending = read_then_frozen  # type: ignore[method-assign]
    one.ship()
    go_on(store, claim, 0.3)
    for each in (one, other, one):
        each.ship()
    assert in_twins(twins) == expected(store, sweep)
    assert {t.run_id for t in store.trials(sweep.id)} == set(twins.all)


def test_two_that_ship_the_same_trial_send_its_epochs_once(store: Store, sweep: SweepRow) -> None:
    claim = three_trials(store, sweep)
    experiment = RecordingExperiment()
    several = [mirror(store, sweep, experiment) for _ in range(3)]
    failures: list[BaseException] = []

    def ship(each: Mirror) -> None:
        try:
            for _ in range(10):
                each.ship()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=ship, args=(each,)) for each in several]
    for thread in threads:
        thread.start()
    for wer in (0.5, 0.4, 0.3):
        go_on(store, claim, wer)
    end(store, claim)
    for thread in threads:
        thread.join()
    assert failures == []
    assert several[0].finish(10)
    assert held(experiment) == expected(store, sweep)


def test_what_a_frozen_mirror_writes_over_when_it_wakes_is_put_right(
    store: Store, sweep: SweepRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = begin(store, sweep, 1.0)
    experiment = RecordingExperiment()
    frozen, awake = mirror(store, sweep, experiment), mirror(store, sweep, experiment)
    frozen.ship()
    go_on(store, claim, 0.5)
    log_epochs = RecordingRun.log_epochs

    def freeze(run: RecordingRun, points: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(RecordingRun, "log_epochs", log_epochs)
            end(store, claim)
            assert awake.finish(5)
        assert run.status == "FINISHED"
        log_epochs(run, points)

    with monkeypatch.context() as patch:
        patch.setattr(RecordingRun, "log_epochs", freeze)
        frozen.ship()
    assert held(experiment)["0"]["status"] == "RUNNING", "as it was when the frozen one read it"
    assert mirror(store, sweep, experiment).finish(5)
    assert held(experiment) == expected(store, sweep)


def test_if_it_dies_when_it_wakes_the_run_is_ended_all_the_same(store: Store, sweep: SweepRow) -> None:
    end(store, begin(store, sweep, 1.0))
    experiment = RecordingExperiment()
    shipping = mirror(store, sweep, experiment)
    shipping.ship()
    (run,) = experiment.runs.values()
    run.set_status("RUNNING")
    assert shipping.ship() == 0
    assert shipping.finish(5)
    assert held(experiment) == expected(store, sweep)


def test_a_run_in_whose_place_another_stands_is_deleted_at_the_end(store: Store, sweep: SweepRow) -> None:
    begin(store, sweep, 1.0)
    twins = Twins()
    shipping = mirror(store, sweep, twins.writer())
    shipping.ship()
    (key,) = [run.key for run in twins.all.values()]
    left, others = (RecordingRun(name, run_key, "left", 1_000) for name, run_key in (("f" * 32, key), ("e", "other/0")))
    twins.all |= {left.run_id: left, others.run_id: others}
    writer = shipping._experiment
    assert isinstance(writer, _Twin)
    writer.delete = lambda run_id: twins.all.pop(run_id)  # type: ignore[assignment, method-assign]
    assert shipping.finish(5)
    assert left.run_id not in twins.all
    assert others.run_id in twins.all, "a run of another sweep is not ours to delete"


def test_one_that_may_no_longer_ship_stops_at_the_next_trial(store: Store, sweep: SweepRow) -> None:
    three_trials(store, sweep)
    experiment = RecordingExperiment()
    shipping = mirror(store, sweep, experiment, may_ship=lambda: len(experiment.runs) < 2)
    shipping.ship()
    assert sorted(held(experiment)) == ["0", "1"]
    assert experiment.description == "", "that is another's by now"
    assert shipping.ship() == 0
    assert not shipping.finish(5)
    assert shipping.trouble == "another process ships this sweep by now"
    assert [p.trial.number for p in store.pending(sweep.id)] == [2]


# the server and the database


def test_the_server_is_looked_after_before_each_pass(
    store: Store, sweep: SweepRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.mirror.PAUSE_SECONDS", 0.05)
    three_trials(store, sweep)
    experiment, asked = RecordingExperiment(), []

    def ensure() -> None:
        asked.append(len(experiment.runs))
        if len(asked) < 3:
            raise TrackingUnavailable("it does not start yet")

    shipping = mirror(store, sweep, experiment, ensure_server=ensure)
    shipping.start()
    deadline = time.monotonic() + 30
    while len(asked) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert shipping.finish(5)
    assert asked[:3] == [0, 0, 0]
    assert held(experiment) == expected(store, sweep)


def test_a_database_that_is_away_is_waited_for(
    store: Store, sweep: SweepRow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sweeps.mirror.PAUSE_SECONDS", 0.05)
    three_trials(store, sweep)
    pending, answers = store.pending, [DatabaseUnavailable("db", "gone")] * 2

    def away(*args: Any, **more: Any) -> Any:
        if answers:
            raise answers.pop()
        return pending(*args, **more)

    monkeypatch.setattr(store, "pending", away)
    experiment = RecordingExperiment()
    shipping = mirror(store, sweep, experiment)
    assert shipping.finish(10)
    assert held(experiment) == expected(store, sweep)
    assert "stumbled" not in caplog.text


def test_a_sweep_that_was_deleted_ends_its_mirror(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.mirror.PAUSE_SECONDS", 0.05)
    sweep = new_sweep(store)
    shipping = mirror(store, sweep, RecordingExperiment())
    shipping.start()
    store.delete_sweep(sweep.id)
    shipping._thread.join(10)
    assert not shipping._thread.is_alive()
    assert sweep.name in shipping.trouble


def test_trials_that_have_nothing_to_show_keep_no_other_waiting(store: Store, sweep: SweepRow) -> None:
    end(store, begin(store, sweep))
    for _ in range(60):
        assert store.claim(sweep.id, f"worker {uuid.uuid4()}", 60) is not None
    claim = store.claim(sweep.id, "last", 60)
    assert claim is not None
    store.set_hyperparameters(claim, VALUES, None)
    experiment = RecordingExperiment()
    mirror(store, sweep, experiment).ship()
    assert list(held(experiment)) == ["0", str(claim.number)]
    assert store.count_pending(sweep.id) == (0, 0)


def test_the_description_is_written_when_it_changes_and_not_at_every_pass(store: Store, sweep: SweepRow) -> None:
    asked: list[int] = []

    def describe() -> str:
        asked.append(len(asked))
        return f"text {len(asked)}"

    experiment = RecordingExperiment()
    shipping = mirror(store, sweep, experiment, describe)
    for _ in range(5):
        shipping.ship()
    assert (len(asked), experiment.description) == (1, "text 1")
    assert shipping.finish(5)
    assert experiment.description == f"text {len(asked)}"


# a real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with local_server(tmp_path_factory.mktemp("server")) as running:
        yield running.url


@pytest.fixture
def client(server: str) -> MlflowClient:
    return MlflowClient(server)


def on_server(client: MlflowClient, experiment_id: str) -> Content:
    content: Content = {}
    for run in client.search_runs([experiment_id], run_view_type=ViewType.ACTIVE_ONLY):
        history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        content[run.data.tags["number"]] = {
            "name": run.info.run_name,
            "params": run.data.params,
            "tags": without_mlflows_own(run.data.tags),
            "curves": {
                name: sorted((point.step, point.timestamp, point.value) for point in points)
                for name, points in history.items()
            },
            "status": run.info.status,
            "end": run.info.end_time or None,
        }
    return content


def without_mlflows_own(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if not name.startswith("mlflow.") and name != "sweep_key"}


def test_a_server_holds_what_the_database_holds_whatever_is_replayed(
    store: Store, sweep: SweepRow, server: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = three_trials(store, sweep)
    experiment = open_experiment(server, sweep.name)
    with monkeypatch.context() as patch:
        patch.setattr(store, "mark_mirrored", lambda *_: None)
        mirror(store, sweep, experiment).ship()
    mirror(store, sweep, experiment).ship()
    assert on_server(client, experiment.experiment_id) == expected(store, sweep)
    store.hand_back(claim, "interrupted")
    shipping = mirror(store, sweep, open_experiment(server, sweep.name))
    shipping.ship()
    assert on_server(client, experiment.experiment_id) == expected(store, sweep)
    again = store.claim(sweep.id, "other", 60)
    assert again is not None
    go_on(store, again, 0.3)
    end(store, again)
    assert shipping.finish(10)
    assert on_server(client, experiment.experiment_id) == expected(store, sweep)
    assert client.get_experiment(experiment.experiment_id).tags["mlflow.note.content"] == "so far"


def test_a_run_deleted_on_the_server_stops_no_other(
    store: Store, sweep: SweepRow, server: str, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    deleted, other = begin(store, sweep, 1.0), begin(store, sweep, 1.0)
    experiment = open_experiment(server, sweep.name)
    shipping = mirror(store, sweep, experiment)
    shipping.ship()
    client.delete_run(store.trial(sweep.id, 0).run_id or "")
    for wer in (0.5, 0.4):
        go_on(store, deleted, wer)
        go_on(store, other, wer)
        shipping.ship()
    late = begin(store, sweep, 0.7)
    end(store, late)
    assert not shipping.finish(10), "not everything has arrived"
    assert list(shipping.refused) == [0]
    assert "trial 0 is left out" in shipping.trouble
    assert caplog.text.count("trial 0 is left out of MLflow from here on") == 1
    wanted = expected(store, sweep)
    assert on_server(client, experiment.experiment_id) == {"1": wanted["1"], "2": wanted["2"]}
    # Whoever goes on with the sweep later, and with that trial, begins a run for it that holds all.
    go_on(store, deleted, 0.3)
    assert mirror(store, sweep, open_experiment(server, sweep.name)).finish(10)
    assert on_server(client, experiment.experiment_id) == expected(store, sweep)


def test_a_deleted_experiment_loses_nothing(store: Store, sweep: SweepRow, server: str, client: MlflowClient) -> None:
    claim = three_trials(store, sweep)
    experiment = open_experiment(server, sweep.name)
    shipping = mirror(store, sweep, experiment)
    shipping.ship()
    client.delete_experiment(experiment.experiment_id)
    go_on(store, claim, 0.2)
    with pytest.raises(TrackingRefused):
        shipping.ship()
    assert not shipping.finish(10)
    assert shipping.refused == {}
    client.restore_experiment(experiment.experiment_id)
    assert shipping.finish(10)
    assert on_server(client, experiment.experiment_id) == expected(store, sweep)


def test_a_deleted_run_is_made_anew_when_everything_is_asked_for(
    store: Store, sweep: SweepRow, server: str, client: MlflowClient
) -> None:
    three_trials(store, sweep)
    shipping = mirror(store, sweep, open_experiment(server, sweep.name))
    shipping.ship()
    client.delete_run(store.trial(sweep.id, 1).run_id or "")
    store.forget_mirrored(sweep.id)
    assert shipping.finish(10)
    found = store.find_sweep(sweep.name)
    assert found is not None
    assert on_server(client, found.experiment_id or "") == expected(store, sweep)


@dataclass
class Fuse:
    """`pass` for so many requests, then a fault."""

    left: float = math.inf
    fault: str = "pass"

    def __call__(self) -> str:
        self.left -= 1
        return "pass" if self.left >= 0 else self.fault


@pytest.mark.parametrize(
    ("fault", "requests"),
    [
        ("refuse", (0, 5, 11, 17)),
        ("error500", (3, 8, 15, 24)),
        ("half", (0, 0, 14, 19)),
        ("hang:1.5", (2, 9, 14)),
        *(pytest.param(fault, range(0, 60, 2), marks=pytest.mark.slow) for fault in ("refuse", "error500", "half")),
    ],
)
def test_whatever_is_wrong_with_the_server_each_epoch_arrives_once(
    store: Store,
    sweep: SweepRow,
    server: str,
    client: MlflowClient,
    fault: str,
    requests: Sequence[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    claim = three_trials(store, sweep)
    fuse, troubles = Fuse(), 0
    with proxied(server, fuse) as proxy:
        for left in requests:  # from where it stands, after so many requests, by a process that begins anew
            fuse.left, fuse.fault = left, fault
            try:
                mirror_to(store, sweep, lambda: open_experiment(proxy.url, sweep.name, "the server")).ship(final=True)
            except TrackingUnavailable:
                troubles += 1
            go_on(store, claim, *[0.5] * 3)
        assert troubles >= 3
        assert proxy.seen[fault.partition(":")[0]] >= troubles
        end(store, claim)
        fuse.left = math.inf
        assert mirror_to(store, sweep, lambda: open_experiment(proxy.url, sweep.name, "the server")).finish(20)
    found = store.find_sweep(sweep.name)
    assert found is not None
    assert on_server(client, found.experiment_id or "") == expected(store, sweep)


def test_a_mirror_whose_server_never_answered_keeps_rows_and_says_so(
    store: Store, sweep: SweepRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("sweeps.mirror.PAUSE_SECONDS", 0.05)
    three_trials(store, sweep)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        shipping = mirror_to(store, sweep, lambda: open_experiment(uri, sweep.name))
        shipping.start()
        deadline = time.monotonic() + 20
        while not shipping.trouble and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not shipping.finish(0.2)
    assert f"MLflow at {uri} does not answer" in shipping.trouble
    assert store.count_pending(sweep.id) == (3, 6)


@pytest.mark.slow
def test_a_server_that_was_killed_is_started_again_and_one_that_was_lost_is_filled_anew(
    store: Store, sweep: SweepRow, tmp_path: Path
) -> None:
    claim = three_trials(store, sweep)
    with local_server(tmp_path) as own:
        shipping = Mirror(
            *(store, sweep, SPEC, TAGS, DATASET, lambda: open_experiment(own.url, sweep.name, "own"), lambda: "so far"),
            ensure_server=own.ensure_alive,
        )
        shipping.ship()
        for lost in (False, True):
            kill_tree(own)
            if lost:
                for file in tmp_path.glob("mlflow.db*"):
                    file.unlink()
            go_on(store, claim, 0.2)
            assert shipping.finish(60)
            found = store.find_sweep(sweep.name)
            assert found is not None
            assert on_server(MlflowClient(own.url), found.experiment_id or "") == expected(store, sweep)


def kill_tree(server: LocalServer) -> None:
    """SIGKILL of the whole of it, as from a machine that runs out of memory."""
    processes = [psutil.Process(server._supervisor.pid), *server._tree]
    for process in processes:
        process.kill()
    server._supervisor.wait()
    psutil.wait_procs(processes, timeout=10)


@pytest.mark.slow
def test_a_server_that_dies_is_waited_for(store: Store, sweep: SweepRow, tmp_path: Path) -> None:
    claim = three_trials(store, sweep)
    with local_server(tmp_path) as first:
        port = int(first.url.rpartition(":")[2])
        shipping = mirror(store, sweep, open_experiment(first.url, sweep.name))
        shipping.ship()
    go_on(store, claim, 0.2)
    with pytest.raises(TrackingUnavailable):
        shipping.ship()
    with local_server(tmp_path, port=port) as second:
        assert shipping.finish(20)
        found = MlflowClient(second.url).get_experiment_by_name(sweep.name)
        assert found is not None
        assert on_server(MlflowClient(second.url), found.experiment_id) == expected(store, sweep)
