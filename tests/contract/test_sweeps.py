"""What `Sweeps` promises, kept by `SweepService` on a database and by `Client` over HTTP: same values, same errors."""

from __future__ import annotations

import inspect
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from sweeps import Client, client
from sweeps import service as services
from sweeps.api.live import MOST_STREAMS
from sweeps.errors import (
    DatabaseUnavailable,
    NotAllowed,
    NothingToDo,
    ServerUnavailable,
    SpecChanged,
    SweepBusy,
    SweepError,
    SweepNotFound,
    TrainerChanged,
    TrialExists,
    TrialsSpent,
    WrongState,
)
from sweeps.interface import Change, Sweeps
from sweeps.records import Curve, EventRow, WorkerRow
from sweeps.service import SweepService
from sweeps.settings import Home
from sweeps.spec import SpecError
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from tests.contract.conftest import fresh_database
from tests.load import nothing
from tests.rows import epoch_row
from tests.serving import begun, corpus, policy_of, serving, spec, trained

TRAINER = f"{Path(nothing.__file__).resolve()}:Nothing"
IMPLEMENTATIONS = ("service", "client")
DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture(params=DATABASES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield from fresh_database(request, tmp_path)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url)
    yield store
    store.close()


@pytest.fixture
def ground(tmp_path: Path) -> Path:
    """A corpus root with one corpus, `small`."""
    corpus(tmp_path / "corpora" / "small")
    return tmp_path / "corpora"


@pytest.fixture
def service(store: Store, tmp_path: Path, ground: Path) -> SweepService:
    """As a server has it: with its policy, and the actor that one without a token is there."""
    policy = policy_of(ground, {"nothing": TRAINER})
    return SweepService(store, Home(tmp_path / "home"), "somebody at 127.0.0.1", policy)


@pytest.fixture
def address(store: Store, service: SweepService) -> Iterator[str]:
    assert service.policy is not None
    with serving(store, service.home, service.policy) as address:
        yield address


@pytest.fixture
def over_http(address: str) -> Iterator[Client]:
    with Client(address) as over_http:
        yield over_http


@pytest.fixture(params=IMPLEMENTATIONS)
def sweeps(request: pytest.FixtureRequest, service: SweepService) -> Sweeps:
    """Each of the two."""
    found: Sweeps = service if request.param == "service" else request.getfixturevalue("over_http")
    return found


@pytest.fixture
def content(ground: Path) -> dict[str, Any]:
    return spec("mine", "small")


def raised(what: Callable[[], Any]) -> SweepError:
    with pytest.raises(SweepError) as caught:
        what()
    return caught.value


def shape(value: Any) -> str:
    """Its text, in which a whole number is one whether it is a float or not."""
    return re.sub(r"(?<=\d)\.0\b", "", repr(value))


def same_error(one: SweepError, other: SweepError) -> None:
    said, said_there = (re.sub(r"\d+ s ago", "", str(error)) for error in (one, other))
    assert (type(one), said, vars(one)) == (type(other), said_there, vars(other))


# Both at once: whatever is there, they say the same of it


def methods() -> list[str]:
    return sorted(name for name, value in vars(Sweeps).items() if inspect.isfunction(value) and name[0] != "_")


@pytest.mark.parametrize("kind", [Client, SweepService])
@pytest.mark.parametrize("name", methods())
def test_signatures_are_those_of_the_protocol(kind: type, name: str) -> None:
    assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(Sweeps, name))
    assert name == "wait" or name in vars(kind), f"{kind.__name__} leaves {name} out"


@pytest.fixture(scope="module", params=DATABASES)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SweepService, Client]]:
    """A service, and a client of a server of it, for all who only ask. Sweeps with everything in them that can be told:
    ends of all kinds, decisions, an alarm, odd texts.
    """
    folder = tmp_path_factory.mktemp("both")
    corpus(folder / "corpora" / "small")
    policy = policy_of(folder / "corpora", {"nothing": TRAINER})
    with ExitStack() as stack:
        url = stack.enter_context(contextmanager(fresh_database)(request, folder))
        store = stack.enter_context(closing(Store(url)))
        service = SweepService(store, Home(folder / "home"), "somebody at 127.0.0.1", policy)
        varied(service)
        address = stack.enter_context(serving(store, service.home, policy))
        before = told(service)
        yield service, stack.enter_context(Client(address))
        assert told(service) == before, "an error changed something"


