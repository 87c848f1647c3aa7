"""The routes under /v1: each is one call of `SweepService`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from sweeps.api.access import Asker, Operator, Reader, operator, reader
from sweeps.api.live import Live
from sweeps.api.problems import MEDIA_TYPE, Problem, Refusal
from sweeps.api.remembered import Remembered
from sweeps.budget import IMPROVEMENT
from sweeps.forecast import Forecast
from sweeps.interface import MOST_BEYOND, PAGE, Best, Created
from sweeps.records import ActionRow, Curve, DecisionRow, EpochRow, EventRow, SweepStatus, TrialRow
from sweeps.service import SweepService, Watch
from sweeps.states import TrialState
from sweeps.summary import Conclusions

MOST_ROWS = 2**31 - 1
NAME = r"^[^\x00-\x1f\x7f/]{1,200}$"
"""What may be asked for; names that none has are among them, so that the nearest can be told."""

SweepName = Annotated[str, Path(pattern=NAME, description="a sweep")]
TrialName = Annotated[str, Path(pattern=NAME, description="a trial, by number or name")]
After = Annotated[int, Query(ge=-1, le=MOST_ROWS, description="rows behind this one")]
Limit = Annotated[int, Query(ge=1, le=PAGE, description="rows at most")]

router = APIRouter(
    prefix="/v1",
    responses={"default": {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": "What went wrong"}},
)


class NewSweep(BaseModel):
    model_config = ConfigDict(extra="forbid")

    spec: dict[str, Any] | str = Field(description="a spec: its content, or its text in YAML")
    trials: int | None = Field(None, ge=1, le=1_000_000, description="instead of the spec's budget.trials")
    trainer: str | None = Field(None, max_length=200, description="by the name it is configured under on this server")
    force: bool = Field(False, description="take a corpus that the check finds a fatal fault in")


class Resumed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    trials: int | None = Field(None, ge=1, le=1_000_000, description="the budget's trials from now on")


class Configuration(BaseModel):
    model_config = ConfigDict(extra="forbid")

    values: dict[str, Any] = Field(description="fields of a training config; what is not named is the spec's")
    name: str | None = Field(None, max_length=64, description="of the trial; default: from its values")
    repeat: bool = Field(False, description="train it again, from another seed, if the sweep has it; needs a name")


def asked(request: Request, asker: Asker) -> SweepService:
    service: SweepService = request.app.state.service
    return replace(service, actor=asker.actor)


def reading(request: Request, asker: Reader) -> SweepService:
    return asked(request, asker)


def operating(request: Request, asker: Operator) -> SweepService:
    return asked(request, asker)


Reading = Annotated[SweepService, Depends(reading)]
Operating = Annotated[SweepService, Depends(operating)]


@router.post("/sweeps", status_code=201, responses={200: {"model": Created, "description": "It was there already"}})
def create(new: NewSweep, service: Operating, request: Request, response: Response) -> Created:
    """Make a sweep and let it run, for the workers that are there or to come. Asked again it changes nothing."""
    if not request.app.state.preparing.acquire(blocking=False):
        raise Refusal(503, "busy", "other corpora are being read just now: ask again in a while", {"Retry-After": "10"})
    try:
        created = service.create(new.spec, trials=new.trials, trainer=new.trainer, force=new.force)
    finally:
        request.app.state.preparing.release()
    response.status_code = 201 if created.new else 200
    return created


@router.get("/sweeps")
def sweeps(service: Reading) -> list[SweepStatus]:
    """Every sweep, the oldest first."""
    return service.sweeps()


@router.get("/sweeps/{name}")
def sweep(name: SweepName, service: Reading) -> SweepStatus:
    """A sweep at a glance."""
    return service.sweep(name)


@router.get("/sweeps/{name}/trials")
def trials(
    name: SweepName, service: Reading, after: After = -1, limit: Limit = PAGE, state: TrialState | None = None
) -> list[TrialRow]:
    """Trials by number, those above `after`."""
    return service.trials(name, after=after, limit=limit, state=state)


@router.post("/sweeps/{name}/trials", status_code=201)
def enqueue(name: SweepName, configuration: Configuration, service: Operating) -> TrialRow:
    """Let a configuration wait that is to be trained next. Asked again with the same values it adds no second one."""
    return service.enqueue(name, configuration.values, trial_name=configuration.name, repeat=configuration.repeat)


@router.get("/sweeps/{name}/trials/{trial}")
def trial(name: SweepName, trial: TrialName, service: Reading) -> TrialRow:
    """One trial."""
    return service.trial(name, trial)


@router.get("/sweeps/{name}/trials/{trial}/curve")
def curve(name: SweepName, trial: TrialName, service: Reading) -> list[EpochRow]:
    """Every epoch of a trial so far."""
    return service.curve(name, trial)


@router.get("/sweeps/{name}/curves")
def curves(
    name: SweepName,
    service: Reading,
    metric: Annotated[list[str] | None, Query(description="by name, again for more")] = None,
    after: After = -1,
    limit: Limit = PAGE,
    beyond: Annotated[
        list[Annotated[str, Query(pattern=r"^([0-9]{1,9}:[0-9]{1,9})?$")]] | None,
        Query(max_length=MOST_BEYOND, description="TRIAL:EPOCH, again for more: only those, and what is behind that"),
    ] = None,
) -> dict[int, Curve]:
    """Some metrics of every trial that has epochs, by the trial's number, in columns and to six digits."""
    known = None if beyond is None else {int(n): int(e) for n, _, e in (each.partition(":") for each in beyond if each)}
    return service.curves(name, metric or (), after=after, limit=limit, beyond=known)


