"""What a spec may say, and what is said about one that cannot be run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.corpus.data import CorpusConfig
from model.types import TrainingConfig
from sweeps import preparing
from sweeps.records import SweepRow
from sweeps.spec import (
    FloatRange,
    IntRange,
    Median,
    NoPruner,
    Patient,
    Plateau,
    SpecError,
    SweepSpec,
    corpus_of,
    differing_paths,
    digest,
    load_spec,
    spec_of,
)
from sweeps.states import SweepState

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HEAD = "name: s\ncorpus: generated\n"

Load = Callable[[str], SweepSpec]
Faults = Callable[[str], list[str]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The spec that this text is."""

    def load(text: str) -> SweepSpec:
        file = tmp_path / "s.yaml"
        file.write_text(text, encoding="utf-8")
        return load_spec(file)

    return load


@pytest.fixture
def faults(load: Load, tmp_path: Path) -> Faults:
    """The lines of the error that loading this text ends in, without the file that each begins with."""

    def faults(text: str) -> list[str]:
        with pytest.raises(SpecError) as caught:
            load(text)
        begin = f"{tmp_path / 's.yaml'}: "
        lines = str(caught.value).splitlines()
        assert all(line.startswith(begin) for line in lines), lines
        return [line.removeprefix(begin) for line in lines]

    return faults


# what is taken


def test_a_name_and_a_corpus_are_enough(load: Load) -> None:
    spec = load("name: s\ncorpus: some/folder\n")
    assert spec.corpus.path == Path("some/folder")
    assert {n: (r.low, r.high, r.log) for n, r in spec.space.parameters().items()} == {
        "learning_rate": (1e-5, 2e-2, True),
        "warmup_start_factor": (0.05, 1.0, False),
        "dropout": (0.0, 0.5, False),
        "patience": (5, 12, False),
    }
    assert (spec.sampler.name, spec.pruner.name, spec.budget.trials, spec.workers) == ("tpe", "plateau", 20, 1)


@pytest.mark.parametrize(
    ("epochs", "low", "high"), [(100, 5, 50), (24, 5, 12), (10, 5, 5), (9, 4, 4), (3, 1, 1), (2, 1, 1), (1, 1, 1)]
)
def test_patience_is_5_to_half_the_epochs_where_they_allow_it(load: Load, epochs: int, low: int, high: int) -> None:
    assert load(f"{HEAD}trainer: {{epochs: {epochs}}}").space.patience == IntRange(low=low, high=high)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0.001", 0.001), ("1e-3", 0.001), ("'1e-3'", 0.001), ("1", 1.0), ("{low: 1e-3, high: 1e-3}", 0.001)],
)
def test_a_plain_number_fixes_a_parameter(load: Load, value: str, expected: float) -> None:
    space = load(f"{HEAD}space: {{learning_rate: {value}, patience: 7}}").space
    assert space.learning_rate == FloatRange(low=expected, high=expected)
    assert space.patience == IntRange(low=7, high=7)


def test_what_yaml_reads_as_text_becomes_a_number(load: Load) -> None:
    assert isinstance(yaml.safe_load("1e-4"), str), "YAML 1.1 wants a dot"
    spec = load(
        f"{HEAD}trainer: {{weight_decay: 1e-2}}\nspace: {{learning_rate: {{low: 1e-4, high: 2e-2, log: true}}}}\n"
        "first_trials: {a: {learning_rate: 1e-4, patience: '7', min_learning_rate: 1e-7}}"
    )
    assert (spec.trainer.weight_decay, spec.space.learning_rate.low) == (0.01, 1e-4)
    assert spec.first_trials["a"] == {"learning_rate": 1e-4, "patience": 7, "min_learning_rate": 1e-7}
    assert type(spec.first_trials["a"]["patience"]) is int


def test_names_alone_stand_for_sections(load: Load) -> None:
    spec = load(f"{HEAD}sampler: random\npruner: none\n")
    assert (spec.sampler.name, spec.sampler.startup_trials, spec.pruner.name) == ("random", 10, "none")
    assert spec.corpus.generated is not None


