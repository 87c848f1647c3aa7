"""A trial as a folder that a stranger can use: its weights, what they were measured to be, and how to train them again.

What is not to be had (a checkpoint that has expired, the weights of a trainer of one's own) is left out and said.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import yaml

from model.corpus.data import Corpus, CorpusConfig, Split
from model.corpus.vocabulary import Vocabulary
from model.diagnosis import counted
from model.types import BUILT_IN
from sweeps import checkpoints, environment
from sweeps.confirming import Confirmation, confirmation_of, in_words
from sweeps.errors import CannotWork, SweepError
from sweeps.preparing import Progress, corpus_here
from sweeps.records import SweepRow, TrialRow, shown_host
from sweeps.service import conclusions_of
from sweeps.settings import Home
from sweeps.spec import corpus_of, spec_of
from sweeps.store import Store
from sweeps.summary import best_trial, config_of, powershell_line, train_words, trial_label
from sweeps.trust import trust

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

CHECKPOINT = "checkpoint.pt"
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    files: tuple[str, ...]
    missing: Mapping[str, str]
    """What the folder does not have, and why."""
    interval: tuple[float, float] | None
    """95 % interval of the WER over the sentences of dev."""


@dataclass(frozen=True)
class _Found:
    """All that there is to tell of a trial."""

    sweep: SweepRow
    trial: TrialRow
    trials: Sequence[TrialRow]
    corpus_config: CorpusConfig
    corpus: Corpus | None
    checkpoint: Checkpoint | None
    read: tuple[Sequence[int], Sequence[int]] | None
    """Wrong words of each sentence of dev by these weights, and words of its reference."""
    machines: Sequence[Mapping[str, str]]
    confirmation: Confirmation | None
    grounds: Sequence[str]
    missing: Mapping[str, str]

    @property
    def built_in(self) -> bool:
        return bool(self.sweep.facts.get("trainer", BUILT_IN) == BUILT_IN)

    @property
    def interval(self) -> tuple[float, float] | None:
        if self.read is None:
            return None
        from model.metrics import wer_interval

        return wer_interval(*self.read)


def export(
    store: Store,
    home: Home,
    sweep: SweepRow,
    trial: TrialRow,
    folder: Path,
    *,
    checkpoint_folder: Path | None = None,
    corpus: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a trial into `folder`, which is there whole or not at all.

    Args:
        checkpoint_folder: folder of the checkpoints, if not in home.
        corpus: where the corpus lies on this machine, if not where the sweep was made.
        force: take the place of a folder that holds something.

    Raises:
        SweepError: the trial has no epoch yet, or the folder holds something.
        OSError: it cannot be written.
    """
    if trial.best_wer is None:
        raise SweepError(f"trial {trial_label(trial)} of {sweep.name!r} has no epoch with a WER: nothing to export")
    folder = folder.absolute()
    check_free(folder, force)
    found = _look(store, home, sweep, trial, checkpoint_folder or home.checkpoints, corpus, progress)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        _write(found, aside)
        _place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    files = tuple(sorted(file.name for file in folder.iterdir()))
    return Exported(folder, files, found.missing, found.interval)


def check_free(folder: Path, force: bool) -> None:
    """
    Raises:
        SweepError: the folder holds something, or is none.
    """
    if folder.exists() and not folder.is_dir():
        raise SweepError(f"--export {folder}: is a file, and an export is a folder; name another place")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise SweepError(f"--export {folder}: holds something already; name another folder, or give --force as well")


def _place(aside: Path, folder: Path) -> None:
    """Let the finished folder take its place. One that was there goes only once the new one can."""
    aside.chmod(0o755)  # mkdtemp lets nobody else in
    before = None
    if folder.exists():
        before = Path(mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent)) / folder.name
        folder.replace(before)
    try:
        aside.replace(folder)
    except OSError:
        if before is not None:
            before.replace(folder)
        raise
    finally:
        if before is not None:
            shutil.rmtree(before.parent, ignore_errors=True)


