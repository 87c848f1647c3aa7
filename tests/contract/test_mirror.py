"""What the database holds reaches the tracker: on the recording twin, and on a real MLflow server."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from sweeps.mirror import STATUS, Mirror
from sweeps.records import Claim, DecisionRow, PlannedTrial, SweepRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.summary import config_of
from tests.rows import VALUES, epoch_row
from tracking.mlflow_writer import open_experiment
from tracking.recording_writer import RecordingExperiment, RecordingRun
from tracking.server import local_server
from tracking.writer import ExperimentWriter, TrackingRefused, TrackingUnavailable

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "x", "budget": {"trials": 100}})
TAGS = {"corpus_hash": "c", "git_commit": "g"}

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
    """Claim a trial and record these epochs."""
    claim = store.claim(sweep.id, "worker", 60)
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
    store: Store, sweep: SweepRow, experiment: ExperimentWriter, describe: Callable[[], str] = lambda: "so far"
) -> Mirror:
    return Mirror(store, sweep, SPEC, TAGS, lambda: experiment, describe)


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
            "name": trial.name or f"trial {trial.number}",
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
        run.tags["number"]: {
            "name": run.name,
            "params": run.params,
            "tags": run.tags,
            "curves": run.curves,
            "status": run.status,
            "end": run.end_time_ms,
        }
        for run in experiment.runs.values()
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
    assert [run["name"] for run in held(experiment).values()] == ["fixed", "trial 1", "trial 2"]
    assert [run["tags"]["collapse"] for run in held(experiment).values()] == ["false", "true", "false"]
    assert experiment.tags == {"sweep": sweep.name, **TAGS}
    assert experiment.description == "so far"
    again = store.find_sweep(sweep.name)
    assert again is not None
    assert again.experiment_id == "77"
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


def test_more_trials_than_a_page_arrive(store: Store, sweep: SweepRow) -> None:
    for _ in range(60):
        end(store, begin(store, sweep, 0.5))
    experiment = RecordingExperiment()
    shipping = mirror(store, sweep, experiment)
    assert shipping.ship() == 50
    assert shipping.finish(30)
    assert held(experiment) == expected(store, sweep)
    assert len(experiment.runs) == 60


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
    return Mirror(store, sweep, SPEC, TAGS, open_experiment, lambda: "so far")


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


def test_another_server_gets_the_whole_curve(store: Store, sweep: SweepRow) -> None:
    claim = begin(store, sweep, 1.0, 0.9)
    mirror(store, sweep, RecordingExperiment()).ship()
    go_on(store, claim, 0.5)
    other = RecordingExperiment()
    mirror(store, sweep, other).ship()
    assert held(other) == expected(store, sweep)
    assert store.trial(sweep.id, 0).run_id == next(iter(other.runs.values())).run_id


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