@pytest.mark.parametrize("name", ["plateau", "none", "median", "successive_halving", "hyperband"])
def test_a_pruner_that_needs_no_setting_is_named_alone(load: Load, name: str) -> None:
    assert load(f"{HEAD}pruner: {name}\n").pruner == load(f"{HEAD}pruner: {{name: {name}}}\n").pruner
    assert load(f"{HEAD}pruner: {name}\n").pruner.name == name


def test_a_pruner_within_a_pruner(load: Load) -> None:
    pruner = load(f"{HEAD}pruner: {{name: patient, patience: 3, wrapped_pruner: median}}\n").pruner
    assert pruner == Patient(patience=3, wrapped_pruner=Median())


def test_specs_that_were_stored_before_there_were_several_pruners_are_read(load: Load) -> None:
    for name, grace in (("plateau", None), ("plateau", 7), ("none", None), ("none", 7)):
        spec = load(f"{HEAD}pruner: {name}\n")
        stored = {**spec.model_dump(mode="json"), "pruner": {"name": name, "grace_epochs": grace}}
        now = Plateau(grace_epochs=grace) if name == "plateau" else NoPruner()
        assert SweepSpec.model_validate(stored).pruner == now
        if grace is None:
            assert differing_paths(SweepSpec.model_validate(stored).identity(), spec.identity()) == []