def _look(
    store: Store,
    home: Home,
    sweep: SweepRow,
    trial: TrialRow,
    folder: Path,
    given: Path | None,
    progress: Progress | None,
) -> _Found:
    missing: dict[str, str] = {}
    corpus_config = corpus_of(sweep)
    if given is not None:
        corpus_config = corpus_config.model_copy(update={"path": given.absolute()})
    corpus: Corpus | None = None
    try:
        corpus = corpus_here(sweep, home, given, progress)
    except CannotWork as error:
        missing["the interval of its WER"] = str(error)
    checkpoint: Checkpoint | None = None
    try:
        checkpoint = stored_checkpoint(sweep, trial, folder / sweep.name)
    except (FileNotFoundError, ValueError) as error:
        missing[CHECKPOINT] = str(error)
        missing["the interval of its WER"] = f"it takes {CHECKPOINT}"
    read: tuple[Sequence[int], Sequence[int]] | None = None
    trainer = sweep.facts.get("trainer", BUILT_IN)
    if trainer != BUILT_IN:
        own = f"it was trained by {trainer}, whose code only its owner has"
        missing["train.sh, train.ps1"] = f"{own}; `sweeps replay` trains it again"
        missing["the interval of its WER"] = own
    elif corpus is not None and checkpoint is not None:
        from model.decoding import greedy_errors

        read = greedy_errors(checkpoint, corpus.dev)
    if checkpoint is None and corpus is None:
        missing["vocabulary.txt"] = "it stands in the checkpoint and in the corpus"
    trials, events = store.trials(sweep.id), store.events(sweep.id)
    spec, conclusions = spec_of(sweep), conclusions_of(store, sweep, lessons=False)
    return _Found(
        sweep,
        trial,
        trials,
        corpus_config,
        corpus,
        checkpoint,
        read,
        environment.trained_on(events, trial.number),
        confirmation_of(store, sweep),
        trust(sweep, trials, spec, conclusions),
        missing,
    )


def stored_checkpoint(sweep: SweepRow, trial: TrialRow, folder: Path) -> Checkpoint:
    """The best checkpoint of a trial, without the state of its optimizer.

    Args:
        folder: of the sweep's checkpoints.

    Raises:
        FileNotFoundError: there is none here; says why.
        ValueError: it cannot be read, or is another trial's.
    """
    from model.checkpoint import read

    file = checkpoints.best_file(folder, trial.number)
    if file is None:
        days = f"{checkpoints.KEEP_DAYS:.0f} days"
        why = f"{folder} has none of trial {trial.number}: it is on the machine that trained it, or has expired "
        raise FileNotFoundError(f"{why}(those of pruned and cancelled trials go after {days})")
    checkpoint = read(file)
    if checkpoint.identity.get("sweep") != f"{sweep.name}@{sweep.created_at:.3f}":
        raise ValueError(f"{file}: is of another sweep that had this name")
    if checkpoint.reports[-1].epoch != trial.best_epoch:
        raise ValueError(f"{file}: is of epoch {checkpoint.reports[-1].epoch}, and the best one is {trial.best_epoch}")
    return checkpoints.without_optimizer(checkpoint)


# files


