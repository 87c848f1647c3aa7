"""The reference pages say what the code says: every key, default, option, metric and state, and nothing else."""

from __future__ import annotations

import argparse
import json
import re
import typing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import annotated_types
import pytest
import typer
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from model.__main__ import parser
from model.corpus.synthetic import GeneratedConfig
from model.diagnosis import Phase, Verdict
from model.early_stopping import Ending
from model.train import train
from model.types import METRICS, EpochReport, TrainingConfig
from sweeps import cli, preparing, service
from sweeps.api import problems
from sweeps.api.access import Access
from sweeps.api.app import make_app
from sweeps.api.routes import router
from sweeps.commands import best, dry_run, show
from sweeps.errors import code_of
from sweeps.mirror import STATUS
from sweeps.notifying import notices
from sweeps.outbox import message
from sweeps.pruning import FATAL
from sweeps.records import EpochRow
from sweeps.replaying import Difference, Replay
from sweeps.service import SweepService
from sweeps.settings import Home
from sweeps.spec import (
    JOINING,
    NOT_SEARCHED,
    Budget,
    Choices,
    CorpusSpec,
    FloatRange,
    Hyperband,
    IntRange,
    Median,
    NoPruner,
    Patient,
    Percentile,
    Plateau,
    Pruner,
    Pruning,
    Sampler,
    SearchSpace,
    StopWhen,
    SuccessiveHalving,
    SweepSpec,
    Threshold,
)
from sweeps.states import SweepState, TrialState
from sweeps.store import Store

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
SECTIONS: dict[str, type[BaseModel]] = {
    "The whole": SweepSpec,
    "`corpus`": CorpusSpec,
    "`corpus.generated`": GeneratedConfig,
    "`trainer`": TrainingConfig,
    "`space`": SearchSpace,
    "A range": FloatRange,
    "Choices": Choices,
    "`sampler`": Sampler,
    "`pruner`": Pruning,
    "`budget`": Budget,
    "`budget.stop_when`": StopWhen,
}
PRUNERS: dict[str, type[BaseModel]] = {
    "`plateau`": Plateau,
    "`median`": Median,
    "`percentile`": Percentile,
    "`successive_halving`": SuccessiveHalving,
    "`hyperband`": Hyperband,
    "`patient`": Patient,
    "`threshold`": Threshold,
}


def tables(page: str) -> dict[str, list[list[str]]]:
    """Heading to the cells of the table rows below it, without the heads and rules of tables."""
    found: dict[str, list[list[str]]] = {}
    heading, lines = "", (REFERENCE / page).read_text(encoding="utf-8").splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
            found[heading] = []
        elif line.startswith("|") and not line.startswith("|---") and not after.startswith("|---"):
            found[heading].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def first_column(page: str, heading: str) -> list[str]:
    return [row[0].strip("`") for row in tables(page)[heading]]


# spec


def shown(value: Any) -> str:
    """A default as a spec would write it."""
    if value is None or value in ({}, ()):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        inner = ", ".join(f"{name}: {shown(each)}" for name, each in value.model_dump().items())
        return f"{{{inner}}}"
    return str(value)


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    whole = isinstance(value, BaseModel) and not isinstance(value, FloatRange)
    return "see below" if whole else f"`{shown(value)}`"


def allowed(field: FieldInfo) -> str:
    """Limits or choices of a field, as the pages write them."""
    if typing.get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(field.annotation))
    signs = {
        annotated_types.Ge: ("≥", "ge"),
        annotated_types.Gt: (">", "gt"),
        annotated_types.Le: ("≤", "le"),
        annotated_types.Lt: ("<", "lt"),
    }
    limits = [(signs[type(limit)], limit) for limit in field.metadata if type(limit) in signs]
    return ", ".join(f"{sign} {getattr(limit, name)}" for (sign, name), limit in limits)