def test_changes_from_the_command_line_win(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(f"{HEAD}budget: {{trials: 5, hours: 2}}\nworkers: 1", encoding="utf-8")
    spec = load_spec(file, trials=9, workers=3)
    assert (spec.budget.trials, spec.budget.hours, spec.workers) == (9, 2, 3)
    with pytest.raises(SpecError, match=r"s\.yaml: workers: 0: input should be greater than or equal to 1"):
        load_spec(file, workers=0)


# what is refused: (text, the fault's line or how it begins)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("corpse: x\n", "corpse: unknown key; did you mean corpus?"),
        ("budgets: {}\n", "budgets: unknown key; did you mean budget?"),
        ("trainer: {lerning_rate: 1}\n", "trainer.lerning_rate: unknown key; did you mean learning_rate?"),
        ("space: {droput: 0.1}\n", "space.droput: unknown key; did you mean dropout?"),
        ("space: {dropout: {low: 0, hihg: 1, high: 0.5}}\n", "space.dropout.hihg: unknown key; did you mean high?"),
        ('"work\\ners": 2\n', r"'work\ners': unknown key; did you mean workers?"),  # a line break stays in its line
        ("space: {patience: {low: 1, high: 2, lg: true}}\n", "space.patience.lg: unknown key; did you mean log?"),
        ("budget: {trails: 3}\n", "budget.trails: unknown key; did you mean trials?"),
        ("sampler: {nam: tpe}\n", "sampler.nam: unknown key; did you mean name?"),
        ("pruner: {grace: 3}\n", "pruner.grace: unknown key; did you mean grace_epochs?"),
        ("pruner: {name: median, warmup_steps: 3}\n", "pruner.warmup_steps: unknown key; did you mean n_warmup_steps?"),
        ("pruner: {name: median, grace_epochs: 3}\n", "pruner.grace_epochs: unknown key; "),
        ("pruner: {name: none, audit_share: 0}\n", "pruner.audit_share: unknown key; known here: name"),
        (
            "pruner: {name: patient, patience: 3, wrapped_pruner: {name: median, startup_trials: 3}}\n",
            "pruner.wrapped_pruner.startup_trials: unknown key; did you mean n_startup_trials?",
        ),
        ("first_trials: {a: {drop_out: 0}}\n", "first_trials.a.drop_out: unknown key; did you mean dropout?"),
        ("first_trials: {a: {zzz: 0}}\n", "first_trials.a.zzz: unknown key; known here: epochs, batch_size, "),
    ],
)
def test_an_unknown_key_is_told_with_its_path_and_the_nearest_known_one(faults: Faults, text: str, line: str) -> None:
    (found,) = faults(HEAD + text)
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("corpus", "line"),
    [
        ("{pth: x}", "corpus.pth: unknown key; did you mean path?"),
        ("{generated: {tran: 3}}", "corpus.generated.tran: unknown key; did you mean train?"),
        ("{generated: {train: 0}}", "corpus.generated.train: 0: input should be greater than or equal to 1"),
        ("{}", "corpus: name either a path, or `generated: {...}`, not both"),
        ("{path: x, generated: {}}", "corpus: name either a path, or `generated: {...}`, not both"),
        ("", "corpus: None: must be a mapping, `key: value`"),
        ("3", "corpus: 3: must be a mapping, `key: value`"),
        ("{path: x, filter: foo}", "corpus.filter: 'foo' is no filter; use one of none, phoenix-si5"),
        ("{path: x, modalities: {hands: 0}}", "corpus.modalities: {'hands': 0} has a block without columns"),
        ("{path: x, modalities: {hands: many}}", "corpus.modalities.hands: 'many': input should be a valid integer"),
    ],
)
def test_a_corpus_that_cannot_be_meant_is_refused(faults: Faults, corpus: str, line: str) -> None:
    assert faults(f"name: s\ncorpus: {corpus}\n")[0].startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("space: {dropout: {low: 0.3, high: 0.1}}", "space.dropout: low 0.3 is above high 0.1; swap them"),
        ("space: {patience: {low: 9, high: 5}}", "space.patience: low 9 is above high 5; swap them"),
        (
            "space: {learning_rate: {low: 0, high: 0.1, log: true}}",
            "space.learning_rate: low 0 has no logarithm; set low above 0 or log: false",
        ),
        ("space: {learning_rate: {low: 0, high: 0.1}}", "space.learning_rate: 0.0: input should be greater than 0"),
        ("space: {dropout: {low: 0, high: 1.5}}", "space.dropout: 1.5: input should be less than 1"),
        ("space: {patience: {low: 0, high: 9}}", "space.patience: 0: input should be greater than or equal to 1"),
        ("space: {patience: 5.5}", "space.patience.low: 5.5: input should be a valid integer"),
        ("space: {dropout: {low: 0.1}}", "space.dropout.high: is missing"),
        ("space: {dropout: .nan}", "space.dropout.low: nan: input should be a finite number"),
        ("space: {dropout: {low: 0, high: .inf}}", "space.dropout.high: inf: input should be a finite number"),
        ("space: {dropout: [0, 0.5]}", "space.dropout: [0, 0.5]: write one number, or {low: ..., high: ...}"),
        ("space: {dropout: true}", "space.dropout: True: write one number, or {low: ..., high: ...}"),
        ("space: {dropout: some}", "space.dropout: 'some': write one number, or {low: ..., high: ...}"),
        ("trainer: {learning_rate: .nan}", "trainer.learning_rate: nan: input should be a finite number"),
        ("trainer: {schedule: cosine}", "trainer.schedule: 'cosine': input should be 'cosine_restarts', "),
        ("trainer: {epochs: many}", "trainer.epochs: 'many': input should be a valid integer"),
        ("trainer: {epochs: 1.5}", "trainer.epochs: 1.5: input should be a valid integer"),
        ("trainer: 3", "trainer: 3: must be a mapping, `key: value`"),
        ("trainer:", "trainer: None: must be a mapping, `key: value`"),
        ("trainer: {seed: 3}", "trainer.seed: follows from the sweep's `seed`; set that instead"),
        ("trainer: {data_seed: 3}", "trainer.data_seed: follows from the sweep's `seed`; set that instead"),
        ("seed: -1", "seed: -1: input should be greater than or equal to 0"),
        ("seed: 4294967296", "seed: 4294967296: input should be less than 4294967296"),
        ("trainer: {length_buckets: -1}", "trainer.length_buckets: -1: input should be greater than or equal to 0"),
        ("workers: 0", "workers: 0: input should be greater than or equal to 1"),
        ("workers_per_device: 0", "workers_per_device: 0: write a number of workers from 1 to 64, or auto"),
        ("workers_per_device: 65", "workers_per_device: 65: write a number of workers from 1 to 64, or auto"),
        ("workers_per_device: true", "workers_per_device: True: write a number of workers from 1 to 64, or auto"),
        ("workers_per_device: all", "workers_per_device: 'all': write a number of workers from 1 to 64, or auto"),
        (
            "workers: 2\nworkers_per_device: auto",
            "workers_per_device: auto: says how many workers a machine gets, and so does workers: 2; leave one of them "
            "out",
        ),
        ("budget: {hours: 0}", "budget.hours: 0: input should be greater than 0"),
        ("budget: {total_epochs: 0}", "budget.total_epochs: 0: input should be greater than or equal to 1"),
        ("sampler: cmaes", "sampler.name: 'cmaes': input should be 'tpe' or 'random'"),
        ("pruner: medain", "pruner.name: 'medain': unknown; did you mean median?"),
        ("pruner: asha", "pruner.name: 'asha': unknown; known here: plateau, none, median, percentile, successive_h"),
        ("pruner: wilcoxon", "pruner: wilcoxon compares scores on the same folds or sentences; epochs of a curve"),
        ("pruner:", "pruner: None: must be a mapping, `key: value`"),
        ("pruner: percentile", "pruner.percentile: is missing"),
        (
            "pruner: {name: percentile, percentile: 101}",
            "pruner.percentile: 101: input should be less than or equal to 1",
        ),
        (
            "pruner: {name: median, n_startup_trials: few}",
            "pruner.n_startup_trials: 'few': input should be a valid int",
        ),
        ("pruner: threshold", "pruner: name a threshold: upper: 0.95, say"),
        ("pruner: {name: threshold, lower: 0.5, upper: 0.1}", "pruner: lower 0.5 is above upper 0.1; swap them"),
        (
            "pruner: {name: successive_halving, min_resource: soon}",
            "pruner.min_resource: 'soon': write a number of epochs from 1, or auto",
        ),
        (
            "pruner: {name: successive_halving, min_resource: 0}",
            "pruner.min_resource: 0: write a number of epochs from 1, or auto",
        ),
        (
            "pruner: {name: successive_halving, bootstrap_count: 2}",
            "pruner: bootstrap_count needs a number as min_resource; set it, or leave bootstrap_count at 0",
        ),
        (
            "pruner: {name: hyperband, bootstrap_count: 2}",
            "pruner: bootstrap_count needs a number as max_resource; set it, or leave bootstrap_count at 0",
        ),
        (
            "pruner: {name: hyperband, min_resource: 5, max_resource: 4}",
            "pruner: max_resource 4 is below min_resource 5: there would be no bracket; raise it to the epochs of a ",
        ),
        ("pruner: {name: patient, wrapped_pruner: median}", "pruner.patience: is missing"),
        (
            "pruner: {name: patient, patience: 3, wrapped_pruner: hyperband}",
            "pruner.wrapped_pruner.name: 'hyperband': unknown; known here: median, percentile, threshold",
        ),
        (
            "pruner: {name: patient, patience: 3, wrapped_pruner: {n_startup_trials: 2}}",
            "pruner.wrapped_pruner.name: is missing",
        ),
        (
            "pruner: {name: patient, patience: 3, wrapped_pruner: {name: median, audit_share: 0}}",
            "pruner.wrapped_pruner: audit_share belongs to the patient pruner itself; set it there",
        ),
        ("first_trials: [a]", "first_trials: ['a']: must be a mapping, `key: value`"),
        ("first_trials: {a: }", "first_trials.a: None: must be a mapping, `key: value`"),
        ("first_trials: {a: {dropout: 2}}", "first_trials.a.dropout: 2: input should be less than 1"),
        ("first_trials: {a: {dropout: .nan}}", "first_trials.a.dropout: nan: input should be a finite number"),
        ("first_trials: {7: {}}", "first_trials.7: a key must be text; write it in quotes"),
        ("first_trials: {a: {7: 1}}", "first_trials.a.7: a key must be text; write it in quotes"),
        ("7: 1", "7: a key must be text; write it in quotes"),
        (
            "budget: {trials: 1}\nfirst_trials: {a: {}, b: {}}",
            "budget.trials: 1 is less than the 2 first_trials; raise it",
        ),
    ],
)
def test_what_cannot_be_run_is_told_with_path_value_and_rule(faults: Faults, text: str, line: str) -> None:
    assert faults(HEAD + text)[0].startswith(line)