def _write(found: _Found, folder: Path) -> None:
    config = config_of(spec_of(found.sweep), found.trial)
    texts = {
        "README.md": readme(found),
        "config.yaml": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        "corpus.json": _json(corpus_facts(found.sweep, found.corpus_config, found.corpus)),
        "environment.txt": environment_text(found.machines, config.threads, found.sweep.facts.get("git_commit", "")),
        "evidence.json": _json(evidence(found)),
    }
    if found.built_in:
        texts["train.sh"], texts["train.ps1"] = scripts(found.sweep, found.trial, found.corpus_config)
    for name, text in texts.items():
        # Windows PowerShell reads a file without a mark as one of its own code page.
        encoding = "utf-8-sig" if name.endswith(".ps1") else "utf-8"
        (folder / name).write_text(text, encoding=encoding, newline="\n")
    if found.built_in:
        (folder / "train.sh").chmod(0o755)
    if found.checkpoint is not None:
        from model.checkpoint import write

        Vocabulary(found.checkpoint.glosses).to_file(folder / "vocabulary.txt")
        write(folder / CHECKPOINT, found.checkpoint)
    elif found.corpus is not None:
        found.corpus.vocabulary.to_file(folder / "vocabulary.txt")
    sums = [f"{_sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8", newline="\n")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def evidence(found: _Found) -> dict[str, Any]:
    """What is known of the trial's WER, as JSON."""
    sweep, trial = found.sweep, found.trial
    config, row = config_of(spec_of(sweep), trial), asdict(trial)
    of_trial = ("number", "name", "verdict", "rule", "reason", "hyperparameters", "overrides", "epochs", "best_epoch")
    return {
        "sweep": sweep.name,
        "sweep_state": sweep.state.value,
        "trial": {**{name: row[name] for name in of_trial}, "state": trial.state.value},
        "dev_wer": trial.best_wer,
        "dev_wer_measured_again": None if found.read is None else sum(found.read[0]) / sum(found.read[1]),
        "interval": found.interval,
        "interval_is": "95 %, over the sentences of dev drawn anew with replacement; these weights, no other seeds",
        "constant_wer": sweep.facts["constant_wer"],
        "best_of": sum(each.best_wer is not None for each in found.trials),
        "is_best": best_trial(found.trials) == trial,
        "seeds": {"seed": config.seed, "data_seed": config.data_seed},
        "trained_on": [{**machine, "host": shown_host(machine["host"])} for machine in found.machines],
        "corpus_hash": sweep.facts.get("corpus_hash"),
        "git_commit": sweep.facts.get("git_commit", ""),
        "grounds": list(found.grounds),
        "confirmation": None if found.confirmation is None else found.confirmation.as_json(),
        "missing": dict(found.missing),
    }


def corpus_facts(sweep: SweepRow, config: CorpusConfig, corpus: Corpus | None) -> dict[str, Any]:
    """What tells the corpus from any other, and how it was read. The counts of words take the corpus itself."""
    spec = spec_of(sweep)
    facts = sweep.facts
    splits: dict[str, Any] = {
        name: {"sentences": facts.get(f"{name}_sequences"), "words": None, "frames": None} for name in ("train", "dev")
    }
    if corpus is not None:
        splits = {split.name: _counts(split) for split in (corpus.train, corpus.dev, corpus.test) if split is not None}
    return {
        "hash": facts.get("corpus_hash"),
        "vocabulary_hash": facts.get("vocabulary_hash"),
        "glosses": facts.get("glosses"),
        "width": facts.get("width"),
        "splits": splits,
        "read_with": config.model_dump(mode="json"),
        "generated": None if spec.corpus.generated is None else spec.corpus.generated.model_dump(mode="json"),
        "constant_wer": facts["constant_wer"],
        "constant_sentence": facts.get("constant_sentence"),
    }


def _counts(split: Split) -> dict[str, int]:
    words = sum(len(reference.split()) for reference in split.references)
    return {"sentences": len(split), "words": words, "frames": int(split.lengths.sum())}


def environment_text(machines: Sequence[Mapping[str, str]], threads: int, commit: str) -> str:
    """The last machine that trained it, as comments, and its packages as pip installs them."""
    said = machines[-1] if machines else {**environment.here(), "device": "unknown"}
    whose = (
        "What it was trained with." if machines else "Its workers did not say what they had: this is the exporter's."
    )
    lines = [
        f"# {whose}",
        "# pip install -r environment.txt",
        f"# python {said.get('python', 'unknown')}",
        f"# system {said.get('system', 'unknown')}",
        f"# cpu {said.get('cpu', 'unknown')}, kernels of torch: {said.get('kernels', 'unknown')}",
        f"# device {said.get('device') or 'unknown'}, torch threads {threads}",
    ]
    if len(machines) > 1:
        lines.append(f"# It was trained on {len(machines)} machines, one after the other: evidence.json has them.")
    ours = f"commit {commit}" if commit else "the commit is not known"
    lines.append(f"# ctc-sweeps {said.get('ctc-sweeps', 'unknown')} ({ours}): install it from its source")
    packages = [name for name in environment.VERSIONS if name != "ctc-sweeps" and name in said]
    # What follows a plus is where a build came from: pip cannot find it by that.
    lines += [f"{name}=={said[name].partition('+')[0]}" for name in packages]
    return "".join(f"{line}\n" for line in lines)


# scripts