def told(service: SweepService) -> str:
    """As text, as NaN equals nothing. Without the seconds that a sweep was kept: `delete` keeps it while it looks."""
    states = [(each.sweep.name, each.sweep.state, each.counts) for each in service.sweeps()]
    return repr((states, service.trials("mine"), service.events("mine")))


def varied(service: SweepService) -> None:
    store, content = service.store, spec("mine", "small")
    sweep = service.create(content).sweep.sweep
    trained(store, sweep.id)
    trained(store, sweep.id, state=TrialState.PRUNED)
    begun(store, sweep.id)
    service.enqueue("mine", {"learning_rate": 2e-3, "hidden": 32}, trial_name="wide")
    store.register_worker(WorkerRow("w", "host", 1, 1.0, "cpu", {"torch": "2"}))
    alarm = {"sentence": "Nothing learns.", "advice": "Look.", "proposal": {"low": 1e-4, "high": 1e-3}}
    store.raise_alarm(sweep.id, alarm, None)
    store.add_event(sweep.id, EventRow("noted", "a\u2028b\u0085c 'ü' \U0001f600", data={"x": [1, 2.5, None, "é"]}))
    service.create({**content, "name": "other"}, trials=2)
    service.create({**content, "name": "of-its-own"}, trainer="nothing")
    service.cancel("other")


@pytest.mark.parametrize(
    "ask",
    [
        lambda s: s.sweeps(),
        lambda s: s.sweep("mine"),
        lambda s: s.sweep("other"),
        lambda s: s.trials("mine"),
        lambda s: s.trials("mine", after=1),
        lambda s: s.trials("mine", limit=1),
        lambda s: s.trials("mine", after=0, limit=1, state=TrialState.PRUNED),
        lambda s: s.trials("mine", state=TrialState.FAILED),
        lambda s: s.trial("mine", 0),
        lambda s: s.trial("mine", "1"),
        lambda s: s.trial("mine", "first"),
        lambda s: s.curve("mine", 0),
        lambda s: s.curve("mine", "wide"),
        lambda s: s.latest("mine"),
        lambda s: s.curves("mine"),
        lambda s: s.curves("mine", ["dev/wer", "spread/time", "never/measured"]),
        lambda s: s.curves("mine", [], after=0, limit=1),
        lambda s: s.curves("mine", beyond={0: 1, 1: 0, 7: 3}),
        lambda s: s.curves("mine", beyond={}),
        lambda s: s.curves("mine", beyond=dict.fromkeys(range(250), 2), after=0),
        lambda s: s.curves("other"),
        lambda s: s.decisions("mine"),
        lambda s: s.best("mine"),
        lambda s: s.best("other"),
        lambda s: s.best("of-its-own"),
        lambda s: s.conclusions("mine"),
        lambda s: s.conclusions("other"),
        lambda s: s.forecast("mine"),
        lambda s: s.forecast("mine", 0.02),
        lambda s: s.forecast("other"),
        lambda s: s.events("mine"),
        lambda s: s.events("mine", after=2, limit=2),
        lambda s: s.actions(),
        lambda s: s.actions(after=1, limit=2),
        lambda s: s.wait("other"),
    ],
)
def test_values_are_the_same(both: tuple[SweepService, Client], ask: Callable[[Sweeps], Any]) -> None:
    here, there = map(ask, both)
    assert type(here) is type(there)
    assert here == there
    assert shape(here) == shape(there)  # the types inside as well: no tuple that became a list


