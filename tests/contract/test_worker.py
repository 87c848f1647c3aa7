"""What a worker does with a trial after each epoch: stops it, spares it as an audit, or alarms. Nothing is trained."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.floors import Floors
from model.types import EpochReport, TrainingConfig
from sweeps import judging, pruning
from sweeps.audit import is_audited
from sweeps.errors import DatabaseUnavailable
from sweeps.pruning import Decision, History
from sweeps.records import Claim, SweepRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.worker import suggested
from tests.curves import CONSTANT_WER, STEPS, report, run
from tests.rows import VALUES

FLOORS = Floors(CONSTANT_WER, "A", 4.0, 4.0, 13.5)
CONDEMNED = Decision(
    "futile", "never_learned", "Not learning.", "More would have kept it.", 5, {"spread": 0.02}, {"needed": 0.3}, (0, 2)
)


def spec_of(**changes: Any) -> SweepSpec:
    content = {"name": "s", "corpus": "x", "trainer": {"epochs": 24}, "budget": {"trials": 12}, **changes}
    return SweepSpec.model_validate(content)


EVERY_TRIAL = {"name": "plateau", "audit_share": 1.0}
NO_TRIAL = {"name": "plateau", "audit_share": 0.0}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{(tmp_path / 'sweeps.db').as_posix()}")
    yield store
    store.close()


@pytest.fixture
def sweep(store: Store) -> SweepRow:
    facts = {**vars(FLOORS), "dev_sequences": 110}
    made = store.create_sweep("s", {}, "", {"trials": 12}, facts, [])
    store.set_sweep_state(made.id, SweepState.RUNNING)
    return found(store)


def found(store: Store) -> SweepRow:
    sweep = store.find_sweep("s")
    assert sweep is not None
    return sweep


_workers = itertools.count()


def begin_without(store: Store, sweep: SweepRow, lease_seconds: float = 60) -> Claim:
    """A trial of a worker of its own, which may have no hyperparameters yet."""
    claim = store.claim(sweep.id, f"worker {next(_workers)}", lease_seconds)
    assert claim is not None
    return claim


def begin(store: Store, sweep: SweepRow, rate: float = 1e-3, lease_seconds: float = 60) -> Claim:
    claim = begin_without(store, sweep, lease_seconds)
    if claim.hyperparameters is None:
        store.set_hyperparameters(claim, {**VALUES, "learning_rate": rate}, None)
    return claim


def config(spec: SweepSpec, claim: Claim, rate: float = 1e-3) -> TrainingConfig:
    return spec.training(claim.number, {**VALUES, "patience": 30, "learning_rate": rate}, {})


def judged(store: Store, sweep: SweepRow, spec: SweepSpec, claim: Claim, curve: list[EpochReport]) -> TrialState | None:
    """Record the epochs, and ask whether the trial is over."""
    judging.record(store, claim, curve, CONSTANT_WER)
    return judging.Judge(spec, store, sweep).finish_if_over(claim, config(spec, claim), curve)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rules condemn every trial from epoch 5 on; the numbers of those they were asked about."""
    numbers: list[int] = []

    def decide(trial: Any, *_: Any, **__: Any) -> Decision | None:
        numbers.append(trial.number)
        epoch = trial.reports[-1].epoch
        return replace(CONDEMNED, epoch=epoch) if epoch >= 5 else None

    monkeypatch.setattr("sweeps.pruning.decide", decide)
    return numbers


# decisions and audits


def test_a_condemned_trial_is_stopped_with_its_decision(store: Store, sweep: SweepRow, asked: list[int]) -> None:
    spec, claim = spec_of(pruner=NO_TRIAL), begin(store, sweep)
    curve = run(5, 1e-3)
    assert not judged(store, sweep, spec, claim, curve[:4])
    assert judged(store, sweep, spec, claim, curve)
    trial = store.trial(sweep.id, 0)
    assert (trial.state, trial.verdict, trial.rule) == (TrialState.PRUNED, "never_learned", "futile")
    assert trial.reason == "Not learning. More would have kept it."
    assert {"spread": 0.02, "needed": 0.3, "epoch": 5, "siblings": 2}.items() <= trial.evidence.items()
    decision = store.decision(claim.trial_id)
    assert decision is not None
    assert (decision.rule, decision.epoch, decision.action, decision.siblings) == ("futile", 5, "stopped", [0, 2])
    assert (decision.numbers, decision.thresholds) == ({"spread": 0.02}, {"needed": 0.3})