def scripts(sweep: SweepRow, trial: TrialRow, corpus: CorpusConfig) -> tuple[str, str]:
    """What trains it again, for POSIX shells and for PowerShell; paths are arguments, those of here the defaults."""
    config = config_of(spec_of(sweep), trial)
    output = Path(f"{sweep.name}-{trial.name or trial.number}")
    words = train_words(config, corpus, output)
    defaults = {"data_dir": str(corpus.path), "output_dir": str(output)}
    if corpus.annotations is not None:
        defaults["annotations"] = str(corpus.annotations)
    about = f"Trains trial {trial_label(trial)} of the sweep {sweep.name} again."
    return _posix(words, defaults, about), _powershell(words, defaults, about)


def _posix(words: Sequence[str], defaults: Mapping[str, str], about: str) -> str:
    def word(flag: str, value: str) -> str:
        if flag.removeprefix("--") in defaults:
            return f'"${flag.removeprefix("--")}"'
        return '"$here/vocabulary.txt"' if flag == "--vocabulary" else shlex.quote(value)

    usage = " ".join(f"[{name.upper()}]" for name in defaults)
    lines = ["#!/bin/sh", f"# {about}", f"#   sh train.sh {usage}", "set -eu"]
    if "--vocabulary" in words:
        lines.append('here=$(cd "$(dirname "$0")" && pwd)')
    for place, (name, default) in enumerate(defaults.items(), start=1):
        lines += [f"default={shlex.quote(default)}", f"{name}=${{{place}:-$default}}"]
    command = " ".join(word(flag, value) for flag, value in zip(["", *words], words, strict=False))
    return "\n".join([*lines, f'exec "${{PYTHON:-python}}" {command}', ""])


def _powershell(words: Sequence[str], defaults: Mapping[str, str], about: str) -> str:
    def word(flag: str, value: str) -> str:
        if flag.removeprefix("--") in defaults:
            return f"${flag.removeprefix('--')}"
        # A first word would be taken for a command.
        quoted = powershell_line(["python", value]).removeprefix("python ")
        return '"$PSScriptRoot/vocabulary.txt"' if flag == "--vocabulary" else quoted.removeprefix("& ")

    usage = " ".join(f"[-{name} PATH]" for name in defaults)
    parameters = ", ".join(f"[string]${name} = {_single(default)}" for name, default in defaults.items())
    command = " ".join(word(flag, value) for flag, value in zip(["", *words], words, strict=False))
    lines = [
        f"# {about}",
        f"#   powershell -File train.ps1 {usage}",
        f"param({parameters})",
        "$python = if ($env:PYTHON) { $env:PYTHON } else { 'python' }",
        f"& $python {command}",
        "exit $LASTEXITCODE",
        "",
    ]
    return "\n".join(lines)


