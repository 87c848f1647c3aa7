"""Which model of a sweep is registered, with what evidence. Pure, but for what it reads."""

from __future__ import annotations

from dataclasses import dataclass

from sweeps.confirming import Confirmation, Confirmed, confirmation_of, run_of
from sweeps.errors import SweepError
from sweeps.records import SweepRow, TrialRow
from sweeps.service import find_sweep
from sweeps.store import Store
from sweeps.summary import best_trial, trial_label


@dataclass(frozen=True)
class Candidate:
    """A trained model, and what is known of it."""

    sweep: SweepRow
    """That trained it: the confirmation, where there is one."""
    trial: TrialRow
    verdict: str
    """`better`, `not shown better`, `worse`, `baseline` or `unconfirmed`."""
    wer: float
    """Of its configuration over all seeds of the confirmation; of its trial where there was none (fraction)."""
    description: str
    tags: dict[str, str]


def candidate(store: Store, sweep: SweepRow, *, unconfirmed: bool, force: bool) -> Candidate:
    """What is to be registered of a sweep, or of a confirmation.

    Args:
        unconfirmed: its best trial, though nothing confirmed it.
        force: the configuration with the lowest confirmed WER, though it is not shown better than the baseline, or is
            the baseline.

    Raises:
        SweepError: it was not confirmed, or nothing is shown better, and that was not asked for.
    """
    found = confirmation_of(store, sweep)
    if found is None:
        if not unconfirmed:
            raise SweepError(
                f"sweep {sweep.name!r} was not confirmed, so its best WER is partly luck: "
                f"`sweeps confirm {sweep.name}` confirms it; --unconfirmed registers its best trial all the same, "
                "tagged so"
            )
        return _unconfirmed(store, sweep)
    if unconfirmed:
        raise SweepError(f"--unconfirmed: {found.sweep} confirmed it; leave the option out")
    chosen = found.best
    if chosen is None and not force:
        raise SweepError(
            f"{found.sweep}: {found.sentence} --force registers the configuration with the lowest WER all the same"
        )
    return _confirmed(store, found, chosen or min(found.configurations, key=lambda each: each.measured.wer))


def _confirmed(store: Store, found: Confirmation, chosen: Confirmed) -> Candidate:
    sweep = find_sweep(store, found.sweep)
    trial = run_of(store, found, chosen)
    if trial is None:
        raise SweepError(f"{sweep.name}: no run of {chosen.name} has a WER, so there is no model of it")
    pair = next((each for each in found.pairs if each.name == chosen.name), None)
    verdict = pair.verdict if pair else "baseline"
    measured = chosen.measured
    tags = {
        **_tags(sweep, trial, verdict),
        "wer": f"{measured.wer:.4f}",
        "wer_of": "test" if found.split == "test" else "dev",
        "baseline": found.against,
        "configuration": chosen.name,
        "parent_sweep": found.parent,
        "seeds": str(found.seeds),
    }
    if measured.low is not None and measured.high is not None:
        tags |= {"wer_low": f"{measured.low:.4f}", "wer_high": f"{measured.high:.4f}"}
    if pair is not None:
        tags["difference"] = f"{pair.difference:.4f}"
    which = (
        f"These are the weights of its run {trial_label(trial)}, which had the lowest dev WER of its "
        f"{len(chosen.runs)} ({trial.best_wer:.1%}); the WER above is that of all of them."
    )
    said = [f"The configuration {chosen.name} of the sweep {found.parent}. {' '.join(found.said)}", which]
    return Candidate(sweep, trial, verdict, measured.wer, "\n\n".join(said), tags)


def _unconfirmed(store: Store, sweep: SweepRow) -> Candidate:
    trials = store.trials(sweep.id)
    trial = best_trial(trials)
    if trial is None or trial.best_wer is None:
        raise SweepError(f"sweep {sweep.name!r} has no trial with a WER yet: there is nothing to register")
    tags = {**_tags(sweep, trial, "unconfirmed"), "wer": f"{trial.best_wer:.4f}", "wer_of": "dev", "seeds": "1"}
    number = sum(each.best_wer is not None for each in trials)
    said = (
        f"NOT CONFIRMED. Trial {trial_label(trial)} of the sweep {sweep.name}: dev WER {trial.best_wer:.1%} at epoch "
        f"{trial.best_epoch}, the best of {number}, trained once and chosen on dev, which flatters it. The best "
        f"constant sentence scores {sweep.facts['constant_wer']:.1%}."
    )
    return Candidate(sweep, trial, "unconfirmed", trial.best_wer, said, tags)


def _tags(sweep: SweepRow, trial: TrialRow, verdict: str) -> dict[str, str]:
    return {
        "sweep": sweep.name,
        "trial": trial_label(trial),
        "epoch": str(trial.best_epoch),
        "verdict": verdict,
        "constant_wer": f"{sweep.facts['constant_wer']:.4f}",
        "corpus_hash": str(sweep.facts.get("corpus_hash", "")),
        "git_commit": str(sweep.facts.get("git_commit", "")),
    }