@pytest.mark.parametrize(
    "ask",
    [
        lambda s: s.sweep("mime"),
        lambda s: s.sweep("my sweep"),
        lambda s: s.sweep("ü"),
        lambda s: s.sweep("."),
        lambda s: s.sweep(".."),
        lambda s: s.sweep(""),
        lambda s: s.sweep("nothing-alike"),
        lambda s: s.trials("mime"),
        lambda s: s.trial("mime", 0),
        lambda s: s.trial("mine", 99),
        lambda s: s.trial("mine", "wid"),
        lambda s: s.trial("mine", 2**70),
        lambda s: s.trial("mine", -1),
        lambda s: s.trial("mine", "a/b"),
        lambda s: s.curve("mine", "frst"),
        lambda s: s.latest("mime"),
        lambda s: s.forecast("mime"),
        lambda s: s.forecast("mine", 0.0),
        lambda s: s.forecast("mine", 1.5),
        lambda s: s.curves("mime"),
        lambda s: s.curves("mine", ['dev/wer"']),
        lambda s: s.curves("mine", [""]),
        lambda s: s.curves("mine", ["dev/wer"] * 9),
        lambda s: s.decisions("mime"),
        lambda s: s.best("mime"),
        lambda s: s.conclusions("mime"),
        lambda s: s.events("mime"),
        lambda s: s.pause("mime"),
        lambda s: s.pause("other"),
        lambda s: s.resume("mime"),
        lambda s: s.resume("other"),
        lambda s: s.resume("other", trials=2),
        lambda s: s.resume("mine", trials=1),
        lambda s: s.stop("mime"),
        lambda s: s.stop("other"),
        lambda s: s.cancel("mime"),
        lambda s: s.enqueue("mime", {}),
        lambda s: s.enqueue("mine", {"learning_rat": 1}),
        lambda s: s.enqueue("mine", {"learning_rate": -1}),
        lambda s: s.enqueue("mine", {"patience": 10**9}),
        lambda s: s.enqueue("mine", {"learning_rate": 1}, trial_name="7"),
        lambda s: s.enqueue("mine", {"learning_rate": 1}, trial_name="range-test"),
        lambda s: s.enqueue("mine", {"learning_rate": 3e-3}),
        lambda s: s.delete("mime"),
        lambda s: s.delete("mine"),
        lambda s: next(s.live("mime")),
        lambda s: s.wait("mime"),
        lambda s: s.create({"name": "x"}),
        lambda s: s.create("name: [}"),
        lambda s: s.create("just words"),
        lambda s: s.create({"name": "x", "corpus": "nowhere"}),
        lambda s: s.create({"name": "x", "corpus": "small", "budget": {"trials": 0}, "wrokers": 2}),
        lambda s: s.create(spec("mine", "small"), trainer="nothin"),
        lambda s: s.create(spec("mine", "small"), trainer="nothing"),
        lambda s: s.create(spec("mine", "small", seed=1, sampler="random")),
    ],
)
def test_errors_are_the_same(both: tuple[SweepService, Client], ask: Callable[[Sweeps], Any]) -> None:
    one, other = (raised(lambda sweeps=sweeps: ask(sweeps)) for sweeps in both)
    same_error(one, other)
    assert not isinstance(other, ServerUnavailable | NotAllowed)


# Each of them


def test_a_sweep_is_made_once(sweeps: Sweeps, content: dict[str, Any]) -> None:
    made = sweeps.create(content)
    again, as_text = sweeps.create(content), sweeps.create(yaml.safe_dump(content))
    assert (made.new, again.new, as_text.new) == (True, False, False)
    assert made.sweep == again.sweep == as_text.sweep == sweeps.sweep("mine")
    assert made.sweep.sweep.state is SweepState.RUNNING
    assert made.notes == again.notes
    assert made.notes
    assert [trial.name for trial in sweeps.trials("mine")] == ["first"]
    assert [event.kind for event in sweeps.events("mine")] == ["created", "running"]


def test_what_is_paused_stays_so_when_it_is_created_again(sweeps: Sweeps, content: dict[str, Any]) -> None:
    sweeps.create(content)
    sweeps.pause("mine")
    assert sweeps.create(content).sweep.sweep.state is SweepState.PAUSED