def _single(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# the words


def readme(found: _Found) -> str:
    """What a stranger reads first."""
    sweep, trial = found.sweep, found.trial
    paragraphs = [f"# {sweep.name}, trial {trial_label(trial)}", _what(found), *_measured(found)]
    if found.grounds:
        paragraphs += ["## For and against it", "\n".join(f"- {each}" for each in found.grounds)]
    paragraphs += ["## Use it", *_use(found), "## Train it again", *_again(found), "## What is here", _contents(found)]
    if found.missing:
        paragraphs += ["## What is not", "\n".join(f"- {what}: {why}" for what, why in found.missing.items())]
    return "\n\n".join(paragraphs) + "\n"


def _what(found: _Found) -> str:
    trial, facts = found.trial, found.sweep.facts
    glosses = f" of {facts['glosses']} glosses" if "glosses" in facts else ""
    trainer = "" if found.built_in else f" It was trained by {facts['trainer']}."
    return (
        f"A CTC model{glosses}, trained by ctc-sweeps for {counted(trial.epochs, 'epoch')}; these are its weights "
        f"after epoch {trial.best_epoch}, whose WER on dev was lowest.{trainer} How the trial ended: "
        f"{trial.reason or trial.state.value.lower()}"
    )


def _measured(found: _Found) -> list[str]:
    sweep, trial, interval = found.sweep, found.trial, found.interval
    assert trial.best_wer is not None
    said = f"Dev WER {trial.best_wer:.1%}"
    if interval is not None and found.read is not None:
        drawn = counted(len(found.read[0]), "dev sentence")
        said += f", 95 % interval {interval[0]:.1%} to {interval[1]:.1%} (the {drawn} drawn anew, 10,000 times)"
    said += f". The best constant sentence scores {sweep.facts['constant_wer']:.1%}."
    number = sum(each.best_wer is not None for each in found.trials)
    flattered = "Its epoch was chosen on dev, so dev flatters it. "
    if number > 1 and best_trial(found.trials) == trial:
        flattered = (
            f"It is the best of {counted(number, 'trial')}, and its epoch the best of its own: chosen on dev, so dev "
            "flatters it. "
        )
    flattered += "The interval says what other sentences would have shown of these weights; other seeds differ as well."
    if found.confirmation is None:
        flattered += f" It was not confirmed: `sweeps confirm {sweep.name}` trains it again with new seeds."
        return [said, flattered]
    return [said, flattered, "\n".join(f"- {each}" for each in confirmed(found.confirmation, trial.number))]


def confirmed(confirmation: Confirmation, number: int) -> list[str]:
    """What a confirmation says of one trial, and in the end."""
    own = [each for each in confirmation.configurations if each.trial == number]
    split = "test" if confirmation.split == "test" else "dev"
    said = [
        f"Trained again with {counted(confirmation.seeds, 'new seed')} ({confirmation.sweep}), it has a WER of "
        f"{in_words(each.measured)} on {split}: that is what it is worth."
        for each in own
    ]
    return [*(said or [f"{confirmation.sweep} confirmed other configurations, not this one."]), *confirmation.said]


def _use(found: _Found) -> list[str]:
    if found.checkpoint is None or not found.built_in:
        return ["The weights cannot be used from here; see below."]
    config = found.corpus_config
    given = {name: getattr(config, name) for name in ("annotations", "filter")}
    options = "".join(f" --{name} {value}" for name, value in given.items() if value)
    if config.vocabulary is not None:
        options += " --vocabulary vocabulary.txt"
    modalities = ",".join(f"{name}={width}" for name, width in (config.modalities or {}).items())
    options += f" --modalities {modalities}" if modalities else ""
    options += "" if config.normalise else " --no_normalise"
    return [
        "```sh\n"
        f"python -m model decode {CHECKPOINT} --data_dir CORPUS{options}\n"
        f"python -m model export {CHECKPOINT} student.onnx\n"
        "```",
        "The first measures it, the second makes a file for a device. Normalisation and classes are in the checkpoint.",
    ]


def _again(found: _Found) -> list[str]:
    facts, generated = found.sweep.facts, spec_of(found.sweep).corpus.generated
    said = []
    if found.built_in:
        said.append("```sh\nsh train.sh CORPUS OUTPUT        # or: powershell -File train.ps1 -data_dir CORPUS\n```")
    else:
        path = f"{found.sweep.name}/{found.trial.number}"
        said.append(f"`sweeps replay {path} --trainer ...` on a machine with its code.")
    said.append(
        f"On the corpus of hash `{facts.get('corpus_hash', '')}` (corpus.json), with the versions and the kind of "
        "processor in environment.txt, it gives the same numbers to the last bit; elsewhere within the interval, "
        "most of the time."
    )
    if generated is not None:
        options = " ".join(f"--{name} {value}" for name, value in generated.model_dump().items() if value is not None)
        said.append(f"The corpus is generated:\n\n```sh\npython -m model generate CORPUS {options}\n```")
    return said


def _contents(found: _Found) -> str:
    lines = ["| file | holds |", "|---|---|"]
    if found.checkpoint is not None:
        lines.append(f"| {CHECKPOINT} | the weights, with classes and normalisation; without the optimizer's state |")
    if found.built_in:
        lines.append("| train.sh, train.ps1 | the command that trains exactly this |")
    lines.append("| config.yaml | every setting of the training |")
    if "vocabulary.txt" not in found.missing:
        lines.append("| vocabulary.txt | the classes, a line each, the blank first |")
    lines += [
        "| corpus.json | what tells the corpus from any other |",
        "| environment.txt | versions and machine; `pip install -r` takes it |",
        "| evidence.json | what this page says, and more, for programs |",
        f"| {SUMS} | `sha256sum -c {SUMS}` checks the files |",
    ]
    return "\n".join(lines)