def test_all_faults_are_told_at_once(faults: Faults) -> None:
    assert faults("corpus: generated\ntrainer: {epochs: 0, lerning_rate: 1}\nworkers: 0") == [
        "name: is missing",
        "trainer.epochs: 0: input should be greater than or equal to 1",
        "trainer.lerning_rate: unknown key; did you mean learning_rate?",
        "workers: 0: input should be greater than or equal to 1",
    ]
    assert [line.partition(":")[0] for line in faults(f"{HEAD}first_trials: {{a: {{dropout: 2, epochs: 0}}}}")] == [
        "first_trials.a.epochs",
        "first_trials.a.dropout",
    ]


def test_name_and_corpus_are_asked_for(faults: Faults) -> None:
    assert faults("{}") == ["name: is missing", "corpus: is missing"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../up", "a/b", "a\\b", "/abs", "C:x", ".hidden", "-flag", "a b", "a\n", "ü", "a" * 65, "end.",
     "con", "NUL", "Com1", "aux.yaml"],
)  # fmt: skip
def test_names_that_would_hurt_as_folders_are_refused(faults: Faults, name: str) -> None:
    (found,) = faults(yaml.safe_dump({"name": name, "corpus": "generated"}))
    assert found.startswith(f"name: {name!r}: use letters, digits, dot, dash and underscore")
    (found,) = faults(yaml.safe_dump({"name": "s", "corpus": "generated", "first_trials": {name: {}}}))
    assert found.startswith(f"first_trials: {name!r}: a trial's name is letters, digits, dots, dashes")


