"""Optuna as sampler and as record: what to try next, and a record of every trial in Optuna's own tables.

The sampler is asked in memory, over our own rows. Optuna's TPE ranks every pruned trial behind every complete one,
and pruned ones by their last step before their value, so that a dead trial that ended by patience outranks a good
pruned one; over our rows each finished trial has the value of `value_for_sampler`, whatever ended it. What Optuna's
tables hold is the record that its dashboard shows, with states as they are.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, TypeAlias

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from model.diagnosis import best_epoch, takeoff_epoch
from model.types import EpochReport, Hyperparameters, mixed_seed
from sweeps import states
from sweeps.errors import DatabaseUnavailable
from sweeps.optuna_tables import begin_trial, end_trial
from sweeps.records import PriorRow, TrialRow
from sweeps.spec import Choices, FloatRange, IntRange, Parameter, SearchSpace, SweepSpec
from sweeps.store import alone, database_errors, engine_options, pinging

optuna.logging.set_verbosity(optuna.logging.WARNING)


SHOWN_TRIALS = 2_000
"""A sampler is shown so many trials at most. TPE takes the best tenth, and never more than 25 of them, for the good
ones; of the density of all others thousands say no more than these, and each costs 10 microseconds of every ask."""

SHOWN_BEST = 100
"""... of which so many are the best ones, however old."""

Memory: TypeAlias = dict[int, tuple[tuple[float, float], states.TrialState, FrozenTrial | None]]
"""What a sampler was shown of a trial, by its id, with the bounds of the learning rate and the trial's state then; None
where it lay outside the space. A trial that is over never changes, one under way counts as no more than that."""

TRIES = 10
"""How often another suggestion is asked for where one was tried before; then one is drawn that was not."""


def suggest(
    spec: SweepSpec,
    number: int,
    siblings: Sequence[TrialRow],
    curves: Mapping[int, Sequence[EpochReport]],
    constant_wer: float,
    *,
    learning_rate: FloatRange | None = None,
    priors: Sequence[PriorRow] = (),
    memory: Memory | None = None,
) -> dict[str, Any]:
    """Hyperparameters for trial `number`, learned from the sweep's other trials.

    The sampler's seed follows from the sweep's seed and the trial's number, so a sweep that goes on never repeats
    itself. Trials with an override, or outside the space, are not shown to it: where the learning rate was narrowed,
    TPE would place those beyond the new bounds upon them. So a sweep whose bounds were moved begins by spreading its
    trials again. Trials under way repel the sampler (constant liar, against several workers trying one thing). Where a
    space can be counted, what was tried is not suggested again before all was.

    Args:
        curves: epochs 1, 2, ... of each sibling, by its id.
        constant_wer: dev WER of the best constant sentence (fraction).
        learning_rate: bounds in place of the spec's: what a range test or an alarm has found.
        priors: trials of earlier sweeps, which the sampler is shown as if they were this sweep's.
        memory: of who asks again and again about this sweep.
    """
    space = spec.space if learning_rate is None else spec.space.model_copy(update={"learning_rate": learning_rate})
    known = [t for t in siblings if t.in_space and t.hyperparameters and t.number != number]
    distributions = _distributions(space)
    seen = [_shown_prior(prior, distributions) for prior in priors if space.contains(prior.hyperparameters)]
    if spec.sampler.name == "tpe":
        seen += _shown_trials(known, curves, constant_wer, space, distributions, {} if memory is None else memory)
    tpe = spec.sampler.name == "tpe" and len(seen) >= spec.sampler.startup_trials
    shown = _most_telling(seen) if tpe else []

    def suggested(again: Sequence[int]) -> dict[str, Any]:
        if spec.sampler.name == "tpe" and not tpe:
            return _spread_out(space, mixed_seed(spec.seed, "startup", *again), number)
        seed = mixed_seed(spec.seed, "sampler", number, *again)
        sampler = _tpe(seed, space, shown, distributions) if tpe else optuna.samplers.RandomSampler(seed=seed)
        return space.only_active(optuna.create_study(sampler=sampler, storage=_Shown(shown)).ask(distributions).params)

    tried = [t.hyperparameters for t in known]
    values = suggested(())
    again = 0
    while values in tried and not spec.sampler.repeats and again < TRIES:
        again += 1
        values = suggested((again,))
    if values in tried and not spec.sampler.repeats:
        untried = [each for each in space.configurations() or [] if each not in tried]
        return random.Random(mixed_seed(spec.seed, "untried", number)).choice(untried or [values])
    return values


def _tpe(
    seed: int, space: SearchSpace, shown: Sequence[FrozenTrial], distributions: Mapping[str, BaseDistribution]
) -> optuna.samplers.BaseSampler:
    settings: dict[str, Any] = {"seed": seed, "n_startup_trials": 0, "multivariate": True, "constant_liar": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if space.conditional():
            # A group is of parameters that are there together: each is modelled over the trials that have it.
            return optuna.samplers.TPESampler(**settings, group=True)
        known = any(trial.state is TrialState.COMPLETE for trial in shown)
        return _PlainTPE(distributions if known else {}, **settings)


class _PlainTPE(optuna.samplers.TPESampler):
    """TPE over trials that all have the same parameters, which takes a third of an ask to find out by itself."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], **settings: Any) -> None:
        super().__init__(**settings)
        self._common = {name: each for name, each in sorted(distributions.items()) if not each.single()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._common


class _Shown(optuna.storages.InMemoryStorage):
    """Trials that a sampler is shown as they are. A study that is given them copies and checks each, which took most of
    the time of an ask where there are 2,000.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._shown = trials
        for number, trial in enumerate(trials, start=1):  # 0 is the one that is asked for
            trial.number = number

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        asked = super().get_all_trials(study_id, deepcopy, states)
        return [trial for trial in self._shown if states is None or trial.state in states] + asked


def value_for_sampler(reports: Sequence[EpochReport], constant_wer: float, verdict: str | None) -> float:
    """What a finished trial counts for with TPE, which knows values by their order alone. Lower is better.

    1. It took off (0 to 1): by its best WER. Stopped early, as too slow, it stands behind all that were better at
       the same epoch, as theirs only fell since. To guess what more epochs would have given it made no clear
       difference over recorded runs: TPE tells the best tenth from the rest, and the rest only by where they are.
    2. It took off and then diverged (1 to 2): by its best WER, behind all of those: its neighbours may diverge sooner.
    3. It was stopped as too slow before it took off (2 to 3), which it might have done: by its lowest dev loss.
    4. It never took off (3 to 4): by its lowest dev loss. Its WER is noise, 97 % as empty as 188 %; its loss falls
       from the uniform output's to that of the best constant posterior and on, the nearer to takeoff the lower. This
       matters while less than a tenth of the trials has taken off: then it leads to where they do. Without a loss: 4.
    5. It diverged before takeoff, or has no epoch: infinite.

    Args:
        reports: epochs 1, 2, ... of the trial.
        constant_wer: dev WER of the best constant sentence (fraction).
        verdict: on the trial.
    """
    wers = [report.wer for report in reports]
    diverged = verdict == "diverged"
    if takeoff_epoch(wers, constant_wer) is not None:
        best = best_epoch(wers)
        assert best is not None
        return diverged + _below_one(best[1])
    if diverged or not reports:
        return math.inf
    losses = [loss for report in reports if math.isfinite(loss := report.value("dev/loss"))]
    return (2 if verdict == "too_slow" else 3) + _below_one(min(losses, default=math.inf))


def counts_for_sampler(trial: TrialRow, reports: Sequence[EpochReport], constant_wer: float) -> float | None:
    """`value_for_sampler` of a finished trial; None where a fault cut it short before it took off: it says nothing."""
    value = value_for_sampler(reports, constant_wer, trial.verdict)
    ended_by_itself = trial.state in (states.TrialState.COMPLETE, states.TrialState.PRUNED)
    return value if ended_by_itself or value < 1 else None


def _below_one(value: float) -> float:
    """0 to 1 for 0 to infinity, in the same order."""
    return 1 - 1 / (1 + max(0.0, value))


def load_sampler(spec: SweepSpec) -> None:
    """Import what the first suggestion does: for the start of TPE a second, and three on a busy machine."""
    if spec.sampler.name == "tpe":
        from scipy.stats import qmc  # noqa: F401


def _spread_out(space: SearchSpace, seed: int, number: int) -> dict[str, Any]:
    """Point `number` of a scrambled Halton sequence: ten such points cover each range, ten random ones leave holes.

    Halton 1960; scrambling as in Owen 2017 (arXiv 1706.02808).
    """
    from scipy.stats import qmc  # takes a second to import: no command waits for it that does not sample

    parameters = space.parameters()
    sequence = qmc.Halton(len(parameters), scramble=True, rng=seed)
    point = sequence.fast_forward(number).random(1)[0]
    return space.only_active({name: parameters[name].at(u) for name, u in zip(parameters, point.tolist(), strict=True)})


def _shown_trials(
    trials: Sequence[TrialRow],
    curves: Mapping[int, Sequence[EpochReport]],
    constant_wer: float,
    space: SearchSpace,
    distributions: Mapping[str, BaseDistribution],
    memory: Memory,
) -> list[FrozenTrial]:
    """Those of them that lie in the space."""
    rates, shown = (space.learning_rate.low, space.learning_rate.high), []
    for trial in trials:
        known = memory.get(trial.id)
        if known is None or known[:2] != (rates, trial.state):
            frozen = None
            if space.contains(trial.hyperparameters or {}):
                frozen = _seen_by_sampler(trial, curves.get(trial.id, ()), constant_wer, distributions)
            known = memory[trial.id] = rates, trial.state, frozen
        if known[2] is not None:
            shown.append(known[2])
    return shown


def _most_telling(trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """At most SHOWN_TRIALS of them, in their order: the best, and the latest of the others."""
    if len(trials) <= SHOWN_TRIALS:
        return trials
    order = sorted(range(len(trials)), key=lambda place: (_rank(trials[place]), -place))
    best, others = order[:SHOWN_BEST], sorted(order[SHOWN_BEST:])
    return [trials[place] for place in sorted(best + others[SHOWN_BEST - SHOWN_TRIALS :])]


def _rank(trial: FrozenTrial) -> float:
    return math.inf if trial.value is None else trial.value


def _seen_by_sampler(
    trial: TrialRow, reports: Sequence[EpochReport], constant_wer: float, distributions: Mapping[str, BaseDistribution]
) -> FrozenTrial:
    state, value = TrialState.RUNNING, None
    if trial.state.terminal:
        value = counts_for_sampler(trial, reports, constant_wer)
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
    return _frozen(state, value, trial.hyperparameters or {}, distributions)


def _shown_prior(prior: PriorRow, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    value = math.inf if prior.value is None else prior.value
    return _frozen(TrialState.COMPLETE, value, prior.hyperparameters, distributions)


def _frozen(
    state: TrialState, value: float | None, values: Hyperparameters, distributions: Mapping[str, BaseDistribution]
) -> FrozenTrial:
    now = datetime.now()
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=state,
        value=value,
        datetime_start=now,
        datetime_complete=now if state.is_finished() else None,
        params=dict(values),
        distributions={name: distributions[name] for name in values},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )


def _distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    return {name: _distribution(parameter) for name, parameter in space.parameters().items()}


def _distribution(parameter: Parameter) -> BaseDistribution:
    match parameter:
        case Choices():
            return CategoricalDistribution(parameter.choices)
        case IntRange():
            return IntDistribution(parameter.low, parameter.high, log=parameter.log)
        case FloatRange():
            return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


class Study:
    """One sweep's record in Optuna's tables. Every write is idempotent: recovery is doing it again.

    It writes past Optuna's study, which keeps all the sweep's trials in memory and reads what has changed of them
    before every trial.
    """

    def __init__(self, database_url: str, spec: SweepSpec) -> None:
        self._url, self._name = database_url, spec.name
        with self._reaching(), alone(database_url):
            self._storage = optuna.storages.RDBStorage(database_url, engine_kwargs=engine_options(database_url))
            pinging(self._storage.engine)
            study = optuna.create_study(study_name=spec.name, storage=self._storage, load_if_exists=True)
            self._id = study._study_id
        self._distributions = _distributions(spec.space)
        self.memory: Memory = {}
        """Of `suggest`, about this sweep."""

    def close(self) -> None:
        """Give the connections back; each thread's own session goes with its thread."""
        with suppress(DatabaseUnavailable), self._reaching():  # away, there is nothing to give back
            self._storage.remove_session()
        self._storage.engine.dispose()

    def register(self, number: int, name: str | None, values: Hyperparameters) -> int:
        """Begin a RUNNING Optuna trial with these values; returns its id."""
        attributes = {"sweep_trial": number} | ({"name": name} if name else {})
        with self._reaching(), self._storage.engine.begin() as connection:
            return begin_trial(connection, self._id, values, self._distributions, attributes)

    def tell(self, trial: TrialRow, best_so_far: Mapping[int, float]) -> None:
        """End an Optuna trial as ours ended.

        Args:
            trial: a finished trial that has an Optuna trial.
            best_so_far: step (epoch) to best finite WER, for each step that is to be reported.
        """
        last = best_so_far[max(best_so_far)] if best_so_far else None
        state, value = TrialState.FAIL, None
        if trial.state is states.TrialState.COMPLETE and trial.best_wer is not None:
            state, value = TrialState.COMPLETE, trial.best_wer
        elif trial.state is states.TrialState.PRUNED:
            state, value = TrialState.PRUNED, last  # as Optuna's own pruned trials
        said = {"verdict": trial.verdict, "reason": trial.reason}
        assert trial.optuna_trial_id is not None
        with self._reaching(), self._storage.engine.begin() as connection:
            end_trial(connection, trial.optuna_trial_id, state, value, best_so_far, said)

    def orphans(self, known: Sequence[TrialRow]) -> list[int]:
        """Ids of the RUNNING Optuna trials that none of our trials points to: a crash came between the two writes,
        or a worker is between them just now.
        """
        ours = {trial.optuna_trial_id for trial in known}
        with self._reaching():
            running = self._storage.get_all_trials(self._id, deepcopy=False, states=(TrialState.RUNNING,))
        return [trial._trial_id for trial in running if trial._trial_id not in ours]

    def fail(self, optuna_trial_ids: Sequence[int]) -> None:
        """End these Optuna trials as failed."""
        with self._reaching():
            for optuna_trial_id in optuna_trial_ids:
                with suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self._storage.set_trial_state_values(optuna_trial_id, TrialState.FAIL)

    def delete(self) -> None:
        """Remove the study with its trials; nothing happens where it is gone."""
        with self._reaching(), suppress(KeyError):
            optuna.delete_study(study_name=self._name, storage=self._storage)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """
        Raises:
            DatabaseUnavailable: instead of the errors of Optuna and its database library.
        """
        try:
            with database_errors(self._url):
                yield
        except optuna.exceptions.StorageInternalError as error:
            raise DatabaseUnavailable(self._name, " ".join(str(error.__cause__ or error).split())) from error