@router.get("/sweeps/{name}/latest")
def latest(name: SweepName, service: Reading, after: After = -1, limit: Limit = PAGE) -> dict[int, EpochRow]:
    """The last epoch of each trial that has one, by the trial's number, those above `after`."""
    return service.latest(name, after=after, limit=limit)


@router.get("/sweeps/{name}/decisions")
def decisions(name: SweepName, service: Reading) -> list[DecisionRow]:
    """What condemned trials: the rule, what was measured, what it was held against."""
    return service.decisions(name)


@router.get("/sweeps/{name}/best")
def best(name: SweepName, service: Reading) -> Best | None:
    """The trial with the lowest WER, and the command that trains it again."""
    return service.best(name)


@router.get("/sweeps/{name}/conclusions")
def conclusions(name: SweepName, service: Reading, request: Request) -> Conclusions:
    """What was learned about the parameters, and how often the rules were wrong."""
    remembered: Remembered = request.app.state.remembered
    return remembered.conclusions(service, name)


@router.get("/sweeps/{name}/forecast")
def forecast(
    name: SweepName,
    service: Reading,
    improvement: Annotated[float, Query(description="WER (fraction) that the chance speaks of")] = IMPROVEMENT,
) -> Forecast:
    """What the rest of its budget will bring: hours, trials, the chance to improve the best WER."""
    return service.forecast(name, improvement)


@router.get("/sweeps/{name}/events")
def events(name: SweepName, service: Reading, after: After = 0, limit: Limit = PAGE) -> list[EventRow]:
    """What happened, in order."""
    return service.events(name, after=after, limit=limit)


@router.get(
    "/sweeps/{name}/live",
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "`event`, `trial`, `status`; last `over` or `gone`"}
    },
)
def live(
    name: SweepName,
    request: Request,
    asker: Reader,
    after: Annotated[int | None, Query(ge=0, le=MOST_ROWS, description="the last event that is known")] = None,
) -> Response:
    """What happens, as it happens: server-sent events. `Last-Event-ID` goes on where a connection broke."""
    known = request.headers.get("last-event-id", "")
    if known.isdecimal() and len(known) < 10:
        after = int(known)
    return Live(
        request.app.state.streams, asker.actor, Watch(asked(request, asker).store, name, after), asker.still_may
    )


@router.post("/sweeps/{name}/pause")
def pause(name: SweepName, service: Operating) -> SweepStatus:
    """No new epoch begins; trials are handed back at the end of the one in hand."""
    return service.pause(name)


@router.post("/sweeps/{name}/resume")
def resume(name: SweepName, service: Operating, resumed: Resumed | None = None) -> SweepStatus:
    """Workers may claim its trials again; with a higher budget, if one is given."""
    return service.resume(name, trials=resumed.trials if resumed else None)


@router.post("/sweeps/{name}/stop")
def stop(name: SweepName, service: Operating) -> SweepStatus:
    """No new trial begins; those under way run to their ends."""
    return service.stop(name)


@router.post("/sweeps/{name}/cancel")
def cancel(name: SweepName, service: Operating) -> SweepStatus:
    """It ends for good: epochs in hand are dropped."""
    return service.cancel(name)


@router.delete("/sweeps/{name}", status_code=204)
def delete(
    name: SweepName,
    service: Operating,
    keep_mlflow: bool = False,
    created_at: Annotated[float | None, Query(description="only the sweep that was made then")] = None,
) -> None:
    """Remove a sweep with its rows, checkpoints and pictures, and its MLflow experiment unless that is kept."""
    service.delete(name, keep_mlflow=keep_mlflow, created_at=created_at)


@router.get("/actions", dependencies=[Depends(operator)])
def actions(service: Operating, after: After = 0, limit: Limit = PAGE) -> list[ActionRow]:
    """Who asked for what, in order."""
    return service.actions(after=after, limit=limit)


__all__ = ["reader", "router"]