@pytest.mark.parametrize("name", ["a", "0", "A.b-c_d", "a" * 64, "console", "null", "v1.2"])
def test_plain_names_are_taken(load: Load, name: str) -> None:
    assert load(yaml.safe_dump({"name": name, "corpus": "generated"})).name == name


def test_a_trial_is_not_named_by_a_number(faults: Faults) -> None:
    assert "not digits alone" in faults(f"{HEAD}first_trials: {{'7': {{}}}}")[0]
    assert "take another" in faults(f"{HEAD}first_trials: {{range-test: {{}}}}")[0]


# files


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML: could not determine a constructor for the tag"),
        ("a: !!python/name:os.system", "not valid YAML: could not determine a constructor for the tag"),
        ("a: [", "not valid YAML: while parsing"),
        ("a: 2024-99-99", "not valid YAML: month must be in 1..12"),
        ("a: " + "1" * 5000, "not valid YAML: Exceeds the limit"),
        ("- a", "a spec is a mapping that begins with `name:` and `corpus:`"),
        ("", "a spec is a mapping that begins with `name:` and `corpus:`"),
    ],
)
def test_a_file_that_is_no_spec_is_refused_in_one_line(faults: Faults, text: str, rule: str) -> None:
    (found,) = faults(text)
    assert found.startswith(rule)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: there is no such file; examples/ holds specs to start from"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: für".encode("latin-1"))
    with pytest.raises(SpecError, match=r"latin\.yaml: cannot be read .*utf-8"):
        load_spec(tmp_path / "latin.yaml")


# warnings


@pytest.mark.parametrize(("high", "acts"), [(12, True), (18, True), (19, False), (40, False)])
def test_a_patience_that_cannot_act_is_warned_about(load: Load, high: int, acts: bool) -> None:
    # Better at epoch 1 and never again, patience p ends a run after epoch 1 + p: of 20 epochs, 18 at most.
    said = load(f"{HEAD}trainer: {{epochs: 20}}\nspace: {{patience: {{low: 5, high: {high}}}}}").warnings()
    assert said == (
        [] if acts else [f"space.patience: {high} cannot act within 20 epochs; lower it or raise trainer.epochs"]
    )


def test_so_is_that_of_a_named_trial(load: Load) -> None:
    spec = load(
        f"{HEAD}trainer: {{epochs: 20}}\nfirst_trials: {{a: {{patience: 30}}, b: {{patience: 6, epochs: 7}}, "
        "c: {patience: 30, epochs: 40}, d: {patience: 10}}"
    )
    assert spec.warnings() == [
        "first_trials.a.patience: 30 cannot act within 20 epochs",
        "first_trials.b.patience: 6 cannot act within 7 epochs",
    ]


# identity


def other(spec: SweepSpec, **changes: Any) -> SweepSpec:
    return SweepSpec.model_validate({**spec.model_dump(mode="json"), **changes})