def fields_of(heading: str) -> dict[str, FieldInfo]:
    """The keys that the table under a heading must have: a pruner's own."""
    if heading == "`space`":  # the four: what may join them are keys of the trainer
        return {name: field for name, field in SearchSpace.model_fields.items() if name not in JOINING}
    if heading in SECTIONS:
        return SECTIONS[heading].model_fields
    common = {"name", *Pruning.model_fields}
    return {name: field for name, field in PRUNERS[heading].model_fields.items() if name not in common}


@pytest.mark.parametrize("heading", [*SECTIONS, *PRUNERS])
def test_the_spec_page_has_every_key_with_its_default_and_limits(heading: str) -> None:
    fields = fields_of(heading)
    written = {row[0]: row[1:3] for row in tables("spec.md")[heading]}
    assert written == {f"`{name}`": [default_of(field), allowed(field)] for name, field in fields.items()}


@pytest.mark.parametrize("heading", [*SECTIONS, *PRUNERS])
def test_the_spec_page_says_what_the_code_says_of_each_key(heading: str) -> None:
    fields = fields_of(heading)
    for name, *_, meaning in tables("spec.md")[heading]:
        said = fields[name.strip("`")].description or ""
        assert meaning.startswith(said), f"{heading} {name}: the code says {said!r}"


def test_the_spec_page_has_every_pruner() -> None:
    assert {*PRUNERS.values(), NoPruner} == set(typing.get_args(Pruner))
    assert [heading.strip("`") for heading in PRUNERS] == [
        each.model_fields["name"].default for each in PRUNERS.values()
    ]


def test_the_pages_name_what_cannot_be_searched() -> None:
    for page in ("reference/spec.md", "how-to/space.md"):
        text = (REFERENCE.parent / page).read_text(encoding="utf-8")
        (line,) = [line for line in text.splitlines() if "`eval_batch_size`" in line and "`seed`" in line]
        assert all(f"`{name}`" in line for name in NOT_SEARCHED), page


def test_whole_numbers_have_the_keys_of_other_ranges() -> None:
    assert IntRange.model_fields.keys() == FloatRange.model_fields.keys()


# metrics and verdicts


def test_the_metrics_page_has_every_key_in_the_words_of_the_code() -> None:
    rows = tables("metrics.md")["Metrics"]
    assert {row[0].strip("`"): row[1] for row in rows} == dict(METRICS)


@pytest.mark.parametrize(
    ("heading", "values"),
    [
        ("Phases", list(typing.get_args(Phase))),
        ("Verdicts", list(typing.get_args(Verdict))),
        ("Trial states", [state.value for state in TrialState]),
        ("Sweep states", [state.value for state in SweepState]),
    ],
)
def test_the_verdicts_page_has_every_value(heading: str, values: list[str]) -> None:
    assert first_column("verdicts.md", heading) == values


def test_the_verdicts_page_has_every_mlflow_status() -> None:
    assert {row[0].strip("`"): row[1] for row in tables("verdicts.md")["Trial states"]} == dict(STATUS)


def test_the_verdicts_page_has_every_rule() -> None:
    code = (ROOT / "sweeps" / "pruning.py").read_text(encoding="utf-8")
    rules = set(re.findall(r'Decision\(\s*"(\w+)"', code)) | set(FATAL) | set(typing.get_args(Ending)) | {"fault"}
    rules |= {heading.strip("`") for heading in PRUNERS} - {"plateau", "none"}
    assert set(first_column("verdicts.md", "Rules")) == rules


@pytest.mark.parametrize("page", ["reference/verdicts.md", "explanation/why-not-wer.md", "how-to/going-on.md"])
def test_constants_that_pages_name_exist(page: str) -> None:
    named = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", (ROOT / "docs" / page).read_text(encoding="utf-8")))
    code = "\n".join(
        file.read_text(encoding="utf-8") for part in ("model", "sweeps") for file in (ROOT / part).glob("*.py")
    )
    settings = {"MLFLOW_TRACKING_URI", "SWEEPS_HOME"}
    assert named - settings == {name for name in named if re.search(rf"^{name} = ", code, re.MULTILINE)}
    assert named


