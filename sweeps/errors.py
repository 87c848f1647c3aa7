"""Errors that a person can act on. Each is shown as one line: the value, the rule it broke and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class SweepError(Exception):
    """An expected error: printed without a traceback."""


class SpecError(SweepError):
    """A spec that cannot be run; says where, what and how to mend it."""


class DatabaseUnavailable(SweepError):
    """The database cannot be opened, or was lost. The transaction in hand was rolled back and can be tried again."""

    def __init__(self, url: str, why: str) -> None:
        self.why = why
        super().__init__(f"database {url} cannot be used ({why}): check its address and that it runs, or name another")


class DatabaseOutdated(SweepError):
    """An older version made the database's tables; `command` brings them up to date."""

    def __init__(self, url: str, revision: str, needed: str, command: str) -> None:
        self.url, self.revision, self.needed = url, revision, needed
        dump = "make a dump, then " if url.startswith("postgresql") else ""
        super().__init__(
            f"database {url} has the tables of an older version (revision {revision}, this one needs {needed}): "
            f"{dump}run `{command}`"
        )


class SweepExists(SweepError):
    """A sweep of that name was made already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"sweep {name!r} exists already: run it again to go on with it, or choose another name")


class SpecChanged(SweepError):
    """A sweep of that name was made from another spec; `paths` are the places that differ."""

    def __init__(self, name: str, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        super().__init__(
            f"sweep {name!r} was made from another spec (differing: {', '.join(paths)}): "
            "put these back to go on with it, or choose another name"
        )


class TrainerChanged(SweepError):
    """A sweep of that name is trained by another trainer."""

    def __init__(self, name: str, used: str, given: str, built_in: str) -> None:
        known, other = (f"the {t} trainer" if t == built_in else t for t in (used, given))
        way_out = "leave --trainer out" if used == built_in else f"name {used} with --trainer"
        super().__init__(
            f"sweep {name!r} is trained by {known}, not by {other}: {way_out} to go on with it, or choose another name"
        )


class TrainerNotFound(SweepError):
    """`--trainer` names nothing that makes a trainer."""

    def __init__(self, reference: str, why: str, way_out: str) -> None:
        super().__init__(f"--trainer {reference}: {why}: {way_out}")


class SweepBusy(SweepError):
    """Another live process runs the sweep."""

    def __init__(self, name: str, holder: str, seconds_ago: float) -> None:
        self.holder = holder
        super().__init__(
            f"sweep {name!r} is being run by {holder} (last heard of {max(seconds_ago, 0):.0f} s ago): "
            f"let it finish, or end that one first; `sweeps work {name}` adds workers to it"
        )


class LeaseLost(SweepError):
    """The trial is no longer this worker's. Drop it: whoever holds it now goes on with it."""

    def __init__(self, number: int, attempt: int) -> None:
        super().__init__(
            f"trial {number} is no longer held by its attempt {attempt} (its lease ran out, or it is over): "
            "nothing was written; drop it"
        )


class CannotWork(SweepError):
    """A worker has not got what a sweep needs."""

    def __init__(self, sweep: str, why: str) -> None:
        super().__init__(f"sweep {sweep!r} cannot be worked on here: {why}")


class DiskTrouble(SweepError):
    """A checkpoint could not be written. The trial goes on elsewhere, or here once there is room."""

    def __init__(self, folder: Path, size: int, error: OSError) -> None:
        self.folder, self.size = folder, size
        why = error.strerror or str(error)
        super().__init__(f"no checkpoint could be written to {folder} ({why}): free or correct that place")


class SweepNotFound(SweepError):
    """No sweep has that name."""

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        super().__init__(f"there is no sweep {name!r}: {_nearest(name, known) or 'none of the names here is like it'}")


class TrialNotFound(SweepError):
    """The sweep has no trial of that number or name."""

    def __init__(self, sweep: str, wanted: str, known: Iterable[str] = ()) -> None:
        way_out = _nearest(wanted, known) or "name it by its number (from 0) or by its name in the spec"
        super().__init__(f"sweep {sweep!r} has no trial {wanted!r}: {way_out}")


class NoProposal(SweepError):
    """There are no learning rates to accept; `advice` is that of the sweep's alarm, if it has alarmed."""

    def __init__(self, sweep: str, advice: str | None) -> None:
        why = "has not alarmed" if advice is None else f"alarmed, but not for its learning rates ({advice})"
        super().__init__(f"--accept-proposal: sweep {sweep!r} {why}: leave the option out to go on")


class TrialsSpent(SweepError):
    """A trial was to be added, and the sweep has all trials of its budget."""

    def __init__(self, sweep: str, trials: int) -> None:
        super().__init__(f"sweep {sweep!r} has all {trials} trials of its budget: raise budget.trials to add one")


class TrialExists(SweepError):
    """A trial of that name was made with other values."""

    def __init__(self, sweep: str, trial: str) -> None:
        super().__init__(f"sweep {sweep!r} has a trial {trial!r} with other values: choose another name, or none")


class TrialTried(SweepError):
    """The sweep has a trial of this configuration."""

    def __init__(self, sweep: str, trial: str) -> None:
        super().__init__(
            f"sweep {sweep!r} has this configuration already, as trial {trial}: --repeat and a --name of its own train "
            "it again, from another seed"
        )


class NothingToDo(SweepError):
    """A sweep that has used up its budget, or its space, was told to go on."""

    def __init__(self, sweep: str, tried: int | None = None) -> None:
        """
        Args:
            tried: how many configurations its space has, where all were tried.
        """
        super().__init__(
            f"sweep {sweep!r} has done all trials of its budget: raise budget.trials in its spec and run it"
            if tried is None
            else f"sweep {sweep!r} has tried all {tried} configurations of its space: begin another sweep with a wider "
            "space, or with sampler.repeats: true"
        )


class NoWarmStart(SweepError):
    """A sweep cannot begin from the trials of an earlier one."""


class RangeTestFailed(SweepError):
    """A sweep's range test has no result."""

    def __init__(self, why: str, log: str) -> None:
        super().__init__(f"the range test failed ({why}): {log} has more; mend it, or begin with --skip-range-test")


class TokenExists(SweepError):
    """A token of that name was made already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a token {name!r} already (a revoked one keeps its name): choose another name")


class TokenNotFound(SweepError):
    """No token has that name."""

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        way_out = _nearest(name, known) or "`sweeps token list` shows those there are"
        super().__init__(f"there is no token {name!r}: {way_out}")


class WrongState(SweepError, ValueError):
    """The life cycle has no such step."""


class CannotTell(SweepError):
    """A message did not get to where it was to go. It can be tried again."""


class NotAllowed(SweepError):
    """A server wants a token, does not know the one it was shown, or allows it less than was asked."""


class ServerUnavailable(SweepError):
    """A server cannot be reached, or failed. What was asked for can be asked again."""

    def __init__(self, server: str, why: str) -> None:
        super().__init__(f"server {server} cannot be used ({why}): check its address and that it runs")


def code_of(kind: type[BaseException]) -> str:
    """What an error is called where it is not an object: `spec-changed`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


def revived(code: str, message: str, members: Mapping[str, Any]) -> SweepError | None:
    """The error of that code, as it was where it was raised; None where there is none."""
    kinds = [SweepError]
    for kind in kinds:
        if code_of(kind) == code:
            error = kind.__new__(kind)
            Exception.__init__(error, message)
            vars(error).update(members)
            return error
        kinds += kind.__subclasses__()
    return None


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