def test_budget_workers_and_places_are_no_part_of_the_identity(load: Load) -> None:
    spec = load("name: s\ncorpus: {path: here, annotations: a, vocabulary: v}\n")
    same = [
        other(spec, budget={"trials": 99, "hours": 3.0}),
        other(spec, workers=8),
        other(spec, corpus="elsewhere"),
        other(spec, corpus={"path": "here", "annotations": "b", "vocabulary": "w"}),
    ]
    assert {digest(s.identity()) for s in same} == {digest(spec.identity())}


def test_what_the_trainer_learned_later_is_no_part_of_the_identity_at_its_default(load: Load) -> None:
    """A stored sweep did not know it, and keeps its digest."""
    trainer = load("name: s\ncorpus: x\ntrainer: {length_buckets: 0}\n").identity()["trainer"]
    assert "length_buckets" not in trainer
    assert trainer.keys() | {"length_buckets"} == TrainingConfig.model_fields.keys()
    assert load("name: s\ncorpus: x\ntrainer: {length_buckets: 4}\n").identity()["trainer"]["length_buckets"] == 4


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"name": "t"}, 'name ("s" -> "t")'),
        ({"seed": 1}, "seed (0 -> 1)"),
        ({"trainer": {"epochs": 25}}, "trainer.epochs (24 -> 25)"),
        ({"trainer": {"length_buckets": 4}}, "trainer.length_buckets (null -> 4)"),
        ({"space": {"dropout": {"low": 0.0, "high": 0.4}}}, "space.dropout.high (0.5 -> 0.4)"),
        ({"sampler": "random"}, 'sampler.name ("tpe" -> "random")'),
        ({"pruner": {"grace_epochs": 5}}, "pruner.grace_epochs (null -> 5)"),
        ({"pruner": {"audit_share": 0}}, "pruner.audit_share (0.1 -> 0.0)"),
        ({"corpus": {"path": "x", "filter": "phoenix-si5"}}, 'corpus.filter ("none" -> "phoenix-si5")'),
        ({"first_trials": {"a": {"dropout": 0.2}}}, 'first_trials.a (null -> {"dropout": 0.2})'),
    ],
)
def test_every_other_change_is_and_is_named(load: Load, changes: dict[str, Any], path: str) -> None:
    spec = load("name: s\ncorpus: x\n")
    # A whole section given stands in the place of the old one; patience follows from it as before.
    changed = SweepSpec.model_validate({"name": "s", "corpus": "x", **changes})
    assert digest(changed.identity()) != digest(spec.identity())
    assert differing_paths(spec.identity(), changed.identity()) == [path]


def test_equal_identities_differ_nowhere(load: Load) -> None:
    assert differing_paths(load(HEAD).identity(), load(HEAD).identity()) == []


def test_a_digest_has_no_room_for_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})


def sweep_row(spec: SweepSpec, corpus: CorpusConfig) -> SweepRow:
    nothing: dict[str, Any] = {"facts": {}, "reason": "", "runner": None, "runner_beat_at": None}
    nowhere: dict[str, Any] = {"tracking": None, "experiment_id": None}
    times: dict[str, Any] = {
        "created_at": 0.0,
        "started_at": None,
        "resumed_at": None,
        "finished_at": None,
        "seconds": 0.0,
    }
    return SweepRow(
        id=1,
        name=spec.name,
        spec=preparing.stored(spec, corpus),
        digest=digest(spec.identity()),
        budget=spec.budget.model_dump(),
        state=SweepState.PENDING,
        **nothing,
        **nowhere,
        **times,
    )


def test_the_spec_comes_back_from_the_database(load: Load, tmp_path: Path) -> None:
    spec = load(
        "name: s\nseed: 7\ncorpus: {path: here, modalities: {pose: 99, hands: 126}}\ntrainer: {epochs: 30}\n"
        "space: {dropout: 0.2, learning_rate: {low: 1e-5, high: 0.1, log: true}}\n"
        "first_trials: {a: {learning_rate: 0.3, seed: 5, schedule: constant}}\nbudget: {hours: 1.5}\nworkers: 2"
    )
    row = sweep_row(spec, spec.corpus.config())
    assert yaml.safe_load(yaml.safe_dump(row.spec)) == row.spec, "not plain JSON"
    back = spec_of(row)
    assert back == spec
    assert digest(back.identity()) == row.digest
    assert corpus_of(row).path == Path("here").resolve()