def test_an_audited_trial_runs_on_to_its_own_end_and_no_rule_is_asked_again(
    store: Store, sweep: SweepRow, asked: list[int]
) -> None:
    spec, claim = spec_of(pruner=EVERY_TRIAL), begin(store, sweep)
    curve = run(24, 1e-3, takeoff=9)
    for epoch in range(1, 7):
        assert not judged(store, sweep, spec, claim, curve[:epoch])
    assert asked == [0] * 5
    store.hand_back(claim, "interrupted")
    again = begin(store, sweep, lease_seconds=-1)
    assert (again.number, again.attempt) == (0, 2)
    assert not judged(store, sweep, spec, again, curve[:12])
    store.reap(sweep.id)  # its worker died
    last = begin(store, sweep)
    assert not judged(store, sweep, spec, last, curve[:23])
    assert judged(store, sweep, spec, last, curve)
    assert asked == [0] * 5, "a rule was asked about an audited trial"
    trial, decision = store.trial(sweep.id, 0), store.decision(claim.trial_id)
    assert (trial.state, trial.verdict, trial.rule) == (TrialState.COMPLETE, "learned", "epochs")
    assert trial.reason.endswith("Audited: the rule futile would have stopped it at epoch 5.")
    assert decision is not None
    assert (decision.action, decision.epoch, decision.verdict) == ("audited", 5, "never_learned")