def test_two_that_create_at_once_make_one_sweep(
    sweeps: Sweeps, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    both_have_looked, found = threading.Barrier(2), Store.find_sweep

    def find_together(store: Store, name: str) -> Any:
        sweep = found(store, name)
        if sweep is None and threading.current_thread().name != "alone":
            both_have_looked.wait(20)
        return sweep

    monkeypatch.setattr(Store, "find_sweep", find_together)
    made: list[bool] = []
    threads = [threading.Thread(target=lambda: made.append(sweeps.create(content).new)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    monkeypatch.undo()
    assert len(made) == 2
    assert any(made)
    assert [event.kind for event in sweeps.events("mine")] == ["created", "running"]
    assert len(sweeps.sweeps()) == 1


def test_another_spec_of_that_name_is_told_by_its_paths(sweeps: Sweeps, content: dict[str, Any]) -> None:
    sweeps.create(content)
    with pytest.raises(SpecChanged) as caught:
        sweeps.create({**content, "seed": 7, "trainer": {**content["trainer"], "hidden": 32}})
    assert caught.value.paths == ("seed (0 -> 7)", "trainer.hidden (16 -> 32)")
    sweeps.create({**content, "budget": {"trials": 9}, "workers": 3})  # how long and by how many is no difference


def test_another_trainer_is_told(sweeps: Sweeps, content: dict[str, Any]) -> None:
    sweeps.create(content, trainer="nothing")
    with pytest.raises(TrainerChanged):
        sweeps.create(content)
    assert not sweeps.create(content, trainer="nothing").new


def test_the_number_of_trials_may_be_given(sweeps: Sweeps, content: dict[str, Any]) -> None:
    assert sweeps.create(content, trials=7).sweep.sweep.budget["trials"] == 7
    with pytest.raises(SpecError, match=r"budget\.trials"):
        sweeps.create({**content, "name": "x", "first_trials": {"a": {}, "b": {}}}, trials=1)


def test_a_corpus_with_a_fatal_fault_is_taken_by_force_alone(
    sweeps: Sweeps, content: dict[str, Any], ground: Path
) -> None:
    from tests.corpora import write_corpus

    write_corpus(ground / "short", frames=3)  # no sentence has an alignment
    with pytest.raises(SpecError):
        sweeps.create({**content, "corpus": "short"})
    assert sweeps.sweeps() == []
    assert sweeps.create({**content, "corpus": "short"}, force=True).new


def test_pages(sweeps: Sweeps, service: SweepService, content: dict[str, Any]) -> None:
    sweep = sweeps.create({**content, "budget": {"trials": 9}}).sweep.sweep
    for _ in range(7):
        trained(service.store, sweep.id, epochs=1)
    pages = [sweeps.trials("mine", after=after, limit=3) for after in (-1, 2, 5, 6)]
    assert [[trial.number for trial in page] for page in pages] == [[0, 1, 2], [3, 4, 5], [6], []]
    found, after = [], 0
    while page := sweeps.events("mine", after=after, limit=4):
        found += page
        after = page[-1].id or 0
    assert found == sweeps.events("mine")
    assert len(found) == 2 + 2 * 7


def test_curves_are_told_in_columns_and_what_is_new_alone(
    sweeps: Sweeps, service: SweepService, content: dict[str, Any]
) -> None:
    store, sweep = service.store, sweeps.create({**content, "budget": {"trials": 9}}).sweep.sweep
    for _ in range(3):
        trained(store, sweep.id, epochs=2)
    claim = begun(store, sweep.id)
    rows = [epoch_row(1, 2 / 3), epoch_row(2, None)]
    for row in rows:
        assert store.reserve_epoch(claim, row.epoch)
        store.record(claim, [row])
    begun(store, sweep.id)  # without an epoch
    found = sweeps.curves("mine", ["dev/wer", "spread/time"])
    assert list(found) == [0, 1, 2, 3]
    assert found[3] == Curve([1, 2], {"dev/wer": [0.666667, None], "spread/time": [0.25, 0.25]})
    assert found[0].metrics["dev/wer"] == [round(row.metrics["dev/wer"], 6) for row in sweeps.curve("mine", 0)]
    pages = [sweeps.curves("mine", after=after, limit=2) for after in (-1, 1, 3)]
    assert [list(page) for page in pages] == [[0, 1], [2, 3], []]
    new = sweeps.curves("mine", beyond={0: 2, 3: 1, 2: 0})
    assert {number: curve.epochs for number, curve in new.items()} == {2: [1, 2], 3: [2]}


def test_verbs_twice_are_as_once(sweeps: Sweeps, service: SweepService, content: dict[str, Any]) -> None:
    sweep = sweeps.create(content).sweep.sweep
    steps = [
        (sweeps.pause, "PAUSED"),
        (sweeps.resume, "RUNNING"),
        (sweeps.stop, "STOPPED"),
        (sweeps.resume, "RUNNING"),
        (sweeps.cancel, "CANCELLED"),
    ]
    for verb, state in steps:
        before = len(sweeps.events("mine"))
        first = verb("mine")
        changes = len(sweeps.events("mine")) - before
        second = verb("mine")
        assert first.sweep.state == second.sweep.state == state
        assert first == second
        assert len(sweeps.events("mine")) == before + changes
    kinds = [event.kind for event in sweeps.events("mine") if event.trial_number is None]
    assert kinds == [
        *("created", "running", "paused", "running", "stopping", "stopped", "running", "cancelling", "cancelled"),
    ]
    assert service.store.sweep_state(sweep.id) is SweepState.CANCELLED
    assert {trial.state for trial in sweeps.trials("mine")} == {TrialState.CANCELLED}


def test_a_sweep_on_which_a_trial_runs_is_over_with_it(
    sweeps: Sweeps, service: SweepService, content: dict[str, Any]
) -> None:
    sweep = sweeps.create(content).sweep.sweep
    begun(service.store, sweep.id)
    stopping = sweeps.stop("mine")
    assert (stopping.sweep.state, stopping.counts[TrialState.RUNNING]) == (SweepState.STOPPING, 1)
    assert sweeps.stop("mine") == stopping
    assert sweeps.cancel("mine").sweep.state is SweepState.CANCELLING
    with pytest.raises(WrongState):
        sweeps.pause("mine")


def test_a_sweep_goes_on_with_a_higher_budget(sweeps: Sweeps, service: SweepService, content: dict[str, Any]) -> None:
    sweep = sweeps.create(content, trials=1).sweep.sweep
    trained(service.store, sweep.id)
    assert sweeps.pause("mine").sweep.state is SweepState.COMPLETE
    with pytest.raises(NothingToDo):
        sweeps.resume("mine")
    for _ in range(2):
        went_on = sweeps.resume("mine", trials=3).sweep
        assert (went_on.state, went_on.budget["trials"]) == (SweepState.RUNNING, 3)
    assert begun(service.store, sweep.id).number == 1


def test_a_configuration_waits_once(sweeps: Sweeps, service: SweepService, content: dict[str, Any]) -> None:
    sweep = sweeps.create(content).sweep.sweep
    asked = sweeps.enqueue("mine", {"learning_rate": 2e-3, "hidden": 32})
    assert sweeps.enqueue("mine", {"hidden": 32, "learning_rate": 2e-3}) == asked
    assert (asked.number, asked.state) == (1, TrialState.WAITING)
    assert asked.hyperparameters is not None
    assert asked.hyperparameters["learning_rate"] == 2e-3
    assert asked.overrides == {"hidden": 32}
    assert not asked.in_space
    named = sweeps.enqueue("mine", {"dropout": "0.25"}, trial_name="mild")
    assert (named.number, named.name, named.in_space) == (2, "mild", True)
    assert sweeps.enqueue("mine", {"dropout": 0.25}, trial_name="mild") == named
    with pytest.raises(TrialExists, match="'mild' with other values"):
        sweeps.enqueue("mine", {"dropout": 0.3}, trial_name="mild")
    sweeps.enqueue("mine", {"learning_rate": 4e-3})
    with pytest.raises(TrialsSpent):
        sweeps.enqueue("mine", {"learning_rate": 5e-3})
    assert len(sweeps.trials("mine")) == 4
    assert [begun(service.store, sweep.id, worker).number for worker in "abc"] == [0, 1, 2]
    assert [event.kind for event in sweeps.events("mine")].count("enqueued") == 3


def test_deleted_is_gone(sweeps: Sweeps, service: SweepService, content: dict[str, Any]) -> None:
    sweep = sweeps.create(content).sweep.sweep
    sweeps.create({**content, "name": "other"})
    trained(service.store, sweep.id)
    folder = service.home.checkpoints / "mine"
    folder.mkdir(parents=True)
    assert sweeps.delete("mine") is None  # type: ignore[func-returns-value]
    assert not folder.exists()
    with pytest.raises(SweepNotFound):
        sweeps.sweep("mine")
    assert [each.sweep.name for each in sweeps.sweeps()] == ["other"]
    assert sweeps.create(content).new


def test_what_is_worked_on_is_not_deleted(sweeps: Sweeps, service: SweepService, content: dict[str, Any]) -> None:
    sweep = sweeps.create(content).sweep.sweep
    service.store.register_worker(WorkerRow("w", "another host", 1, 1.0, "cpu", {}))
    begun(service.store, sweep.id)
    with pytest.raises(SweepBusy):
        sweeps.delete("mine")
    assert sweeps.sweep("mine").sweep.state is SweepState.RUNNING


def test_an_experiment_is_deleted_too_unless_kept(
    sweeps: Sweeps, service: SweepService, content: dict[str, Any]
) -> None:
    sweep = sweeps.create(content).sweep.sweep
    service.store.forget_mirrored(sweep.id, "http://mlflow.invalid", "7")  # it is of that experiment now
    with pytest.raises(SweepError, match="not known here"):
        sweeps.delete("mine")
    sweeps.delete("mine", keep_mlflow=True)
    assert sweeps.sweeps() == []


def test_who_asked_for_what(sweeps: Sweeps, content: dict[str, Any]) -> None:
    sweeps.create(content)
    sweeps.pause("mine")
    sweeps.resume("mine", trials=6)
    sweeps.enqueue("mine", {"hidden": 32}, trial_name="wide")
    sweeps.stop("mine")
    sweeps.cancel("mine")
    sweeps.delete("mine")
    found = sweeps.actions()
    assert {action.actor for action in found} == {"somebody at 127.0.0.1"}
    assert [(action.action, action.target) for action in found] == [
        ("create", "mine"),
        ("pause", "mine"),
        ("budget", "mine"),
        ("resume", "mine"),
        ("enqueue", "mine/wide"),
        ("stop", "mine"),
        ("cancel", "mine"),
        ("delete", "mine"),
    ]
    assert found[2].data == {"trials": 6}
    assert found[4].data["hidden"] == 32
    assert sweeps.actions(after=found[5].id or 0) == found[6:]


def test_wait_ends_with_the_sweep_or_its_time(sweeps: Sweeps, service: SweepService, content: dict[str, Any]) -> None:
    sweeps.create(content)
    assert sweeps.wait("mine", timeout=0.0).sweep.state is SweepState.RUNNING
    timer = threading.Timer(0.3, service.cancel, ["mine"])
    timer.start()
    assert sweeps.wait("mine", timeout=30).sweep.state is SweepState.CANCELLED
    timer.join()


# Live


class Watching:
    """Reads `live` in a thread."""

    def __init__(self, sweeps: Sweeps, name: str, after: int | None = None) -> None:
        self.changes: list[Change] = []
        self.error: SweepError | None = None
        self.thread = threading.Thread(target=self._read, args=(sweeps.live(name, after=after),), daemon=True)
        self.thread.start()

    def _read(self, changes: Iterator[Change]) -> None:
        try:
            for change in changes:
                self.changes.append(change)
        except SweepError as error:
            self.error = error

    def until(self, what: Callable[[], Any], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"not seen: {self.changes} {self.error}"
            time.sleep(0.02)

    def until_over(self) -> None:
        self.thread.join(30)
        assert not self.thread.is_alive()

    def events(self) -> list[str]:
        return [change.data.kind for change in self.changes if isinstance(change.data, EventRow)]

    def states(self) -> list[str]:
        """Of the sweep."""
        return [change.data.sweep.state for change in self.changes if change.kind == "status"]  # type: ignore[union-attr]

    def trials(self) -> dict[int, Any]:
        """As they were told last."""
        return {change.data.number: change.data for change in self.changes if change.kind == "trial"}  # type: ignore[union-attr]


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr("sweeps.api.live.LOOK_SECONDS", 0.05)
    monkeypatch.setattr(client, "FIRST_PAUSE_SECONDS", 0.02)


def test_what_happens_is_told_as_it_happens(sweeps: Sweeps, service: SweepService, content: dict[str, Any]) -> None:
    sweep = sweeps.create(content, trials=2).sweep.sweep
    before = [event.id for event in sweeps.events("mine")]
    watching = Watching(sweeps, "mine")
    watching.until(lambda: watching.states())
    trained(service.store, sweep.id)
    watching.until(lambda: 0 in watching.trials() and watching.trials()[0].state == "COMPLETE")
    trained(service.store, sweep.id, state=TrialState.PRUNED)
    sweeps.pause("mine")  # all trials are done: it is complete
    watching.until_over()
    assert watching.error is None
    assert watching.events() == ["claimed", "complete", "claimed", "pruned", "paused", "complete"]
    ids = [change.id for change in watching.changes]
    assert ids == sorted(ids)
    assert watching.trials() == {trial.number: trial for trial in sweeps.trials("mine")}
    assert watching.changes[-1] == Change("status", sweeps.sweep("mine"), ids[-1])
    told = [change.data.id for change in watching.changes if isinstance(change.data, EventRow)]
    assert before + told == [event.id for event in sweeps.events("mine")]


def test_within_a_look_events_come_first_and_the_sweep_last(
    sweeps: Sweeps, service: SweepService, content: dict[str, Any]
) -> None:
    sweep = sweeps.create(content, trials=1).sweep.sweep
    trained(service.store, sweep.id)
    sweeps.pause("mine")
    changes = list(sweeps.live("mine", after=0))
    assert [change.kind for change in changes] == [*["event"] * 6, "trial", "status"]
    assert list(sweeps.live("mine")) == [changes[-1]]


def test_it_goes_on_behind_any_event(sweeps: Sweeps, service: SweepService, content: dict[str, Any]) -> None:
    """And tells every trial that may have changed since, as it is now."""
    sweep = sweeps.create(content).sweep.sweep
    trained(service.store, sweep.id)
    begun(service.store, sweep.id)
    sweeps.cancel("mine")
    service.store.reap(sweep.id, ["w"])
    sweeps.cancel("mine")
    whole = list(sweeps.live("mine", after=0))
    ids = [change.id for change in whole if change.kind == "event"]
    for place, known in enumerate(ids):
        rest = list(sweeps.live("mine", after=known))
        assert [change.id for change in rest if change.kind == "event"] == ids[place + 1 :]
        assert {change.data.number for change in rest if change.kind == "trial"} == {0, 1}  # type: ignore[union-attr]
        assert rest[-1].kind == "status"


def test_a_deleted_sweep_is_told(sweeps: Sweeps, service: SweepService, content: dict[str, Any]) -> None:
    for delete in (lambda sweep: service.delete(sweep.name), lambda sweep: service.store.delete_sweep(sweep.id)):
        sweep = sweeps.create(content).sweep.sweep
        watching = Watching(sweeps, "mine")
        watching.until(lambda watching=watching: watching.states())
        delete(sweep)
        watching.until_over()
        assert str(watching.error) == str(SweepNotFound("mine"))
    assert watching.error is not None


def test_a_broken_connection_loses_nothing(
    service: SweepService, store: Store, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies three times; between its lives trials end."""
    assert service.policy is not None
    monkeypatch.setattr(client, "FIRST_PAUSE_SECONDS", 0.2)
    sweep = service.create(content, trials=3).sweep.sweep
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as over_http:
        watching = Watching(over_http, "mine")
        for number in range(3):
            with serving(store, service.home, service.policy, port=port):
                watching.until(lambda: watching.states())
                claim = begun(store, sweep.id)
                watching.until(lambda number=number: watching.events().count("claimed") == number + 1)
            store.record(claim, [epoch_row(1)])
            store.finish(claim, TrialState.COMPLETE, None, "It is over.", None, {})
        with serving(store, service.home, service.policy, port=port):
            service.pause("mine")
            watching.until_over()
    assert watching.error is None
    assert watching.events() == [*["claimed", "complete"] * 3, "paused", "complete"]
    assert watching.trials() == {trial.number: trial for trial in service.trials("mine")}
    assert watching.states()[-1] == "COMPLETE"


def test_a_server_that_stays_away_is_told(
    service: SweepService, store: Store, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.policy is not None
    monkeypatch.setattr("sweeps.client.PATIENCE_SECONDS", 2.0)
    service.create(content)
    with serving(store, service.home, service.policy) as address:
        over_http = Client(address)
        watching = Watching(over_http, "mine")
        watching.until(lambda: watching.states())
    watching.until_over()
    assert isinstance(watching.error, ServerUnavailable)
    assert isinstance(raised(lambda: over_http.sweep("mine")), ServerUnavailable)
    over_http.close()


def test_a_database_that_is_away_for_a_while_is_waited_for(
    service: SweepService, over_http: Client, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service.create(content)
    statuses, away = Store.statuses, [DatabaseUnavailable("sqlite:///SECRET", "it is away")] * 3

    def sometimes(store: Store, name: str | None = None) -> Any:
        if away:
            raise away.pop()
        return statuses(store, name)

    monkeypatch.setattr(client, "LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(Store, "statuses", sometimes)
    assert over_http.sweep("mine").sweep.name == "mine"
    assert not away
    away += [DatabaseUnavailable("sqlite:///SECRET", "it is away")] * 3
    watching = Watching(over_http, "mine")
    watching.until(lambda: watching.states())
    away += [DatabaseUnavailable("sqlite:///SECRET", "it is away")] * 100
    error = raised(lambda: over_http.sweep("mine"))
    assert isinstance(error, DatabaseUnavailable)
    assert "SECRET" not in str(error)
    away.clear()
    service.cancel("mine")
    watching.until_over()
    assert watching.states()[-1] == "CANCELLED"


def test_streams_that_were_left_make_room(address: str, service: SweepService, content: dict[str, Any]) -> None:
    service.create(content)
    for _ in range(MOST_STREAMS + 20):  # gone before a word of the answer
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            connection.sendall(b"GET /v1/sweeps/mine/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    deadline = time.monotonic() + 30
    while True:
        with httpx.stream("GET", f"{address}/v1/sweeps/mine/live") as answer:
            if answer.status_code == 200:
                return
        assert time.monotonic() < deadline, "their places are lost"
        time.sleep(0.1)


# The client alone


@pytest.mark.parametrize(
    "server", ["", "localhost:8765", "ftp://localhost", "http://", "http://[", "http://a:b:c", "http://u:pw@localhost"]
)
def test_an_address_that_is_none_is_refused(server: str) -> None:
    error = raised(lambda: Client(server))
    assert "write its address" in str(error)
    assert "pw" not in str(error)


def test_a_token_with_a_line_break_is_refused() -> None:
    with pytest.raises(SweepError, match="token"):
        Client("http://localhost", "swp_a\nb")


def test_a_token_may_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWEEPS_TOKEN", raising=False)
    monkeypatch.setenv("SWEEPS_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(SweepError, match="SWEEPS_TOKEN_FILE"):
        client.token_of_environment()
    (tmp_path / "token").write_text("swp_x\n", encoding="utf-8")
    assert client.token_of_environment() == "swp_x"
    monkeypatch.setenv("SWEEPS_TOKEN", "swp_y")
    assert client.token_of_environment() == "swp_y"


@pytest.mark.parametrize("content", [{"name": float("nan")}, {"name": {1, 2}}])
def test_a_spec_that_json_cannot_say_is_refused(over_http: Client, content: dict[str, Any]) -> None:
    with pytest.raises(SweepError, match="cannot be asked for"):
        over_http.create(content)


def test_what_is_no_server_of_ours_is_told() -> None:
    def foreign() -> Iterator[tuple[int, str]]:
        yield from [(200, "<html>"), (404, "<html>"), (302, ""), (200, "[]")]

    for status, body in foreign():
        over_http = Client("http://localhost")
        answer = httpx.MockTransport(lambda request, status=status, body=body: httpx.Response(status, text=body))
        over_http._http = httpx.Client(base_url="http://localhost/v1", transport=answer)
        with pytest.raises(ServerUnavailable):
            over_http.sweep("mine")
        over_http.close()
