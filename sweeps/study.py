"""The only importer of optuna: what to try next, and a record of every trial in Optuna's own tables.

The sampler is asked in memory, over our own rows. Optuna's TPE ranks every pruned trial behind every complete one,
and pruned ones by their last step before their value, so that a dead trial that ended by patience outranks a good
pruned one; over our rows each finished trial simply has its best WER. What Optuna's tables hold is the record that
its dashboard shows, with states as they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import qmc

from model.types import Hyperparameters, mixed_seed
from sweeps import states
from sweeps.records import TrialRow
from sweeps.spec import IntRange, Range, SweepSpec

optuna.logging.set_verbosity(optuna.logging.WARNING)


class _Given(optuna.samplers.BaseSampler):
    """Registers values that were chosen elsewhere."""

    def __init__(self, values: Hyperparameters) -> None:
        self.values = values

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.values[param_name]


def suggest(spec: SweepSpec, number: int, siblings: Sequence[TrialRow]) -> dict[str, Any]:
    """Hyperparameters for trial `number`, learned from the sweep's other trials.

    The sampler's seed follows from the sweep's seed and the trial's number, so a sweep that goes on never repeats
    itself. Trials outside the space, or with an override, are not shown to it; trials under way repel it (constant
    liar, against several workers trying one thing).
    """
    seen = [t for t in siblings if t.in_space and t.hyperparameters and t.number != number]
    seed = mixed_seed(spec.seed, "sampler", number)
    if spec.sampler.name == "random":
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
    elif len(seen) < spec.sampler.startup_trials:
        return _spread_out(spec, number)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True)
    distributions = _distributions(spec)
    study = optuna.create_study(sampler=sampler)
    study.add_trials([_seen_by_sampler(trial, trial.hyperparameters or {}, distributions) for trial in seen])
    return study.ask(distributions).params


def _spread_out(spec: SweepSpec, number: int) -> dict[str, Any]:
    """Point `number` of a scrambled Halton sequence: ten such points cover each range, ten random ones leave holes.

    Halton 1960; scrambling as in Owen 2017 (arXiv 1706.02808).
    """
    ranges = spec.space.ranges()
    sequence = qmc.Halton(len(ranges), scramble=True, rng=mixed_seed(spec.seed, "startup"))
    point = sequence.fast_forward(number).random(1)[0]
    return {name: _at(bounds, share) for (name, bounds), share in zip(ranges.items(), point.tolist(), strict=True)}


def _at(bounds: Range, share: float) -> float | int:
    """The value at `share` (0 to 1) of a range."""
    low, high = float(bounds.low), float(bounds.high) + isinstance(bounds, IntRange)
    value = low * (high / low) ** share if bounds.log else low + share * (high - low)
    return min(int(value) if isinstance(bounds, IntRange) else value, bounds.high)


def _seen_by_sampler(
    trial: TrialRow, values: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> FrozenTrial:
    if not trial.state.terminal:
        return create_trial(state=TrialState.RUNNING, params=dict(values), distributions=dict(distributions))
    if trial.best_wer is None and trial.state is not states.TrialState.PRUNED:
        return create_trial(state=TrialState.FAIL, params=dict(values), distributions=dict(distributions))
    # Diverged before any finite WER: a result, and the worst there is.
    wer = math.inf if trial.best_wer is None else trial.best_wer
    return create_trial(value=wer, params=dict(values), distributions=dict(distributions))


def _distributions(spec: SweepSpec) -> dict[str, BaseDistribution]:
    return {
        name: IntDistribution(bounds.low, bounds.high, log=bounds.log)
        if isinstance(bounds, IntRange)
        else FloatDistribution(bounds.low, bounds.high, log=bounds.log)
        for name, bounds in spec.space.ranges().items()
    }


class Study:
    """One sweep's record in Optuna's tables. Every write is idempotent: recovery is doing it again."""

    def __init__(self, database_url: str, spec: SweepSpec) -> None:
        # SQLite: wait for a writer as long as our own store does.
        postgres = database_url.startswith("postgresql")
        engine = {"pool_pre_ping": True} if postgres else {"connect_args": {"timeout": 30}}
        self._storage = optuna.storages.RDBStorage(database_url, engine_kwargs=engine)
        self._study = optuna.create_study(
            study_name=spec.name,
            sampler=_Given({}),  # nobody asks here: `suggest` does
            storage=self._storage,
            load_if_exists=True,
        )
        self._distributions = _distributions(spec)

    def close(self) -> None:
        """Give the connections back; each thread's own session goes with its thread."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def register(self, number: int, name: str | None, values: Hyperparameters) -> int:
        """Begin a RUNNING Optuna trial with these values; returns its id."""
        self._study.sampler = _Given(values)
        trial = self._study.ask(self._distributions)
        trial.set_user_attr("sweep_trial", number)
        if name:
            trial.set_user_attr("name", name)
        return trial._trial_id

    def tell(self, trial: TrialRow, best_so_far: Mapping[int, float]) -> None:
        """End an Optuna trial as ours ended.

        Args:
            trial: a finished trial that has an Optuna trial.
            best_so_far: step (epoch) to best finite WER, for each step that is to be reported.
        """
        assert trial.optuna_trial_id is not None
        record = optuna.Trial(self._study, trial.optuna_trial_id)
        try:
            for step, wer in best_so_far.items():
                with warnings.catch_warnings():  # a replay reports again what stands already
                    warnings.filterwarnings("ignore", message="The reported value is ignored")
                    record.report(wer, step)
            record.set_user_attr("verdict", trial.verdict)
            record.set_user_attr("reason", trial.reason)
            if trial.state is states.TrialState.COMPLETE and trial.best_wer is not None:
                self._study.tell(record, trial.best_wer, skip_if_finished=True)
            elif trial.state is states.TrialState.PRUNED:
                self._study.tell(record, state=TrialState.PRUNED, skip_if_finished=True)
            else:
                self._study.tell(record, state=TrialState.FAIL, skip_if_finished=True)
        except optuna.exceptions.UpdateFinishedTrialError:
            return  # told before, or by another worker just now

    def fail_orphans(self, known: Sequence[TrialRow]) -> None:
        """End the RUNNING Optuna trials that none of our trials points to: a crash came between the two writes.

        Only while no worker of the sweep lives.
        """
        ours = {trial.optuna_trial_id for trial in known}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial._trial_id not in ours:
                self._study.tell(trial.number, state=TrialState.FAIL)