# commands


def commands_of(group: Any, before: str = "") -> dict[str, Any]:
    """`run`, `db upgrade`."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= commands_of(command, f"{before}{name} ") if inner else {f"{before}{name}": command}
    return found


COMMANDS = commands_of(typer.main.get_command(cli.app))


def test_the_commands_page_has_every_command() -> None:
    headings = [h.strip("`").removeprefix("sweeps ") for h in tables("cli.md") if h.startswith("`sweeps ")]
    assert headings == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_page_has_every_option(name: str) -> None:
    options = {opt for p in COMMANDS[name].params if p.param_type_name == "option" for opt in p.opts}
    assert {row[0].split()[0].strip("`") for row in tables("cli.md")[f"`sweeps {name}`"]} == options


def routes_of_the_api() -> set[str]:
    store = cast(Store, None)  # nothing is asked
    app = make_app(SweepService(store, Home(ROOT), ""), Access(store, required=True), ())
    return {
        f"{method} {r.path}" for r in [*app.routes, *router.routes] if isinstance(r, APIRoute) for method in r.methods
    }


def test_the_api_page_has_every_route() -> None:
    written = [row[0].strip("`") for row in tables("api.md")["Routes"]]
    assert sorted(written) == sorted(routes_of_the_api())


def test_the_api_page_has_every_error() -> None:
    written = {name for row in tables("api.md")["Errors"] for name in re.findall(r"`([a-z-]+)`", row[1])}
    raised = {code_of(kind) for kind, status in problems.STATUS.items() if status != 503} - {
        "trainer-not-found",  # while a server starts
        "sweep-exists",  # is tried again
    }
    assert raised <= written


MODEL_COMMANDS: dict[str, argparse.ArgumentParser] = next(
    action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction)
)
ELSEWHERE = {
    "train": TrainingConfig.model_fields.keys(),
    "overfit": TrainingConfig.model_fields.keys(),
    "range-test": TrainingConfig.model_fields.keys(),
    "generate": GeneratedConfig.model_fields.keys(),
}
"""Options that another page has, by command."""


def options_of(command: str) -> dict[str, str]:
    """The name of each option, by what it sets."""
    actions = MODEL_COMMANDS[command]._actions
    return {a.dest: a.option_strings[0] for a in actions if a.dest != "help" and a.option_strings}


def test_the_commands_page_has_every_command_of_the_model() -> None:
    assert {f"python -m model {name}" for name in MODEL_COMMANDS} == {
        heading.strip("`") for heading in tables("cli.md") if heading.startswith("`python -m model")
    }


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_the_commands_page_has_every_option_of_the_model(command: str) -> None:
    common = [name.split()[0] for name in first_column("cli.md", "The corpus options")]
    written = [name.split()[0] for name in first_column("cli.md", f"`python -m model {command}`")]
    options = options_of(command)
    own = [o for dest, o in options.items() if o not in common and dest not in ELSEWHERE.get(command, ())]
    if command == "generate":  # it reads no corpus: its filter is its own
        own.append("--filter")
    assert sorted(written) == sorted(own)
    if "--annotations" in options.values():  # then it reads a corpus; `--data_dir` may be an argument instead
        absent = {"--data_dir", "--no_normalise"} if command == "pack" else {"--data_dir"}
        assert set(common) - absent == set(common) & set(options.values()) - {"--data_dir"}


def test_every_setting_of_the_trainer_is_an_option() -> None:
    assert TrainingConfig.model_fields.keys() <= options_of("train").keys()


# JSON


DATA = {"counts", "hyperparameters", "overrides", "evidence"}  # of trials
DATA |= {"alarm", "range_test", "forecast", "numbers", "interval", "wrong_verdicts", "winners_killed"}  # of a sweep
DATA |= {"sentences", "modalities", "notes", "splits", "space", "first_trials"}  # of a dry run
"""Their own keys are data: names of trials, say."""


def key_paths(value: Any, path: str = "") -> list[str]:
    """`best.wer`, `trials[].number`."""
    if path.rpartition(".")[2] in DATA:
        return [path]
    if isinstance(value, list):
        return sorted({each for item in value for each in key_paths(item, f"{path}[]")})
    if isinstance(value, dict):
        return [each for key, item in value.items() for each in key_paths(item, f"{path}.{key}" if path else key)]
    return [path]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> preparing.Prepared:
    home = Home(tmp_path_factory.mktemp("home"))
    content = {
        "name": "tiny",
        "corpus": {"generated": {"train": 4, "dev": 2, "glosses": 3}},
        "trainer": {"epochs": 1, "hidden": 8, "channels": 8},
        "first_trials": {"first": {"learning_rate": 1e-3}},
        "budget": {"trials": 1},
    }
    return preparing.prepare(SweepSpec.model_validate(content), home)


@pytest.fixture
def store(tmp_path: Path, prepared: preparing.Prepared) -> typing.Iterator[Store]:
    """One sweep of one trial with one epoch."""
    store = service.load_home_store(Home(tmp_path), None)
    sweep = preparing.open_sweep(store, prepared)
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    claim = store.claim(sweep.id, "worker", 60)
    assert claim is not None
    values = {"learning_rate": 1e-3, "warmup_start_factor": 1.0, "dropout": 0.1, "patience": 1}
    store.set_hyperparameters(claim, values, None)
    store.record(claim, [EpochRow.of(EpochReport(1, 1, dict.fromkeys(METRICS, 0.5)), "plateau")])
    yield store
    store.close()


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_json_of_a_sweep(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show.show("tiny", home=tmp_path, as_json=True)
    assert sorted(first_column("json.md", "A sweep")) == sorted(key_paths(printed(capsys)))


def test_json_of_the_best_trial(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best.best("tiny", home=tmp_path, as_json=True)
    assert sorted(first_column("json.md", "The best trial")) == sorted(key_paths(printed(capsys)))


def test_json_of_a_replay() -> None:
    inner = [f"difference.{field.name}" for field in fields(Difference)]
    keys = [field.name for field in fields(Replay) if field.name != "difference"]
    assert first_column("json.md", "A replay") == [*keys[:7], *inner, *keys[7:]]


def test_json_of_a_message(store: Store) -> None:
    found = store.find_sweep("tiny")
    assert found is not None
    alarm = {"cause": "", "sentence": "", "advice": "", "proposal": None}
    told = notices(replace(found, facts={**found.facts, "alarm": alarm}), [], [], 0.0, breaker=False)
    store.add_notification(found.id, ["team"], told[0].key, told[0].kinds[0], told[0].text, dict(told[0].data))
    assert first_column("json.md", "A message") == key_paths(message(store.notifications(found.id)[0]))


def test_json_of_the_list_of_sweeps(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show.show(home=tmp_path, as_json=True)
    assert sorted(first_column("json.md", "The list of sweeps")) == sorted(key_paths(printed(capsys)))


def test_json_of_a_trial(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show.show("tiny/first", home=tmp_path, as_json=True)
    keys = [path for path in key_paths(printed(capsys)) if path.removeprefix("epochs[].") not in METRICS]
    assert sorted(first_column("json.md", "A trial")) == sorted(keys)


def test_json_of_a_dry_run(prepared: preparing.Prepared, tmp_path: Path) -> None:
    report = dry_run.plan_report(prepared, Home(tmp_path))
    assert sorted(first_column("json.md", "A dry run")) == sorted(key_paths(report))


def test_json_of_one_run(prepared: preparing.Prepared, tmp_path: Path) -> None:
    result = train(prepared.spec.trainer.with_values({"epochs": 2}), prepared.corpus, tmp_path)
    assert sorted(first_column("json.md", "One run")) == sorted(key_paths(result))
    folder = (REFERENCE / "json.md").read_text(encoding="utf-8")
    assert {f.name for f in tmp_path.iterdir()} == set(re.findall(r"`(\w+\.(?:json|jsonl|pt|txt))`", folder))