# what the trials are


def test_named_trials_are_split_into_what_the_sampler_knows_and_what_it_does_not(load: Load) -> None:
    spec = load(
        f"{HEAD}trainer: {{epochs: 20, dropout: 0.2, patience: 6}}\nfirst_trials:\n"
        "  plain: {}\n  inside: {learning_rate: 0.001}\n  outside: {patience: 30}\n"
        "  other: {learning_rate: 0.001, schedule: constant}\n  same: {schedule: plateau}\n"
    )
    base = {"learning_rate": 5e-4, "warmup_start_factor": 1.0, "dropout": 0.2, "patience": 6}
    planned = {plan.name: plan for plan in spec.planned()}
    assert {name: (plan.hyperparameters, plan.overrides, plan.in_space) for name, plan in planned.items()} == {
        "plain": (base, {}, True),
        "inside": ({**base, "learning_rate": 0.001}, {}, True),
        "outside": ({**base, "patience": 30}, {}, False),
        "other": ({**base, "learning_rate": 0.001}, {"schedule": "constant"}, False),
        "same": (base, {}, True),
    }


def test_trials_see_the_same_batches_from_another_beginning(load: Load) -> None:
    spec = load(f"{HEAD}seed: 3\n")
    values = {"learning_rate": 0.001, "warmup_start_factor": 1.0, "dropout": 0.1, "patience": 5}
    first, second = spec.training(0, values, {}), spec.training(1, values, {"schedule": "constant"})
    assert first.data_seed == second.data_seed == 3
    assert first.seed != second.seed
    assert first.seed != other(spec, seed=4).training(0, values, {}).seed
    assert first == spec.training(0, values, {})
    assert (second.learning_rate, second.schedule) == (0.001, "constant")


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_begins_with_the_original_and_the_fixed_configuration(file: Path) -> None:
    spec = load_spec(file)
    original, fixed = list(spec.planned())[:2]
    assert (original.name, fixed.name) == ("original", "fixed")
    config = [spec.training(n, p.hyperparameters, p.overrides) for n, p in enumerate((original, fixed))]

    def fields(config: TrainingConfig, *names: str) -> dict[str, Any]:
        return {name: getattr(config, name) for name in names}

    names = ["learning_rate", "warmup_start_factor", "schedule", "dropout", "patience", "patience_starts"]
    assert fields(config[0], *names, "warmup_epochs", "restart_epochs") == {
        "learning_rate": 1e-4,
        "warmup_start_factor": 0.1,
        "warmup_epochs": 5,
        "schedule": "cosine_restarts",
        "restart_epochs": 10,
        "dropout": 0.1,
        "patience": 15,
        "patience_starts": "epoch1",
    }
    assert fields(config[1], *names, "plateau_factor", "plateau_patience", "min_learning_rate") == {
        "learning_rate": 5e-4,
        "warmup_start_factor": 1.0,
        "schedule": "plateau",
        "plateau_factor": 0.5,
        "plateau_patience": 10,
        "min_learning_rate": 1e-6,
        "dropout": 0.1,
        "patience": 30,
        "patience_starts": "takeoff",
    }


def test_there_are_examples() -> None:
    assert (EXAMPLES / "demo.yaml").is_file()


def test_a_named_trial_may_set_its_seeds_even_to_zero() -> None:
    spec = SweepSpec.model_validate(
        {"name": "s", "corpus": "x", "seed": 3, "first_trials": {"mine": {"seed": 0, "data_seed": 0}}}
    )
    (plan,) = spec.planned()
    config = spec.training(0, plan.hyperparameters, plan.overrides)
    assert (config.seed, config.data_seed, plan.in_space) == (0, 0, False)


def test_what_a_named_trial_does_not_name_is_moved_into_the_space() -> None:
    spec = SweepSpec.model_validate(
        {"name": "s", "corpus": "x", "trainer": {"epochs": 20}, "first_trials": {"mine": {"learning_rate": 1e-3}}}
    )
    (plan,) = spec.planned()
    assert plan.hyperparameters["patience"] == 10  # the trainer's 30 is above half the epochs
    assert plan.in_space