def test_an_audit_whose_answer_was_lost_is_looked_up_and_not_told_twice(
    store: Store, sweep: SweepRow, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, claim = spec_of(pruner=EVERY_TRIAL), begin(store, sweep)
    curve, judge, audit = run(5, 1e-3), judging.Judge(spec, store, sweep), store.audit
    judging.record(store, claim, curve, CONSTANT_WER)

    def lost(*arguments: Any) -> None:
        audit(*arguments)
        raise DatabaseUnavailable(store.url, "it went after the commit")

    with monkeypatch.context() as patch:
        patch.setattr(store, "audit", lost)
        with pytest.raises(DatabaseUnavailable):
            judge.finish_if_over(claim, config(spec, claim), curve)
    before = store.trial(sweep.id, 0).revision
    assert judge.finish_if_over(claim, config(spec, claim), curve) is None
    assert asked == [0]
    assert store.trial(sweep.id, 0).revision == before


def test_who_is_audited_does_not_depend_on_the_order(store: Store, sweep: SweepRow, asked: list[int]) -> None:
    spec = spec_of(pruner={"name": "plateau", "audit_share": 0.4}, seed=5)
    claims = [begin(store, sweep) for _ in range(12)]
    for claim in reversed(claims):
        judged(store, sweep, spec, claim, run(5 + claim.number % 3, 1e-3))
    audited = [row.number for row in store.decisions(sweep.id) if row.action == "audited"]
    assert audited == [number for number in range(12) if is_audited(5, number, 0.4)]
    assert 0 < len(audited) < 12
    running = [trial.number for trial in store.trials(sweep.id) if trial.state is TrialState.RUNNING]
    assert running == audited


def test_what_diverged_is_a_decision_and_is_never_audited(store: Store, sweep: SweepRow, asked: list[int]) -> None:
    spec, claim = spec_of(pruner=EVERY_TRIAL), begin(store, sweep)
    curve = [report(1, 1.0), replace(report(2, 1.0), skipped_steps=STEPS // 2)]
    assert judged(store, sweep, spec, claim, curve)
    trial, decision = store.trial(sweep.id, 0), store.decision(claim.trial_id)
    assert (trial.state, trial.verdict, trial.rule) == (TrialState.PRUNED, "diverged", "diverged")
    assert decision is not None
    assert (decision.rule, decision.action, decision.epoch) == ("diverged", "stopped", 2)
    assert decision.numbers == {"steps": STEPS, "skipped_steps": STEPS // 2}
    assert decision.thresholds == {"share": 0.01}
    assert decision.reason in trial.reason
    assert "30 of 60 steps of epoch 2" in trial.reason


def test_an_audited_trial_that_diverges_is_stopped_and_keeps_the_decision_that_condemned_it(
    store: Store, sweep: SweepRow, asked: list[int]
) -> None:
    spec, claim = spec_of(pruner=EVERY_TRIAL), begin(store, sweep)
    curve = run(6, 1e-3)
    assert not judged(store, sweep, spec, claim, curve)
    curve.append(replace(report(7, 1.0), skipped_steps=STEPS))
    assert judged(store, sweep, spec, claim, curve)
    trial, decision = store.trial(sweep.id, 0), store.decision(claim.trial_id)
    assert (trial.state, trial.rule) == (TrialState.PRUNED, "diverged")
    assert decision is not None
    assert (decision.rule, decision.action) == ("futile", "audited")


def test_pruner_none_decides_nothing(store: Store, sweep: SweepRow, asked: list[int]) -> None:
    spec, claim = spec_of(pruner="none"), begin(store, sweep)
    assert not judged(store, sweep, spec, claim, run(20, 1e-3))
    assert (asked, store.decisions(sweep.id)) == ([], [])


def test_optunas_pruners_decide_and_are_audited_the_same_way(store: Store, sweep: SweepRow) -> None:
    for share, action in ((0.0, "stopped"), (1.0, "audited")):
        spec = spec_of(pruner={"name": "threshold", "upper": 0.9, "n_warmup_steps": 3, "audit_share": share})
        claim = begin(store, sweep)
        over = judged(store, sweep, spec, claim, run(4, 1e-3))
        decision = store.decision(claim.trial_id)
        assert decision is not None
        assert (decision.action, over) == (action, TrialState.PRUNED if action == "stopped" else None)
        assert decision.reason
        assert decision.counterfactual


# the alarm


def slow(store: Store, sweep: SweepRow, spec: SweepSpec, rate: float = 1e-5, epochs: int = 24) -> Claim:
    """A trial that ends without a takeoff after far too little learning rate."""
    claim = begin(store, sweep, rate)
    metrics = {"dev/wer": 1.0, "train/loss": 9.0, "dev/loss": 9.0, "probe/swap_t": 0.5}
    curve = [replace(r, metrics=metrics) for r in run(epochs, rate)]
    judging.record(store, claim, curve, CONSTANT_WER)
    if judging.Judge(spec, store, sweep).finish_if_over(claim, config(spec, claim, rate), curve):
        judging.Judge(spec, store, sweep).is_paused(found(store))
    return claim


def test_a_sweep_in_which_nothing_takes_off_pauses_and_goes_on_when_run_again(store: Store, sweep: SweepRow) -> None:
    spec = spec_of()
    for _ in range(3):
        slow(store, sweep, spec)
    assert not judging.Judge(spec, store, sweep).is_paused(found(store))
    assert found(store).facts == sweep.facts
    slow(store, sweep, spec, 2e-5)  # the fourth of twelve
    alarmed = found(store)
    assert alarmed.state is SweepState.PAUSED
    assert alarmed.facts["alarm"]["cause"] == "rates_too_low"
    assert alarmed.facts["alarm"]["proposal"] == {"low": 2.1e-5, "high": 6.3e-4}
    assert alarmed.reason == "nothing takes off (likely cause: rates too low); run it again to go on all the same"
    assert judging.Judge(spec, store, sweep).is_paused(found(store)), "another worker hands its trial back"
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    slow(store, sweep, spec)
    assert not judging.Judge(spec, store, sweep).is_paused(found(store))
    assert found(store).facts == alarmed.facts, "an alarm is raised once"


def test_it_may_go_on_by_itself(store: Store, sweep: SweepRow) -> None:
    spec = spec_of(on_alarm="continue")
    for _ in range(4):
        slow(store, sweep, spec)
    assert found(store).state is SweepState.RUNNING
    assert found(store).facts["alarm"]["cause"] == "rates_too_low"
    assert not judging.Judge(spec, store, sweep).is_paused(found(store))


def test_a_takeoff_before_or_a_failed_trial_keeps_it_quiet(store: Store, sweep: SweepRow) -> None:
    spec = spec_of()
    for _ in range(2):
        slow(store, sweep, spec)
    for _ in range(5):  # a fault is not a chance that was had
        claim = slow(store, sweep, spec, epochs=23)
        store.finish(claim, TrialState.FAILED, None, "a fault", "fault", {})
    assert not judging.Judge(spec, store, sweep).is_paused(found(store))
    learning = begin(store, sweep)
    judging.record(store, learning, run(9, 1e-3, takeoff=8), CONSTANT_WER)
    for _ in range(3):
        slow(store, sweep, spec)
    assert not judging.Judge(spec, store, sweep).is_paused(found(store))
    assert "alarm" not in found(store).facts


# the rates asked for


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_trials_to_come_take_their_rate_from_the_bounds_that_were_found_out(
    store: Store, sweep: SweepRow, sampler: str
) -> None:
    spec = spec_of(space={"learning_rate": {"low": 1e-5, "high": 2e-5, "log": True}}, sampler=sampler)

    def rate() -> float:
        claim = begin_without(store, sweep)
        values = suggested(spec, store, sweep, claim)
        store.set_hyperparameters(claim, dict(values), None)
        return float(values["learning_rate"])

    assert all(1e-5 <= rate() <= 2e-5 for _ in range(3))
    store.update_facts(sweep.id, {"learning_rate_bounds": {"low": 3e-4, "high": 9e-3, "by": "alarm"}})
    rates = [rate() for _ in range(6)]
    assert all(3e-4 <= each <= 9e-3 for each in rates)
    assert max(rates) / min(rates) > 3


# what is remembered


def test_who_judges_many_epochs_says_what_one_would_who_looks_for_the_first_time(
    store: Store, sweep: SweepRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(pruner=NO_TRIAL)
    judge, seen = judging.Judge(spec, store, sweep), list[list[History]]()
    curves = [run(24, 1e-3, takeoff=takeoff) for takeoff in (5, 7, 9, 20)]
    claims = [begin(store, sweep) for _ in curves]
    for epoch in range(1, 25):
        for claim, curve in zip(claims, curves, strict=True):
            if epoch > 2 * claim.number + 12:
                continue
            judging.record(store, claim, curve[epoch - 1 : epoch], CONSTANT_WER, before=curve[: epoch - 1])
            if epoch == 2 * claim.number + 12:
                store.finish(claim, TrialState.COMPLETE, "learned", "done", "epochs", {})
            for without in (None, claim.trial_id):
                assert judge.histories(without) == judging.Judge(spec, store, sweep).histories(without), epoch
        seen.append(judge.histories())
    assert [len(histories) for histories in seen] == [4] * 24
    assert all(a is b for a, b in zip(seen[-1], seen[-2], strict=True)), "what is over is seen once"
    assert [history.reports[-1].epoch for history in seen[-1]] == [12, 14, 16, 18]


def learning(takeoff: int | None, falls_to: float) -> list[EpochReport]:
    """A run whose losses go with its WER."""
    reports = run(24, 1e-3, takeoff=takeoff, falls_to=falls_to)
    return [replace(r, metrics={"dev/wer": r.wer, "dev/loss": 4 * r.wer, "train/loss": 4 * r.wer}) for r in reports]


def test_who_judges_many_trials_decides_as_one_who_looks_at_all_of_them(store: Store, sweep: SweepRow) -> None:
    """Trials that are over are looked at once; beside one that goes on."""
    spec, ended = spec_of(pruner=NO_TRIAL), list[TrialState]()
    judge, beside = judging.Judge(spec, store, sweep), begin(store, sweep)
    judging.record(store, beside, learning(8, 0.5)[:9], CONSTANT_WER)
    for takeoff, falls_to in [(5, 0.3), (5, 0.2), (7, 0.8), (5, 0.15), (12, 0.6), (None, 0.9)]:
        claim = begin(store, sweep)
        reports = learning(takeoff, falls_to)
        for epoch in range(1, 25):
            judging.record(store, claim, reports[epoch - 1 : epoch], CONSTANT_WER, before=reports[: epoch - 1])
            trial = History(claim.number, reports[:epoch], config(spec, claim), CONSTANT_WER)
            siblings = judging.Judge(spec, store, sweep).histories(claim.trial_id)
            wanted = pruning.decide(trial, siblings, sweep.floors, dev_sequences=110)
            state = judge.finish_if_over(claim, config(spec, claim), reports[:epoch])
            decision = store.decision(claim.trial_id)
            assert (state is TrialState.PRUNED) == (wanted is not None) == (decision is not None)
            if decision is not None and wanted is not None:
                assert (decision.reason, decision.siblings) == (wanted.reason, list(wanted.siblings))
            if state is not None:
                ended.append(state)
                break
    assert ended.count(TrialState.PRUNED) >= 2, "something was there to decide"
    assert ended.count(TrialState.COMPLETE) >= 2


def test_a_sweep_in_which_a_trial_took_off_is_looked_at_no_more(
    store: Store, sweep: SweepRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judging.Judge(spec_of(), store, sweep)
    claim = begin(store, sweep)
    judging.record(store, claim, run(9, 1e-3, takeoff=8), CONSTANT_WER)
    assert not judge.is_paused(found(store))
    monkeypatch.setattr(Store, "siblings", lambda *_: pytest.fail("read again"))
    assert not judge.is_paused(found(store))
    store.set_sweep_state(sweep.id, SweepState.PAUSED)
    assert judge.is_paused(found(store))
