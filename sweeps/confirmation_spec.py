"""The sweep that a confirmation is: which configurations it trains, with which seeds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model.diagnosis import TAKEOFF_MARGIN, counted
from model.types import mixed_seed
from sweeps.errors import SweepError, TrialNotFound
from sweeps.records import SweepRow, TrialRow
from sweeps.spec import SEEDS, SweepSpec, corpus_of, read_spec, spec_of
from sweeps.states import SweepState
from sweeps.summary import config_of

TOP, SEEDS_EACH = 3, 5
"""What is confirmed unless somebody asks otherwise."""

LONGEST_LABEL = 50
"""Of a configuration, so that there is room for its seed in a trial's name."""


def name_of(parent: str) -> str:
    """What the confirmation of a sweep is called unless somebody names it."""
    return f"{parent}-confirm"


def confirmation_spec(
    parent: SweepRow,
    trials: Sequence[TrialRow],
    name: str,
    *,
    top: int = TOP,
    seeds: int = SEEDS_EACH,
    against: str | None = None,
    epochs: int | None = None,
) -> tuple[SweepSpec, dict[str, Any]]:
    """The spec of a confirmation, and what is to be kept of what it confirms.

    Its trials are the runs, by seed and then by configuration: wherever it is interrupted, all are equally far. A seed
    has one initialisation and one order of the batches in all configurations, and none is a seed of the sweep: with
    those the winner was chosen.

    Args:
        trials: of the parent.
        top: so many of the best, besides the baseline.
        against: number or name of the baseline; None: `original`, else the spec's first named trial.
        epochs: at most, of each run; None: twice the sweep's.

    Raises:
        SweepError: the parent is not over, too few of its trials learned, or there is nothing to compare.
        TrialNotFound: there is no such baseline.
    """
    if not parent.state.terminal or parent.state is SweepState.DELETING:
        raise SweepError(
            f"sweep {parent.name!r} is {parent.state}: its best trials are not known yet; let it end, or `sweeps stop "
            f"{parent.name}`, then confirm"
        )
    spec = spec_of(parent)
    baseline = _baseline(parent, spec, trials, against)
    best = _best(parent, spec, trials, top)
    chosen = [baseline, *(t for t in best if _content(spec, t) != _content(spec, baseline))]
    if len(chosen) == 1:
        raise SweepError(
            f"--against {_label(baseline)}: is the best configuration itself, so there is nothing to compare; give "
            "--top 2, or name another one with --against"
        )
    longest = epochs or 2 * spec.trainer.epochs
    configurations: list[dict[str, Any]] = [
        {
            "name": _label(trial),
            "trial": trial.number,
            "values": _values(trial),
            **({} if trial.best_wer is None else {"wer": trial.best_wer}),
            "epochs": trial.epochs,
        }
        for trial in chosen
    ]
    runs = {
        run_name(each["name"], seed): {**each["values"], **_seeds(spec.seed, name, seed)}
        for seed in range(1, seeds + 1)
        for each in configurations
    }
    content = spec.model_dump(mode="json")
    content |= {
        "name": name,
        "corpus": _found(spec, parent),
        "trainer": {**content["trainer"], "epochs": longest},
        "first_trials": runs,
        "warm_start": [],
        "sampler": {**content["sampler"], "repeats": True},  # a configuration with another seed is what is wanted
        "range_test": False,
        "pruner": {"name": "none"},
        "on_alarm": "continue",
        "budget": {"trials": len(runs)},
    }
    about = {
        "parent": parent.name,
        "created_at": parent.created_at,
        "against": _label(baseline),
        "top": top,
        "seeds": seeds,
        "epochs": longest,
        "epochs_before": spec.trainer.epochs,
        "configurations": configurations,
    }
    return read_spec(content, f"confirmation of {parent.name}"), about


def run_name(configuration: str, seed: int) -> str:
    """What the run of a configuration with a seed (from 1) is called."""
    return f"{configuration}.seed-{seed}"


def differing(about: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Options that were given otherwise than the confirmation was made with; those that are None were not given."""
    known = {**about, "against": _known_as(about)}
    return [
        f"--{option} {about[option]}, not {value}"
        for option, value in asked.items()
        if value is not None and value not in (known[option], about[option])
    ]


def _known_as(about: Mapping[str, Any]) -> str:
    """The baseline by its number."""
    return next(str(each["trial"]) for each in about["configurations"] if each["name"] == about["against"])


def _seeds(of_sweep: int, name: str, seed: int) -> dict[str, int]:
    """By the confirmation's name as well: another one of the same sweep has other seeds."""
    return {kind: mixed_seed(of_sweep, "confirmation", name, kind, seed) for kind in SEEDS}


def _baseline(parent: SweepRow, spec: SweepSpec, trials: Sequence[TrialRow], against: str | None) -> TrialRow:
    named = {trial.name: trial for trial in trials if trial.name}
    if against is None:
        against = "original" if "original" in named else next((n for n in spec.first_trials if n in named), None)
    if against is None:
        raise SweepError(
            f"sweep {parent.name!r} has no named trial to hold the best ones against: give --against with a trial's "
            "number"
        )
    numbered = {str(trial.number): trial for trial in trials}
    found = named.get(against) or numbered.get(against)
    if found is None:
        raise TrialNotFound(parent.name, against, named)
    if found.hyperparameters is None:
        raise SweepError(f"--against {against}: was never begun, so its values are not known; name another trial")
    return found


def _best(parent: SweepRow, spec: SweepSpec, trials: Sequence[TrialRow], top: int) -> list[TrialRow]:
    """The best trials that learned, each configuration once."""
    floor = parent.facts["constant_wer"] - TAKEOFF_MARGIN
    learned = sorted(
        (t for t in trials if t.hyperparameters and t.best_wer is not None and t.best_wer <= floor),
        key=lambda t: (t.best_wer, t.number),
    )
    distinct: list[TrialRow] = []
    for trial in learned:
        if all(_content(spec, trial) != _content(spec, known) for known in distinct):
            distinct.append(trial)
    if len(distinct) < top:
        raise SweepError(
            f"--top {top}: {counted(len(distinct), 'configuration')} of sweep {parent.name!r} learned (WER clearly "
            f"below the {parent.facts['constant_wer']:.1%} of the best constant sentence); "
            + (f"give --top {len(distinct)}" if distinct else "there is nothing to confirm")
        )
    return distinct[:top]


def _content(spec: SweepSpec, trial: TrialRow) -> dict[str, Any]:
    """What makes a configuration, whatever its seed."""
    return config_of(spec, trial).model_dump(exclude={"epochs", *SEEDS})


def _values(trial: TrialRow) -> dict[str, Any]:
    given = {**(trial.hyperparameters or {}), **trial.overrides}
    return {name: value for name, value in given.items() if name not in ("epochs", *SEEDS)}


def _label(trial: TrialRow) -> str:
    """Its name, unless that is too long or looks like another's number."""
    named = trial.name and len(trial.name) <= LONGEST_LABEL and not trial.name.startswith("trial-")
    return str(trial.name) if named else f"trial-{trial.number}"


def _found(spec: SweepSpec, parent: SweepRow) -> dict[str, Any]:
    """The corpus where it was found, wherever this is asked."""
    content = spec.corpus.model_dump(mode="json")
    if spec.corpus.generated is not None:
        return content
    places = corpus_of(parent).model_dump(mode="json", include={"path", "annotations", "vocabulary"})
    return {**content, **places}
